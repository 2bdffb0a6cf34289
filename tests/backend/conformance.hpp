// SPDX-License-Identifier: Apache-2.0
// What every backend has to get right, stated once: the operations against naive references in float64, on awkward
// shapes. The headers here (linear.hpp, low_rank.hpp, …) define test cases over a backend B; what applies them:
//   *_test.cpp here                   the CPU's backends
//   ../cuda/conformance_*_test.cpp    the CUDA backend in each of its types, on the host; or on a GPU, compiled by nvcc
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "backend/reachable.hpp"
#include "backend/reference.hpp"
#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::tests {

// --- backends --------------------------------------------------------------------------------------------------------

/// Whether it computes in memory of its own.
template <class B>
inline constexpr bool on_device = requires(const B& backend) {
  backend.context();
};
/// Whether floats lose bits before they are multiplied; such a backend of the tests says so.
template <class B>
inline constexpr bool rounds_operands = requires {
  requires B::rounds_operands;
};

// --- what rounding may cost ------------------------------------------------------------------------------------------

template <class B>
constexpr double by_type(double float64, double float32, double bfloat16, double float16) {
  using T = typename B::Element;
  return std::is_same_v<T, double>  ? float64
         : std::is_same_v<T, float> ? float32
         : std::is_same_v<T, Bf16>  ? bfloat16
                                    : float16;
}

/// What rounding may cost: a share of the largest entry.
template <class B>
inline constexpr double tolerance = by_type<B>(1e-12, 4e-6, 4e-3, 5e-4);
/// Of products in float32: a tensor core adds with fewer bits than a float has, and does not round to nearest.
#if defined(FEDLORA_CUDA_COMPILED) && !defined(FEDLORA_CUDA_ON_HOST)
inline constexpr double float32_product = 2e-5;
#else
inline constexpr double float32_product = 4e-6;
#endif
/// The same where products of matrices are taken, of which some have rounded results for operands.
template <class B>
inline constexpr double product_tolerance = rounds_operands<B> ? 4e-3 : by_type<B>(1e-12, float32_product, 8e-3, 1e-3);
/// The same of sums that are kept in `Scalar`, of operands that `Element` holds.
template <class B>
inline constexpr double sum_tolerance = by_type<B>(1e-12, 4e-6, 4e-6, 4e-6);
/// The same where the reference is a difference quotient.
template <class B>
inline constexpr double slope_tolerance = by_type<B>(1e-8, 2e-5, 4e-3, 5e-4);
template <class B>
inline constexpr double product_slope_tolerance = rounds_operands<B> ? 4e-3 : by_type<B>(1e-8, 2e-5, 8e-3, 1e-3);
/// Gradients of losses are this many times as large.
template <class B>
inline constexpr double loss_scale = std::is_same_v<typename B::Element, Half> ? 4096.0 : 1.0;

// --- numbers and sizes -----------------------------------------------------------------------------------------------

template <class T>
T element_of(double value) {
  if constexpr (std::is_floating_point_v<T>)
    return static_cast<T>(value);
  else
    return T(static_cast<float>(value));
}

template <class T>
double number_of(T value) {
  if constexpr (std::is_floating_point_v<T>)
    return static_cast<double>(value);
  else
    return static_cast<double>(static_cast<float>(value));
}

/// The nearest numbers that `Element` holds.
template <class B>
Values rounded(Values values) {
  for (double& value : values.data) value = number_of(element_of<typename B::Element>(value));
  return values;
}

/// Normal numbers that `Element` holds exactly, so that the reference sees the same ones.
template <class B>
Values random_for(Index rows, Index cols, std::uint64_t seed, double scale = 1.0) {
  return rounded<B>(random_values(rows, cols, seed, scale));
}

/// All of them; or, where a sanitizer watches kernels whose threads take turns on the host, about a third, with the
/// first and the last.
template <class T>
std::vector<T> sizes(std::initializer_list<T> all) {
  std::vector<T> taken;
  std::size_t at = 0;
  for (const T& size : all) {
    if (!slow_device || at % 3 == 0 || at + 1 == all.size()) taken.push_back(size);
    ++at;
  }
  return taken;
}

// --- matrices --------------------------------------------------------------------------------------------------------

/// How matrices lie in memory.
enum class Layout {
  odd,      ///< at an odd address, with a short gap after each row
  operand,  ///< as a runner's `operand` lies: rows on multiples of 16 bytes with spare columns behind them
  part,     ///< as the first columns of such a matrix: what stands behind the rows is somebody else's
};

/// The layout of the matrices that are made from now on.
inline Layout& layout() {
  static Layout now = Layout::odd;
  return now;
}

/// Runs a test in every layout that makes a difference to B.
template <class B, class Body>
void in_every_layout(Body&& body) {
  for (const Layout each : {Layout::odd, Layout::operand, Layout::part}) {
    if (each != Layout::odd && !on_device<B>) continue;
    layout() = each;
    const int lies = static_cast<int>(each);
    CAPTURE(lies);
    body();
  }
  layout() = Layout::odd;
}

/// A matrix as a backend gets it: rows with a gap after them, between sentinels.
template <class T>
class Guarded {
 public:
  /// An output: full of NaN, which must never be read.
  Guarded(Index rows, Index cols)
      : rows_(rows),
        cols_(cols),
        margin_(layout() == Layout::odd ? 37 : 64),
        stride_(layout() == Layout::odd ? cols + 3 : (cols + 48 + 15) / 16 * 16),
        spare_(layout() == Layout::operand ? 48 : 0),
        memory_(static_cast<std::size_t>(2 * margin_ + rows * stride_)) {
    std::fill_n(memory_.data(), memory_.size(), sentinel());
    for (Index i = 0; i < rows; ++i)
      std::fill_n(view().row(i), cols, element_of<T>(std::numeric_limits<double>::quiet_NaN()));
  }
  explicit Guarded(const Values& values) : Guarded(values.rows, values.cols) {
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < cols_; ++j) view()(i, j) = element_of<T>(values(i, j));
  }

  MatrixView<T> view() { return with_spare(MatrixView<T>(row(), rows_, cols_, stride_)); }
  MatrixView<const T> in() const {
    return with_spare(MatrixView<const T>(memory_.data() + margin_, rows_, cols_, stride_));
  }
  T* row() { return memory_.data() + margin_; }

  Values values() const {
    wait_for_device();
    Values result(rows_, cols_);
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < cols_; ++j) result(i, j) = number_of(in()(i, j));
    return result;
  }

  /// Whether nothing was written beside the matrix and its spare columns.
  bool intact() const {
    wait_for_device();
    const T expected = sentinel();
    const auto size = static_cast<Index>(memory_.size());
    for (Index at = 0; at < size; ++at) {
      const Index inside = at - margin_;
      if (inside >= 0 && inside < rows_ * stride_ && inside % stride_ < cols_ + spare_) continue;
      if (std::memcmp(memory_.data() + at, &expected, sizeof(T)) != 0) return false;
    }
    return true;
  }

 private:
  static T sentinel() { return element_of<T>(-7777.25); }

  template <class U>
  MatrixView<U> with_spare(MatrixView<U> matrix) const {
    matrix.spare_cols = spare_;
    return matrix;
  }

  Index rows_, cols_, margin_, stride_, spare_;
  Reachable<T> memory_;
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

// --- runners ---------------------------------------------------------------------------------------------------------

/// A backend whose memory is checked at the end.
template <class B>
struct CheckedBackend {
  B backend{};

  CheckedBackend() = default;
  CheckedBackend(const CheckedBackend&) = delete;
  CheckedBackend& operator=(const CheckedBackend&) = delete;
  ~CheckedBackend() {
    if constexpr (on_device<B>) CHECK_NOTHROW(backend.context()->memory.check());
  }
};

/// A runner of B, on the thread that makes it.
template <class B>
class Worker : private CheckedBackend<B>, public B::Runner {
 public:
  Worker() : B::Runner(this->backend) {}

  /// A frozen matrix with these values, from stored floats.
  FrozenMatrix frozen(const Values& values) const {
    auto stored = std::make_shared<std::vector<float>>(values.data.begin(), values.data.end());
    const auto bytes = std::as_bytes(std::span<const float>(*stored));
    return this->backend.adopt(Dtype::f32, values.rows, values.cols, bytes, stored, "test");
  }

 private:
  [[no_unique_address]] typename B::ThreadScope scope_{};
};

}  // namespace fedlora::tests
