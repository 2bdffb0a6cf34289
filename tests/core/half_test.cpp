// SPDX-License-Identifier: Apache-2.0
// Both 16-bit formats, all 65,536 patterns, against their definition in exact double arithmetic.
#include "fedlora/core/half.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {

/// The value that IEEE 754 gives a pattern with this many exponent and fraction bits.
double value_of(std::uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double fraction = static_cast<double>(bits & ((1u << fraction_bits) - 1)) * std::ldexp(1.0, -fraction_bits);
  const double sign = (bits >> (exponent_bits + fraction_bits)) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1.0 + fraction, exponent - bias);
}

template <class Widen>
int mismatches(Widen widen, int exponent_bits, int fraction_bits) {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float got = widen(static_cast<std::uint16_t>(bits));
    const double expected = value_of(bits, exponent_bits, fraction_bits);
    const bool same = std::isnan(expected)
                          ? std::isnan(got)
                          : static_cast<double>(got) == expected && std::signbit(got) == std::signbit(expected);
    wrong += same ? 0 : 1;
  }
  return wrong;
}

}  // namespace

TEST_CASE("every float16 pattern widens to its exact value") { CHECK(mismatches(fedlora::f16_to_float, 5, 10) == 0); }

TEST_CASE("every bfloat16 pattern widens to its exact value") { CHECK(mismatches(fedlora::bf16_to_float, 8, 7) == 0); }

TEST_CASE("widening keeps the sign and payload of a NaN, and works in constant expressions") {
  static_assert(fedlora::f16_to_float(0x3c00) == 1.0f);
  static_assert(fedlora::f16_to_float(0x0001) == 0x1p-24f);
  static_assert(fedlora::f16_to_float(0x7bff) == 65504.0f);
  static_assert(fedlora::bf16_to_float(0xbf80) == -1.0f);
  CHECK(std::bit_cast<std::uint32_t>(fedlora::f16_to_float(0xfe01)) == 0xffc02000u);
  CHECK(std::bit_cast<std::uint32_t>(fedlora::bf16_to_float(0xffc1)) == 0xffc10000u);
}
