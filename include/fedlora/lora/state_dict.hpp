// SPDX-License-Identifier: Apache-2.0
// An adapter as named tensors, under PEFT's keys, in safetensors bytes. Messages between client and server and PEFT's
// own adapter_model.safetensors are the same bytes, differing only in their metadata.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/core/dtype.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/adapter.hpp"

namespace fedlora {

/// One tensor of an adapter: its key in PEFT's state dict, and its place in the flat array.
struct StateEntry {
  std::string key;
  std::vector<Index> shape;
  Index offset = 0;
  bool head = false;  ///< a whole trained tensor, not a low-rank factor

  Index size() const {
    Index product = 1;
    for (const Index extent : shape) product *= extent;
    return product;
  }
};

/// PEFT's keys for every tensor of the layout, sorted: `base_model.model.<module>.lora_A.weight` (rank, in),
/// `….lora_B.weight` (out, rank), and `base_model.model.<tensor>` for whole tensors, without PEFT's in-memory wrapper
/// names.
inline std::vector<StateEntry> state_entries(const AdapterLayout& layout) {
  const std::string prefix = "base_model.model.";
  std::vector<StateEntry> entries;
  entries.reserve(2 * layout.sites.size() + layout.saved.size());
  for (const AdapterSite& site : layout.sites) {
    entries.push_back({prefix + site.name + ".lora_A.weight", {site.rank, site.in}, site.a_offset, false});
    entries.push_back({prefix + site.name + ".lora_B.weight", {site.out, site.rank}, site.b_offset, false});
  }
  for (const SavedTensor& tensor : layout.saved)
    entries.push_back({prefix + tensor.name, tensor.shape, tensor.offset, true});
  std::sort(entries.begin(), entries.end(), [](const StateEntry& a, const StateEntry& b) { return a.key < b.key; });
  return entries;
}

/// The adapter's tensors in T's own dtype, sorted by key, with `metadata`: equal adapters give equal bytes.
template <class T>
std::string adapter_bytes(const Adapter<T>& adapter, const std::map<std::string, std::string>& metadata) {
  std::vector<TensorToWrite> tensors;
  for (const StateEntry& entry : state_entries(adapter.layout())) {
    const auto values =
        adapter.values().subspan(static_cast<std::size_t>(entry.offset), static_cast<std::size_t>(entry.size()));
    tensors.push_back({entry.key, dtype_of<T>, entry.shape, std::as_bytes(values)});
  }
  return safetensors_bytes(tensors, metadata);
}

/// Which dtypes a reader takes.
enum class DtypePolicy {
  exact,  ///< only T's own: a message that must keep every bit
  widen,  ///< any of F64, F32, F16, BF16: a file from elsewhere
};

/// The adapter in the tensors of a file. Names are checked both ways and every shape against the layout.
/// \throws FormatError naming file and tensor: one that is missing, unexpected, or of another shape or dtype.
template <class T>
Adapter<T> adapter_from(const std::map<std::string, TensorView>& tensors,
                        const std::shared_ptr<const AdapterLayout>& layout, const std::string& where,
                        DtypePolicy policy) {
  const std::vector<StateEntry> entries = state_entries(*layout);
  const auto list = [](const std::vector<std::string>& names) {
    std::string text;
    for (std::size_t i = 0; i < names.size() && i < 8; ++i)
      text.append(i == 0 ? "" : ", ").append(detail::in_quotes(names[i]));
    return names.size() > 8 ? text + " and " + std::to_string(names.size() - 8) + " more" : text;
  };
  std::vector<std::string> missing, unexpected;
  for (const StateEntry& entry : entries)
    if (!tensors.contains(entry.key)) missing.push_back(entry.key);
  for (const auto& [name, view] : tensors) {
    const auto found =
        std::lower_bound(entries.begin(), entries.end(), name,
                         [](const StateEntry& entry, const std::string& key) { return entry.key < key; });
    if (found == entries.end() || found->key != name) unexpected.push_back(name);
  }
  if (!missing.empty() || !unexpected.empty()) {
    std::string got;
    if (!missing.empty()) got = "missing " + list(missing);
    if (!unexpected.empty()) got += std::string(got.empty() ? "" : "; ") + "unexpected " + list(unexpected);
    fail<FormatError>(where, "the " + std::to_string(entries.size()) + " tensors of the adapter", got);
  }
  Adapter<T> adapter(layout);
  for (const StateEntry& entry : entries) {
    const TensorView& view = tensors.at(entry.key);
    if (view.shape != entry.shape)
      fail<FormatError>(where + ", tensor " + entry.key, "shape " + shape_text(std::span<const Index>(entry.shape)),
                        shape_text(std::span<const Index>(view.shape)));
    if (policy == DtypePolicy::exact && view.dtype != dtype_of<T>)
      fail<FormatError>(where + ", tensor " + entry.key, dtype_name(dtype_of<T>), dtype_name(view.dtype));
    copy_tensor(
        view, adapter.values().subspan(static_cast<std::size_t>(entry.offset), static_cast<std::size_t>(entry.size())));
  }
  return adapter;
}

}  // namespace fedlora
