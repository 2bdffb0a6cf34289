// SPDX-License-Identifier: Apache-2.0
// The two 16-bit floating-point formats: as bit patterns, widened exactly and rounded to nearest even, and as scalars.
#pragma once

#include <cstdint>

#include "fedlora/core/random.hpp"

namespace fedlora {

/// bfloat16 (1 sign, 8 exponent, 7 fraction bits): the upper half of a float. Exact, every pattern.
FEDLORA_HOST_DEVICE constexpr float bf16_to_float(std::uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

/// The nearest bfloat16, ties to even; beyond the largest it is infinity, and a NaN stays one.
FEDLORA_HOST_DEVICE constexpr std::uint16_t float_to_bf16(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// IEEE 754 binary16 (1 sign, 5 exponent, 10 fraction bits). Exact: subnormals, infinities, and NaN payloads too.
FEDLORA_HOST_DEVICE constexpr float f16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: fraction · 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, magnitude) | sign);
  }
  const std::uint32_t widened = exponent == 31 ? 255u : exponent - 15 + 127;
  return __builtin_bit_cast(float, sign | (widened << 23) | (fraction << 13));
}

/// The nearest binary16, ties to even, subnormals too; from 65520 on it is infinity, and a NaN stays one.
FEDLORA_HOST_DEVICE constexpr std::uint16_t float_to_f16(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((size >> 13) & 0x3ffu));
  if (size >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (size < 0x38800000u) {  // below 2^-14; the last place of numbers from 0.5 to 1 is 2^-24, so the sum rounds there
    const float shifted = __builtin_bit_cast(float, size) + 0.5f;
    return static_cast<std::uint16_t>(sign | (__builtin_bit_cast(std::uint32_t, shifted) - 0x3f000000u));
  }
  return static_cast<std::uint16_t>(sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13));
}

/// A bfloat16 number. It is stored and converted; sums belong in float.
struct Bf16 {
  std::uint16_t bits;

  Bf16() = default;
  FEDLORA_HOST_DEVICE constexpr explicit Bf16(float value) : bits(float_to_bf16(value)) {
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
  }
  FEDLORA_HOST_DEVICE constexpr operator float() const { return bf16_to_float(bits); }  // NOLINT: exact
};

/// An IEEE 754 binary16 number. It is stored and converted; sums belong in float.
struct Half {
  std::uint16_t bits;

  Half() = default;
  FEDLORA_HOST_DEVICE constexpr explicit Half(float value) : bits(float_to_f16(value)) {
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
  }
  FEDLORA_HOST_DEVICE constexpr operator float() const {  // NOLINT: exact
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) {
      float value = 0;
      asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
      return value;
    }
#endif
    return f16_to_float(bits);
  }
};

}  // namespace fedlora
