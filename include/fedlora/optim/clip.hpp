// SPDX-License-Identifier: Apache-2.0
// Gradient clipping by global norm, and the test for numbers that are not finite.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>

#include "fedlora/backend/cpu/level.hpp"
#include "fedlora/core/error.hpp"

namespace fedlora::inline FEDLORA_CPU_LEVEL {

/// The Euclidean norm, accumulated in double over eight interleaved sums: a fixed order that a compiler may still
/// vectorise.
template <class T>
double global_norm(std::span<T> values) {
  double sums[8] = {};
  const std::size_t whole = values.size() / 8 * 8;
  for (std::size_t i = 0; i < whole; i += 8)
    for (std::size_t lane = 0; lane < 8; ++lane) {
      const auto x = static_cast<double>(values[i + lane]);
      sums[lane] += x * x;
    }
  for (std::size_t i = whole; i < values.size(); ++i) {
    const auto x = static_cast<double>(values[i]);
    sums[i - whole] += x * x;
  }
  return std::sqrt(((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
}

/// torch.nn.utils.clip_grad_norm_: g ← g · min(1, max_norm / (‖g‖ + 1e-6)). Returns ‖g‖ before clipping.
template <class T>
double clip_global_norm(std::span<T> gradient, double max_norm) {
  if (!(max_norm > 0)) fail<ConfigError>("clip_global_norm", "a positive norm", std::to_string(max_norm));
  const double norm = global_norm(gradient);
  const double factor = std::min(1.0, max_norm / (norm + 1e-6));
  if (factor < 1.0) {
    const T scale = static_cast<T>(factor);
    for (T& g : gradient) g *= scale;
  }
  return norm;
}

/// True when no value is infinite or not a number: none has an exponent of ones only. On the bits, because a loop over
/// comparisons of floating-point numbers is not vectorised.
template <class T>
bool all_finite(std::span<T> values) {
  using Number = std::remove_const_t<T>;
  using Bits = std::conditional_t<sizeof(Number) == 4, std::uint32_t, std::uint64_t>;
  const Bits exponent = std::bit_cast<Bits>(std::numeric_limits<Number>::infinity());
  Bits found = 0;
  for (const Number value : values) found |= (std::bit_cast<Bits>(value) & exponent) == exponent ? Bits(1) : Bits(0);
  return found == 0;
}

}  // namespace fedlora::inline FEDLORA_CPU_LEVEL
