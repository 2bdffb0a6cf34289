// SPDX-License-Identifier: Apache-2.0
// From named tensors to frozen matrices. Every tensor asked for is checked; those nobody asked for can be listed.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/io/safetensors.hpp"

namespace fedlora {

/// Finds a tensor by its name in the checkpoint; null when there is none.
using TensorFinder = std::function<const TensorView*(const std::string&)>;

/// Hands out a checkpoint's tensors as frozen matrices of backend B, whatever prefix the checkpoint was saved with.
template <class B>
class WeightLoader {
 public:
  /// `prefix` ("bert.") is what the base's tensors may begin with; it is used when `probe` (a tensor every checkpoint
  /// of the family has, named without it) is found with it.
  WeightLoader(B backend, TensorFinder find, std::string checkpoint, std::string_view prefix, const std::string& probe)
      : backend_(std::move(backend)), find_(std::move(find)), checkpoint_(std::move(checkpoint)) {
    if (find_(std::string(prefix) + probe) != nullptr) prefix_ = prefix;
  }

  /// A matrix of the base, (rows, cols). \throws FormatError when it is missing or shaped otherwise.
  FrozenMatrix matrix(const std::string& name, Index rows, Index cols) {
    return take(prefix_ + name, {rows, cols}, rows, cols);
  }

  /// A vector of the base; older checkpoints call a norm's weight and bias gamma and beta.
  FrozenMatrix vector(const std::string& name, Index size) {
    if (find_(prefix_ + name) == nullptr) {
      for (const auto& [now, before] : {std::pair{".weight", ".gamma"}, std::pair{".bias", ".beta"}}) {
        if (!name.ends_with(now)) continue;
        const std::string old = prefix_ + name.substr(0, name.size() - std::string_view(now).size()) + before;
        if (find_(old) != nullptr) return take(old, {size}, 1, size);
      }
    }
    return take(prefix_ + name, {size}, 1, size);
  }

  /// A tensor by its whole name (a head's), or an empty matrix when the checkpoint lacks it or has it in another shape.
  FrozenMatrix optional(const std::string& name, const std::vector<Index>& shape) {
    const TensorView* tensor = find_(name);
    if (tensor == nullptr || tensor->shape != shape) return {};
    return take(name, shape, shape.size() == 2 ? shape[0] : 1, shape.back());
  }

  const std::set<std::string>& used() const { return used_; }

 private:
  FrozenMatrix take(const std::string& name, const std::vector<Index>& shape, Index rows, Index cols) {
    const TensorView* tensor = find_(name);
    const std::string where = (tensor != nullptr ? tensor->file : checkpoint_) + ", tensor " + name;
    if (tensor == nullptr) fail<FormatError>(where, "a tensor of shape " + shape_text(shape), "no such tensor");
    if (tensor->shape != shape) fail<FormatError>(where, "shape " + shape_text(shape), shape_text(tensor->shape));
    used_.insert(name);
    return backend_.adopt(tensor->dtype, rows, cols, tensor->bytes, tensor->owner, where);
  }

  B backend_;
  TensorFinder find_;
  std::string checkpoint_;
  std::string prefix_;
  std::set<std::string> used_;
};

}  // namespace fedlora
