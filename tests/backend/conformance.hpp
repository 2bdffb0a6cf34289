// SPDX-License-Identifier: Apache-2.0
// What every backend has to get right, stated once: the operations against naive references in float64, on awkward
// shapes. A new backend joins by one line in `Backends`.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "backend/reference.hpp"
#include "fedlora/backend/cpu.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"
#if defined(FEDLORA_HAVE_ONEDNN)
#include "fedlora/backend/cpu/gemm_onednn.hpp"
#endif

namespace fedlora::tests {

/// Every backend that is built.
using Backends = std::tuple<CpuBackend<double>, CpuBackend<float>
#if defined(FEDLORA_HAVE_ONEDNN)
                            ,
                            CpuBackend<float, OneDnnGemm>
#endif
                            >;

/// What rounding may cost: a share of the largest entry.
template <class B>
inline constexpr double tolerance = sizeof(typename B::Scalar) == 8 ? 1e-12 : 4e-6;
/// The same where the reference is a difference quotient.
template <class B>
inline constexpr double slope_tolerance = sizeof(typename B::Scalar) == 8 ? 1e-8 : 2e-5;

/// A matrix as a backend gets it: rows with a gap after them, at an odd address, between sentinels.
template <class T>
class Guarded {
 public:
  /// An output: full of NaN, which must never be read.
  Guarded(Index rows, Index cols, Index gap = 3)
      : rows_(rows), cols_(cols), stride_(cols + gap), memory_(static_cast<std::size_t>(2 * margin + rows * stride_)) {
    std::fill(memory_.begin(), memory_.end(), sentinel());
    for (Index i = 0; i < rows; ++i) std::fill_n(view().row(i), cols, std::numeric_limits<T>::quiet_NaN());
  }
  explicit Guarded(const Values& values, Index gap = 3) : Guarded(values.rows, values.cols, gap) {
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < cols_; ++j) view()(i, j) = static_cast<T>(values(i, j));
  }

  MatrixView<T> view() { return {memory_.data() + margin, rows_, cols_, stride_}; }
  MatrixView<const T> in() const { return {memory_.data() + margin, rows_, cols_, stride_}; }
  T* row() { return memory_.data() + margin; }

  Values values() const {
    Values result(rows_, cols_);
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < cols_; ++j) result(i, j) = static_cast<double>(in()(i, j));
    return result;
  }

  /// Whether nothing was written beside the matrix.
  bool intact() const {
    const Index size = static_cast<Index>(memory_.size());
    for (Index at = 0; at < size; ++at) {
      const Index inside = at - margin;
      if (inside >= 0 && inside < rows_ * stride_ && inside % stride_ < cols_) continue;
      if (memory_[static_cast<std::size_t>(at)] != sentinel()) return false;
    }
    return true;
  }

 private:
  static constexpr Index margin = 37;
  static T sentinel() { return static_cast<T>(-7777.25); }

  Index rows_, cols_, stride_;
  std::vector<T> memory_;
};

template <class T>
void check_close(const Guarded<T>& got, const Values& expected, double bound, const std::string& what) {
  const double error = error_of(got.values(), expected);
  CHECK_MESSAGE(error <= bound, what << " is off by " << error);
  CHECK_MESSAGE(got.intact(), what << " was written beside");
}

/// Checks a gradient along random directions: Σ gradient ∘ d against (f(x + h d) - f(x - h d)) / 2h, in double. Any
/// wrong entry shows in every direction.
inline void check_slopes(const std::function<double(const std::vector<Values>&)>& f, const std::vector<Values>& x,
                         const std::vector<Values>& gradient, double bound, const std::string& what) {
  double size = 0;
  for (const Values& g : gradient)
    for (const double value : g.data) size += value * value;
  REQUIRE(std::isfinite(size));
  size = std::sqrt(size);
  for (std::uint64_t direction = 0; direction < 3; ++direction) {
    constexpr double h = 1e-5;
    std::vector<Values> above = x;
    std::vector<Values> below = x;
    double expected = 0;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const Values d = random_values(x[t].rows, x[t].cols, 1000 + 10 * direction + t);
      above[t] = sum_of(x[t], d, h);
      below[t] = sum_of(x[t], d, -h);
      expected += dot(gradient[t], d);
    }
    const double slope = (f(above) - f(below)) / (2 * h);
    CHECK_MESSAGE(std::abs(slope - expected) <= bound * (size + std::abs(slope)) + 1e-12,
                  what << ": slope " << slope << ", gradient says " << expected);
  }
}

/// A frozen matrix of backend B with these values, from stored floats.
template <class B>
FrozenMatrix frozen(const Values& values) {
  auto stored = std::make_shared<std::vector<float>>(values.data.begin(), values.data.end());
  return B::adopt(Dtype::f32, values.rows, values.cols, std::as_bytes(std::span<const float>(*stored)), stored, "test");
}

}  // namespace fedlora::tests
