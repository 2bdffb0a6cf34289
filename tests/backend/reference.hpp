// SPDX-License-Identifier: Apache-2.0
// The matrices of the references in float64, and what is done with them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::tests {

/// A matrix of the reference, in double.
struct Values {
  Index rows = 0;
  Index cols = 0;
  std::vector<double> data;

  Values() = default;
  Values(Index rows_, Index cols_) : rows(rows_), cols(cols_), data(static_cast<std::size_t>(rows_ * cols_), 0.0) {}
  double& operator()(Index i, Index j) { return data[static_cast<std::size_t>(i * cols + j)]; }
  double operator()(Index i, Index j) const { return data[static_cast<std::size_t>(i * cols + j)]; }
};

/// Normal numbers that float holds exactly, so that every backend sees the same ones.
inline Values random_values(Index rows, Index cols, std::uint64_t seed, double scale = 1.0) {
  Values values(rows, cols);
  RandomSequence draws(derive_key(seed, Purpose::user, rows, cols));
  for (double& value : values.data) value = static_cast<double>(static_cast<float>(scale * draws.normal()));
  return values;
}

inline Values sum_of(const Values& a, const Values& b, double factor = 1.0) {
  Values result = a;
  for (std::size_t i = 0; i < a.data.size(); ++i) result.data[i] += factor * b.data[i];
  return result;
}

inline double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.data.size(); ++i) sum += a.data[i] * b.data[i];
  return sum;
}

inline double largest(const Values& a) {
  double result = 0;
  for (const double value : a.data) result = std::max(result, std::abs(value));
  return result;
}

/// Largest |got - expected| over the largest |expected|; infinite when something is not a number.
inline double error_of(const Values& got, const Values& expected) {
  if (got.rows != expected.rows || got.cols != expected.cols) return std::numeric_limits<double>::infinity();
  double difference = 0;
  for (std::size_t i = 0; i < got.data.size(); ++i) {
    const double here = std::abs(got.data[i] - expected.data[i]);
    if (!(here <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, here);
  }
  const double size = largest(expected);
  return size > 0 ? difference / size : difference;
}

/// The documented mask of dropout, times its scale.
inline double mask_of(const Dropout& dropout, std::int32_t row, Index channel, std::uint32_t plane = 0) {
  if (!dropout) return 1.0;
  const RandomWords words =
      philox<7>({static_cast<std::uint32_t>(channel / 4), static_cast<std::uint32_t>(row), plane, 0}, dropout.key);
  return words[static_cast<std::size_t>(channel % 4)] >= dropout.threshold ? static_cast<double>(dropout.scale) : 0.0;
}

/// a bᵀ, times `factor`.
inline Values times_transposed(const Values& a, const Values& b, double factor = 1.0) {
  Values result(a.rows, b.rows);
  for (Index i = 0; i < a.rows; ++i)
    for (Index j = 0; j < b.rows; ++j) {
      double sum = 0;
      for (Index k = 0; k < a.cols; ++k) sum += a(i, k) * b(j, k);
      result(i, j) = factor * sum;
    }
  return result;
}

}  // namespace fedlora::tests
