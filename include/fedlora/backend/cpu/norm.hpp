// SPDX-License-Identifier: Apache-2.0
// LayerNorm (Ba, Kiros, Hinton 2016, arXiv 1607.06450) and RMSNorm (Zhang, Sennrich 2019, arXiv 1910.07467), row by
// row, with the residual sum in front of them.
#pragma once

#include <cmath>
#include <cstdint>

#include "fedlora/backend/cpu/dropout.hpp"
#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// The sum of f(x) over a row; `f` maps lanes in place.
template <class T, class F>
T row_sum(const T* x, Index size, F&& f) {
  Lanes<T> total{};
  Lanes<T> values;
  Index j = 0;
  for (; j + lane_count<T> <= size; j += lane_count<T>) {
    load(values, x + j);
    f(values);
    total += values;
  }
  if (j < size) {
    load_first(values, x + j, size - j);
    f(values);
    const Lanes<T> zero{};
    Lanes<T> place;
    count_up(place);
    total += place < static_cast<T>(size - j) ? values : zero;  // what f made of the padding does not count
  }
  return sum_lanes(total);
}

/// One row of norm forward: writes y and the two statistics {mean (0 for RMSNorm), 1 / deviation}.
template <NormKind Kind, class T>
void norm_row(const T* x, Index size, const T* gamma, const T* beta, T eps, T* y, T* statistics) {
  T mean = T(0);
  if constexpr (Kind == NormKind::layer_norm) mean = row_sum(x, size, [](Lanes<T>&) {}) / static_cast<T>(size);
  const T square = row_sum(x, size, [&](Lanes<T>& v) {
    v -= mean;
    v *= v;
  });
  const T inverse = T(1) / std::sqrt(square / static_cast<T>(size) + eps);
  statistics[0] = mean;
  statistics[1] = inverse;
  const T* const inputs[3] = {x, gamma, beta};
  T* const outputs[3] = {y, nullptr, nullptr};
  for_lanes<T>(size, inputs, outputs, [&](Lanes<T>(&v)[3], Index) {
    v[0] = (v[0] - mean) * inverse * v[1];
    if constexpr (Kind == NormKind::layer_norm) v[0] += v[2];
  });
}

/// y = norm(x); statistics is (rows, 2). `beta` is not read for RMSNorm. y may be x.
template <NormKind Kind, class T>
void norm_forward(MatrixView<const T> x, const T* gamma, const T* beta, T eps, MatrixView<T> y,
                  MatrixView<T> statistics) {
  for (Index i = 0; i < x.rows; ++i) norm_row<Kind>(x.row(i), x.cols, gamma, beta, eps, y.row(i), statistics.row(i));
}

/// x ← dropout(x + bias) + residual, in place. `bias` may be null; `row_numbers` address the dropout.
template <class T>
void residual_row(T* x, Index size, const T* bias, const T* residual, const Dropout& dropout, std::int32_t row_number) {
  if (dropout) {
    if (bias != nullptr)
      for (Index j = 0; j < size; ++j) x[j] += bias[j];
    dropout_row(dropout, static_cast<std::uint32_t>(row_number), 0, size, x, x);
    for (Index j = 0; j < size; ++j) x[j] += residual[j];
  } else if (bias != nullptr) {
    for (Index j = 0; j < size; ++j) x[j] += bias[j] + residual[j];
  } else {
    for (Index j = 0; j < size; ++j) x[j] += residual[j];
  }
}

/// Given dy, dx = norm'(dy) at x, or dx += … when `accumulate`. dx may be dy when not accumulating.
template <NormKind Kind, class T>
void norm_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> statistics, const T* gamma,
                   MatrixView<T> dx, bool accumulate) {
  const Index size = x.cols;
  for (Index i = 0; i < x.rows; ++i) {
    const T mean = statistics(i, 0);
    const T inverse = statistics(i, 1);
    // With x̂ = (x - mean) / deviation and g = gamma ∘ dy:  dx = (g - mean(g) - x̂ mean(g ∘ x̂)) / deviation.
    Lanes<T> sum_g{};
    Lanes<T> sum_gx{};
    const T* const inputs[3] = {dy.row(i), x.row(i), gamma};
    T* const nowhere[3] = {nullptr, nullptr, nullptr};
    for_lanes<T>(size, inputs, nowhere, [&](Lanes<T>(&v)[3], Index) {
      const Lanes<T> g = v[0] * v[2];  // gamma is zero in the padding
      sum_g += g;
      sum_gx += g * (v[1] - mean);
    });
    const T mean_g = Kind == NormKind::layer_norm ? sum_lanes(sum_g) / static_cast<T>(size) : T(0);
    const T slope = sum_lanes(sum_gx) * inverse * inverse / static_cast<T>(size);
    T* out = dx.row(i);
    const T* const again[4] = {dy.row(i), x.row(i), gamma, accumulate ? out : nullptr};
    T* const outputs[4] = {out, nullptr, nullptr, nullptr};
    for_lanes<T>(size, again, outputs, [&](Lanes<T>(&v)[4], Index) {
      const Lanes<T> result = (v[0] * v[2] - mean_g - (v[1] - mean) * slope) * inverse;
      v[0] = accumulate ? v[3] + result : result;
    });
  }
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
