// SPDX-License-Identifier: Apache-2.0
// A digest that tells bases apart, cheaply: an adapter keeps that of the base it was trained over, and whoever puts it
// over another one is told so.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/half.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/hf/checkpoint.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

/// 64 bits, in hexadecimal, of the tensors `names` of a checkpoint: their names within the base, their shapes, and of
/// each up to 256 values, in eight stretches spread over it, rounded to BF16. So it is the same for one file or shards,
/// with the prefix of a task model or without, whatever head or unused tensors come along, and for copies of the same
/// weights in F64, F32 and BF16 (a copy in F16 has lost other bits, and differs). It guards against mistakes: nothing
/// keeps somebody from making two bases with one digest.
inline std::string base_digest(const Checkpoint& checkpoint, const std::set<std::string>& names,
                               const FamilyNames& family) {
  constexpr Index stretches = 8, longest = 32;
  std::set<std::pair<std::string, const TensorView*>> tensors;
  for (const std::string& stored : names) {
    std::string name(family.within_base(stored));
    if (name.empty()) name = std::string(family.word_embeddings) + ".weight";  // kept under the output layer's name
    for (const auto& [before, now] : {std::pair{".gamma", ".weight"}, std::pair{".beta", ".bias"}})
      if (name.ends_with(before)) name.replace(name.size() - std::string_view(before).size(), std::string::npos, now);
    tensors.emplace(std::move(name), checkpoint.find(stored));
  }
  std::uint64_t hash = 0;
  for (const auto& [name, tensor] : tensors) {
    for (const char c : name) hash = mix(hash, static_cast<unsigned char>(c));
    for (const Index extent : tensor->shape) hash = mix(hash, static_cast<std::uint64_t>(extent));
    const Index size = tensor->size();
    for (Index stretch = 0; size > 0 && stretch < stretches; ++stretch) {
      std::array<float, longest> values{};
      const Index count = std::min(longest, size), first = (size - count) * stretch / (stretches - 1);
      const std::size_t width = tensor->bytes.size() / static_cast<std::size_t>(size);
      TensorView part = *tensor;
      part.shape = {count};
      part.bytes =
          tensor->bytes.subspan(static_cast<std::size_t>(first) * width, static_cast<std::size_t>(count) * width);
      copy_tensor(part, std::span(values).first(static_cast<std::size_t>(count)));
      for (const float value : values) hash = mix(hash, float_to_bf16(value));
    }
  }
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += digits[(hash >> shift) & 15];
  return text;
}

}  // namespace fedlora
