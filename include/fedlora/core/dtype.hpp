// SPDX-License-Identifier: Apache-2.0
// Element types of stored tensors, under the names that safetensors gives them.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

#include "fedlora/core/standard.hpp"

namespace fedlora {

/// Every element type of safetensors.
enum class Dtype {
  f64,
  f32,
  f16,
  bf16,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean,
  c64,  ///< two floats
  f8_e4m3,
  f8_e4m3fnuz,
  f8_e5m2,
  f8_e5m2fnuz,
  f8_e8m0,
  f6_e2m3,
  f6_e3m2,
  f4,  ///< packed: less than a byte each
};

namespace detail {

struct DtypeFacts {
  Dtype dtype;
  std::string_view name;
  int bits;
};

inline constexpr std::array<DtypeFacts, 22> dtype_facts = {{
    {Dtype::f64, "F64", 64},        {Dtype::f32, "F32", 32},
    {Dtype::f16, "F16", 16},        {Dtype::bf16, "BF16", 16},
    {Dtype::i64, "I64", 64},        {Dtype::i32, "I32", 32},
    {Dtype::i16, "I16", 16},        {Dtype::i8, "I8", 8},
    {Dtype::u64, "U64", 64},        {Dtype::u32, "U32", 32},
    {Dtype::u16, "U16", 16},        {Dtype::u8, "U8", 8},
    {Dtype::boolean, "BOOL", 8},    {Dtype::c64, "C64", 64},
    {Dtype::f8_e4m3, "F8_E4M3", 8}, {Dtype::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
    {Dtype::f8_e5m2, "F8_E5M2", 8}, {Dtype::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
    {Dtype::f8_e8m0, "F8_E8M0", 8}, {Dtype::f6_e2m3, "F6_E2M3", 6},
    {Dtype::f6_e3m2, "F6_E3M2", 6}, {Dtype::f4, "F4", 4},
}};

constexpr bool dtype_facts_in_order() {
  for (std::size_t i = 0; i < dtype_facts.size(); ++i) {
    if (static_cast<std::size_t>(dtype_facts[i].dtype) != i) return false;
  }
  return true;
}
static_assert(dtype_facts_in_order());

}  // namespace detail

/// Bits of one element.
constexpr int dtype_bits(Dtype dtype) { return detail::dtype_facts[static_cast<std::size_t>(dtype)].bits; }
/// Bytes of one element; 1 for the packed types of less than a byte (see `dtype_bits`).
constexpr std::size_t dtype_size(Dtype dtype) { return (static_cast<std::size_t>(dtype_bits(dtype)) + 7) / 8; }
/// The format's name: "F32", "BF16", "BOOL", …
constexpr std::string_view dtype_name(Dtype dtype) { return detail::dtype_facts[static_cast<std::size_t>(dtype)].name; }
/// The dtype of that name, if there is one.
constexpr std::optional<Dtype> dtype_from_name(std::string_view name) {
  for (const auto& facts : detail::dtype_facts) {
    if (facts.name == name) return facts.dtype;
  }
  return std::nullopt;
}

}  // namespace fedlora
