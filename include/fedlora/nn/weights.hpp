// SPDX-License-Identifier: Apache-2.0
// From named tensors to frozen matrices. Every tensor asked for is checked; those nobody asked for can be listed.
#pragma once

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/io/safetensors.hpp"

namespace fedlora {

/// Finds a tensor by its name in the checkpoint; null when there is none.
using TensorFinder = std::function<const TensorView*(const std::string&)>;

/// Hands out a checkpoint's tensors as frozen matrices of backend B, whichever class of transformers saved it.
template <class B>
class WeightLoader {
 public:
  /// `prefix` ("bert.") is what the base's tensors begin with in a model that has a head; each is found with it,
  /// without, and with it twice, as a wrapper that calls its model by that name saves it (transformers strips one
  /// level).
  WeightLoader(B backend, TensorFinder find, std::string checkpoint, std::string_view prefix)
      : backend_(std::move(backend)),
        find_(std::move(find)),
        checkpoint_(std::move(checkpoint)),
        prefix_(prefix),
        prefix_found_(prefix) {}

  /// A matrix of the base, (rows, cols). \throws FormatError when it is missing or shaped otherwise.
  FrozenMatrix matrix(const std::string& name, Index rows, Index cols) {
    return take(stored(name), {rows, cols}, rows, cols);
  }

  /// The word embeddings. A file that has a shared tensor once may have it under the name of the output layer,
  /// `output`, alone; it counts for both when `tied`.
  FrozenMatrix embeddings(const std::string& name, const std::string& output, bool tied, Index rows, Index cols) {
    const std::string own = stored(name);
    const TensorView* const shared = find_(own) != nullptr ? nullptr : find_head(output);
    if (shared == nullptr) return take(own, {rows, cols}, rows, cols);
    if (!tied)
      fail<FormatError>(checkpoint_ + ", tensor " + own, "a tensor of shape " + shape_text(rows, cols),
                        "no such tensor (there is " + shared->name + ", but tie_word_embeddings is false)");
    return take(shared->name, {rows, cols}, rows, cols);
  }

  /// A vector of the base; older checkpoints call a norm's weight and bias gamma and beta.
  FrozenMatrix vector(const std::string& name, Index size) {
    std::string found = stored(name);
    for (const auto& [now, before] : {std::pair{".weight", ".gamma"}, std::pair{".bias", ".beta"}}) {
      if (find_(found) != nullptr || !name.ends_with(now)) continue;
      const std::string old = stored(name.substr(0, name.size() - std::string_view(now).size()) + before);
      if (find_(old) != nullptr) found = old;
    }
    return take(found, {size}, 1, size);
  }

  /// A tensor by its whole name (a head's: "bert.pooler.dense.weight", "classifier.bias"), which may lack the prefix or
  /// have one more; null when there is none.
  const TensorView* find_head(const std::string& name) const {
    for (const std::string& tried :
         {name, prefix_ + name, name.starts_with(prefix_) ? name.substr(prefix_.size()) : name})
      if (const TensorView* const tensor = find_(tried); tensor != nullptr) return tensor;
    return nullptr;
  }

  /// A tensor by the name that the checkpoint has for it, or an empty matrix when it lacks it or has it in another
  /// shape.
  FrozenMatrix optional(const std::string& name, const std::vector<Index>& shape) {
    const TensorView* tensor = find_(name);
    if (tensor == nullptr || tensor->shape != shape) return {};
    return take(name, shape, shape.size() == 2 ? shape[0] : 1, shape.back());
  }

  const std::set<std::string>& used() const { return used_; }

 private:
  /// The name under which the checkpoint has a tensor of the base; for one that it lacks, in the manner of the others.
  std::string stored(const std::string& name) {
    const TensorView* found = nullptr;
    for (const std::string& tried : {prefix_, std::string(), prefix_ + prefix_}) {
      const TensorView* const tensor = find_(tried + name);
      if (tensor == nullptr) continue;
      if (found != nullptr && !std::ranges::equal(found->bytes, tensor->bytes))
        fail<FormatError>(checkpoint_ + ", tensor " + found->name, "the same as " + tensor->name, "two that differ");
      if (found == nullptr) prefix_found_ = tried;
      found = tensor;
    }
    return prefix_found_ + name;
  }

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
  std::string prefix_found_;  ///< of the tensor found last
  std::set<std::string> used_;
};

}  // namespace fedlora
