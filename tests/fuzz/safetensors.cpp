// SPDX-License-Identifier: Apache-2.0
// Safetensors: what is read lies within the file, covers it exactly, and reads the same when it is written again.
#include "fedlora/io/safetensors.hpp"

#include <cstddef>
#include <string>
#include <vector>

#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

/// Every element, as whoever loads a model reads it. Not all dtypes can be.
template <class T>
void read_elements(const TensorView& tensor) {
  std::vector<T> values(static_cast<std::size_t>(tensor.size()));
  unless_refused("fuzz.safetensors", [&] { return copy_tensor(tensor, std::span<T>(values)), true; });
}

inline std::string written_again(const SafetensorsFile& file) {
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, tensor] : file.tensors()) tensors.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
  return safetensors_bytes(tensors, file.metadata());
}

const Target safetensors_target("safetensors", [](std::string_view input) {
  const Bytes bytes = bytes_of(safetensors_of(input), "fuzz.safetensors");
  const auto file = unless_refused(bytes.name, [&] { return SafetensorsFile(bytes); });
  if (!file) return;
  std::size_t covered = 0;
  for (const auto& [name, tensor] : file->tensors()) {
    require(tensor.name == name && file->find(name) == &tensor, "a tensor is found under its name");
    require(tensor.bytes.data() >= bytes.data.data() &&
                tensor.bytes.data() + tensor.bytes.size() <= bytes.data.data() + bytes.data.size(),
            "a tensor lies within the file");
    require(tensor.bytes.size() * 8 == static_cast<std::size_t>(tensor.size() * dtype_bits(tensor.dtype)),
            "a tensor has the bytes that shape and dtype say");
    covered += tensor.bytes.size();
    read_elements<float>(tensor);
    read_elements<double>(tensor);
  }
  require(covered < bytes.data.size(), "tensors do not overlap");

  const std::string again = written_again(*file);
  const SafetensorsFile back(bytes_of(again, "again"));
  require(back.metadata() == file->metadata() && back.tensors().size() == file->tensors().size(), "all is written");
  for (const auto& [name, tensor] : file->tensors()) {
    const TensorView* const read = back.find(name);
    require(read != nullptr && read->dtype == tensor.dtype && read->shape == tensor.shape &&
                std::ranges::equal(read->bytes, tensor.bytes),
            "a tensor reads as it was written: " + name);
  }
  require(written_again(back) == again, "equal input gives equal bytes");
});

}  // namespace fedlora::fuzz
