// SPDX-License-Identifier: Apache-2.0
// Both 16-bit formats, all 65,536 patterns, against their definition in exact double arithmetic; and rounding to them.
#include "fedlora/core/half.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

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

/// Rounds every number of the format, and what lies around the middle between it and the next one: how many go wrong.
template <class Round>
int misroundings(Round round, int exponent_bits, int fraction_bits) {
  int wrong = 0;
  const std::uint32_t infinity = ((1u << exponent_bits) - 1) << fraction_bits;
  for (std::uint32_t bits = 0; bits < infinity; ++bits) {
    // The double after the largest number is where the next one would be: what rounds there is infinite.
    const double here = value_of(bits, exponent_bits, fraction_bits);
    const double next = bits + 1 == infinity ? 2 * here - value_of(bits - 1, exponent_bits, fraction_bits)
                                             : value_of(bits + 1, exponent_bits, fraction_bits);
    const auto middle = static_cast<float>((here + next) / 2);
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    for (const std::uint32_t sign : {0u, 0x8000u}) {
      const float way = sign == 0 ? 1.0f : -1.0f;
      wrong += round(way * static_cast<float>(here)) != (bits | sign);
      wrong += round(way * middle) != (even | sign);
      wrong += round(way * std::nextafter(middle, 0.0f)) != (bits | sign);
      wrong += round(way * std::nextafter(middle, std::numeric_limits<float>::infinity())) != ((bits + 1) | sign);
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE("rounding goes to the nearest number, ties to even, and beyond the largest to infinity") {
  CHECK(misroundings(fedlora::float_to_f16, 5, 10) == 0);
  CHECK(misroundings(fedlora::float_to_bf16, 8, 7) == 0);
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(fedlora::float_to_f16(-infinity) == 0xfc00);
  CHECK(fedlora::float_to_bf16(infinity) == 0x7f80);
  CHECK(fedlora::float_to_f16(1e30f) == 0x7c00);
  CHECK(std::isnan(fedlora::f16_to_float(fedlora::float_to_f16(std::bit_cast<float>(0x7f800001u)))));
  CHECK(std::isnan(fedlora::bf16_to_float(fedlora::float_to_bf16(std::bit_cast<float>(0xff800001u)))));
}

TEST_CASE("16-bit scalars are values of two bytes") {
  static_assert(std::is_trivially_copyable_v<fedlora::Bf16> && sizeof(fedlora::Bf16) == 2);
  static_assert(std::is_trivially_copyable_v<fedlora::Half> && sizeof(fedlora::Half) == 2);
  static_assert(fedlora::Bf16(1.5f).bits == 0x3fc0 && fedlora::Half(1.5f).bits == 0x3e00);
  static_assert(fedlora::Bf16(-3.0f) * 2.0f == -6.0f && fedlora::Half(0x1p-24f) == 0x1p-24f);
}

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
