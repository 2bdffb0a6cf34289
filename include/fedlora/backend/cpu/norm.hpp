// SPDX-License-Identifier: Apache-2.0
// LayerNorm (Ba, Kiros, Hinton 2016, arXiv 1607.06450) and RMSNorm (Zhang, Sennrich 2019, arXiv 1910.07467), row by
// row.
#pragma once

#include <cmath>

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// The sum of f(x) over a row; `f` maps lanes in place. Four sums side by side: none waits for another, and in
/// long rows each has a quarter of the rounding.
template <class T, class F>
T row_sum(const T* x, Index size, F&& f) {
  constexpr Index lanes = lane_count<T>;
  Lanes<T> totals[4] = {};
  Lanes<T> values;
  Index j = 0;
  for (; j + 4 * lanes <= size; j += 4 * lanes)
    each<4>([&](auto i) __attribute__((always_inline)) {
      load(values, x + j + i * lanes);
      f(values);
      totals[i] += values;
    });
  for (; j + lanes <= size; j += lanes) {
    load(values, x + j);
    f(values);
    totals[0] += values;
  }
  if (j < size) {
    load_first(values, x + j, size - j);
    f(values);
    const Lanes<T> zero{};
    Lanes<T> place;
    count_up(place);
    totals[1] += place < static_cast<T>(size - j) ? values : zero;  // what f made of the padding does not count
  }
  return sum_lanes((totals[0] + totals[1]) + (totals[2] + totals[3]));
}

/// One row of norm forward: writes y and the two statistics {mean (0 for RMSNorm), 1 / deviation}.
template <NormKind Kind, class T>
[[gnu::noinline]] void norm_row(const T* x, Index size, const T* gamma, const T* beta, T eps, T* y, T* statistics) {
  T mean = T(0);
  if constexpr (Kind == NormKind::layer_norm) mean = row_sum(x, size, [](Lanes<T>&) {}) / static_cast<T>(size);
  const T square = row_sum(
      x, size, [&](auto& v) __attribute__((always_inline)) {
        v -= mean;
        v *= v;
      });
  const T inverse = T(1) / std::sqrt(square / static_cast<T>(size) + eps);
  statistics[0] = mean;
  statistics[1] = inverse;
  T* const outputs[1] = {y};
  if constexpr (Kind == NormKind::layer_norm) {
    const T* const inputs[3] = {x, gamma, beta};
    for_lanes<T>(
        size, inputs,
        outputs, [&](auto& v) __attribute__((always_inline)) { v[0] = (v[0] - mean) * inverse * v[1] + v[2]; });
  } else {
    const T* const inputs[2] = {x, gamma};
    for_lanes<T>(
        size, inputs, outputs, [&](auto& v) __attribute__((always_inline)) { v[0] = v[0] * inverse * v[1]; });
  }
}

/// y = norm(x); statistics is (rows, 2). `beta` is not read for RMSNorm. y may be x.
template <class T>
void norm_forward(NormKind kind, const MatrixView<const T>& x, const T* gamma, const T* beta, T eps,
                  const MatrixView<T>& y, const MatrixView<T>& statistics) {
  for (Index i = 0; i < x.rows; ++i)
    if (kind == NormKind::layer_norm)
      norm_row<NormKind::layer_norm>(x.row(i), x.cols, gamma, beta, eps, y.row(i), statistics.row(i));
    else
      norm_row<NormKind::rms_norm>(x.row(i), x.cols, gamma, beta, eps, y.row(i), statistics.row(i));
}

/// One row of norm backward.
template <NormKind Kind, class T>
[[gnu::noinline]] void norm_row_backward(const T* dy, const T* x, Index size, const T* statistics, const T* gamma,
                                         T* dx, bool accumulate) {
  const T mean = statistics[0];
  const T inverse = statistics[1];
  // With x̂ = (x - mean) / deviation and g = gamma ∘ dy:  dx = (g - mean(g) - x̂ mean(g ∘ x̂)) / deviation.
  Lanes<T> sum_g{};
  Lanes<T> sum_gx{};
  const T* const inputs[3] = {dy, x, gamma};
  visit_lanes<T>(
      size, inputs, [&](auto& v) __attribute__((always_inline)) {
        const Lanes<T> g = v[0] * v[2];  // gamma is zero in the padding
        sum_g += g;
        sum_gx += g * (v[1] - mean);
      });
  const T mean_g = Kind == NormKind::layer_norm ? sum_lanes(sum_g) / static_cast<T>(size) : T(0);
  const T slope = sum_lanes(sum_gx) * inverse * inverse / static_cast<T>(size);
  T* const outputs[1] = {dx};
  const auto turn = [&](auto& v) __attribute__((always_inline)) {
    v[0] = (v[0] * v[2] - mean_g - (v[1] - mean) * slope) * inverse;
  };
  if (accumulate) {
    const T* const again[4] = {dy, x, gamma, dx};
    for_lanes<T>(
        size, again, outputs, [&](auto& v) __attribute__((always_inline)) {
          turn(v);
          v[0] += v[3];
        });
  } else {
    for_lanes<T>(
        size, inputs, outputs, [&](auto& v) __attribute__((always_inline)) { turn(v); });
  }
}

/// Given dy, dx = norm'(dy) at x, or dx += … when `accumulate`. dx may be dy when not accumulating.
template <class T>
void norm_backward(NormKind kind, const MatrixView<const T>& dy, const MatrixView<const T>& x,
                   const MatrixView<const T>& statistics, const T* gamma, const MatrixView<T>& dx, bool accumulate) {
  for (Index i = 0; i < x.rows; ++i)
    if (kind == NormKind::layer_norm)
      norm_row_backward<NormKind::layer_norm>(dy.row(i), x.row(i), x.cols, statistics.row(i), gamma, dx.row(i),
                                              accumulate);
    else
      norm_row_backward<NormKind::rms_norm>(dy.row(i), x.row(i), x.cols, statistics.row(i), gamma, dx.row(i),
                                            accumulate);
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
