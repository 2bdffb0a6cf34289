// SPDX-License-Identifier: Apache-2.0
// Gradient clipping by global norm, and the test for numbers that are not finite.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>

#include "fedlora/core/error.hpp"

namespace fedlora {

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

/// True when no value is infinite or not a number. Written without isfinite, so that the loop vectorises.
template <class T>
bool all_finite(std::span<T> values) {
  constexpr auto largest = std::numeric_limits<std::remove_const_t<T>>::max();
  bool finite = true;
  for (const T value : values) finite &= std::abs(value) <= largest;
  return finite;
}

}  // namespace fedlora
