// SPDX-License-Identifier: Apache-2.0
// The adapter: a small value that travels. Its numbers lie in one flat array, low-rank terms first and whole tensors
// (the head) after them, so that an optimizer, an average and a serialiser each see one range; the layout gives them
// names.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/lora/config.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

/// One low-rank term: scale · B A beside the frozen matrix of module `name`.
struct AdapterSite {
  std::string name;  ///< the module as transformers names it: "bert.encoder.layer.0.attention.self.query"
  Index in = 0;
  Index out = 0;
  Index rank = 0;
  double alpha = 0;
  double scale = 0;    ///< alpha / rank, or alpha / sqrt(rank)
  Index a_offset = 0;  ///< A, (rank, in), in the flat array
  Index b_offset = 0;  ///< B, (out, rank)
};

/// One whole trainable tensor (PEFT's modules_to_save).
struct SavedTensor {
  std::string name;          ///< "classifier.weight"
  std::vector<Index> shape;  ///< (out, in), or (out)
  Index offset = 0;

  Index size() const {
    Index product = 1;
    for (const Index extent : shape) product *= extent;
    return product;
  }
};

/// The model around an adapter, as far as PEFT's fields do not tell it: what the adapter needs to compute again what it
/// computed in training. Files keep it beside the tensors (hf/adapter_metadata.hpp); an adapter from elsewhere has none
/// of it.
struct AdapterContext {
  std::optional<Pooling> pooling = {};           ///< of a sequence classifier
  Index max_tokens = 0;                          ///< where texts were cut; 0: not known
  std::optional<ProblemType> problem_type = {};  ///< of a sequence classifier
  std::string base_digest = {};                  ///< `Pretrained::digest` of the base; empty: not known
  std::optional<bool> text_pairs = {};           ///< whether a sequence classifier's texts came in pairs

  friend bool operator==(const AdapterContext&, const AdapterContext&) = default;
};

/// The names, shapes and places of an adapter's numbers, and what the files of an adapter need to know.
struct AdapterLayout {
  LoraConfig config;
  TaskType task = TaskType::sequence_classification;
  std::string base_model;                    ///< base_model_name_or_path
  std::vector<std::string> target_modules;   ///< resolved, sorted
  std::vector<std::string> modules_to_save;  ///< resolved: module names, the head among them
  std::vector<std::string> id2label;         ///< empty for language models
  std::string output_layer;                  ///< the saved module with a row for each label: "classifier"; empty: none
  std::vector<std::string> base_id2label;    ///< config.json's, for adapters that bring no names of their own
  AdapterContext context;

  std::vector<AdapterSite> sites;
  std::vector<SavedTensor> saved;
  Index lora_size = 0;  ///< numbers in low-rank terms: [0, lora_size) of the flat array
  Index size = 0;       ///< all numbers: [lora_size, size) is the head

  /// Appends a site; all sites come before all saved tensors.
  void add_site(std::string name, Index in, Index out, Index rank, double alpha) {
    if (rank <= 0) fail<ConfigError>("module " + name, "a rank of at least 1", std::to_string(rank));
    if (!saved.empty()) throw Error("AdapterLayout: sites come before saved tensors");
    AdapterSite site{std::move(name), in, out, rank, alpha, 0, size, size + rank * in};
    site.scale = alpha / (config.use_rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
    size += rank * (in + out);
    lora_size = size;
    sites.push_back(std::move(site));
  }

  /// Appends a whole tensor.
  void add_saved(std::string name, std::vector<Index> shape) {
    SavedTensor tensor{std::move(name), std::move(shape), size};
    size += tensor.size();
    saved.push_back(std::move(tensor));
  }

  /// The place of a saved tensor, or nullptr.
  const SavedTensor* find_saved(std::string_view name) const {
    const auto found = std::find_if(saved.begin(), saved.end(), [&](const SavedTensor& t) { return t.name == name; });
    return found == saved.end() ? nullptr : &*found;
  }
};

/// True when two layouts put the same names and shapes in the same places.
inline bool same_places(const AdapterLayout& a, const AdapterLayout& b) {
  return a.size == b.size && a.lora_size == b.lora_size &&
         std::equal(a.sites.begin(), a.sites.end(), b.sites.begin(), b.sites.end(),
                    [](const AdapterSite& x, const AdapterSite& y) {
                      return x.name == y.name && x.in == y.in && x.out == y.out && x.rank == y.rank &&
                             x.scale == y.scale;
                    }) &&
         std::equal(a.saved.begin(), a.saved.end(), b.saved.begin(), b.saved.end(),
                    [](const SavedTensor& x, const SavedTensor& y) { return x.name == y.name && x.shape == y.shape; });
}

/// An adapter's numbers with their layout. A value: copies are independent.
template <class T>
class Adapter {
 public:
  using Scalar = T;

  Adapter() = default;
  explicit Adapter(std::shared_ptr<const AdapterLayout> layout)
      : layout_(std::move(layout)), values_(static_cast<std::size_t>(layout_->size), T(0)) {}
  Adapter(std::shared_ptr<const AdapterLayout> layout, std::vector<T> values)
      : layout_(std::move(layout)), values_(std::move(values)) {
    if (static_cast<Index>(values_.size()) != layout_->size)
      fail<ShapeError>("adapter", std::to_string(layout_->size) + " values", std::to_string(values_.size()));
  }

  const AdapterLayout& layout() const { return *layout_; }
  const std::shared_ptr<const AdapterLayout>& shared_layout() const { return layout_; }
  std::span<const T> values() const { return values_; }
  std::span<T> values() { return values_; }

  MatrixView<const T> a(Index site) const {
    const AdapterSite& s = layout_->sites[static_cast<std::size_t>(site)];
    return {values_.data() + s.a_offset, s.rank, s.in};
  }
  MatrixView<T> a(Index site) {
    const AdapterSite& s = layout_->sites[static_cast<std::size_t>(site)];
    return {values_.data() + s.a_offset, s.rank, s.in};
  }
  MatrixView<const T> b(Index site) const {
    const AdapterSite& s = layout_->sites[static_cast<std::size_t>(site)];
    return {values_.data() + s.b_offset, s.out, s.rank};
  }
  MatrixView<T> b(Index site) {
    const AdapterSite& s = layout_->sites[static_cast<std::size_t>(site)];
    return {values_.data() + s.b_offset, s.out, s.rank};
  }

 private:
  std::shared_ptr<const AdapterLayout> layout_;
  std::vector<T> values_;
};

}  // namespace fedlora
