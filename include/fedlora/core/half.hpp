// SPDX-License-Identifier: Apache-2.0
// The two 16-bit floating-point formats of checkpoints, as bit patterns, widened exactly.
#pragma once

#include <bit>
#include <cstdint>

namespace fedlora {

/// bfloat16 (1 sign, 8 exponent, 7 fraction bits): the upper half of a float. Exact, every pattern.
constexpr float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// IEEE 754 binary16 (1 sign, 5 exponent, 10 fraction bits). Exact: subnormals, infinities, and NaN payloads too.
constexpr float f16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: fraction · 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  const std::uint32_t widened = exponent == 31 ? 255u : exponent - 15 + 127;
  return std::bit_cast<float>(sign | (widened << 23) | (fraction << 13));
}

}  // namespace fedlora
