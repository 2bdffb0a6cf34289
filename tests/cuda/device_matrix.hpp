// SPDX-License-Identifier: Apache-2.0
// Matrices as kernels get them, in every type: outputs full of NaN, sentinels on all sides, rows that may or may not be
// read by vectors.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "backend/reachable.hpp"
#include "backend/reference.hpp"
#include "fedlora/backend/cuda/tile.cuh"

namespace fedlora::tests {

#if defined(FEDLORA_CUDA_COMPILED) && !defined(FEDLORA_CUDA_ON_HOST)
namespace cuda {
using namespace ::fedlora::cuda;

/// What these tests call a stream: on the host a seed, on a GPU the one stream that all of them share.
struct Stream {
  std::uint64_t seed = 0;
  operator ::fedlora::cuda::Stream() const { return nullptr; }
};
}  // namespace cuda
#endif

#if defined(FEDLORA_CUDA_COMPILED) && !defined(FEDLORA_CUDA_ON_HOST)
inline constexpr double float32_tolerance =
    1e-5;  // a tensor core's sums have fewer bits, and are not rounded to nearest
#else
inline constexpr double float32_tolerance = 2e-6;
#endif

/// A type of elements and a way to multiply them.
template <class T_, cuda::FloatMath Math>
struct Numbers {
  using T = T_;
  static constexpr cuda::FloatMath math = Math;
  /// What rounding may cost, as a share of the largest entry: of operands for tf32, of results for 16 bits.
  static constexpr double tolerance = std::is_same_v<T, Bf16>         ? 6e-3
                                      : std::is_same_v<T, Half>       ? 1e-3
                                      : Math == cuda::FloatMath::tf32 ? 1e-3
                                                                      : float32_tolerance;
};

/// What rounding to T may cost where a result is no long sum, as a share of the largest entry.
template <class T>
constexpr double rounding_bound(double in_float) {
  return std::is_same_v<T, Bf16> ? 4e-3 : std::is_same_v<T, Half> ? 5e-4 : in_float;
}

inline constexpr float nan_value = std::numeric_limits<float>::quiet_NaN(),
                       infinity = std::numeric_limits<float>::infinity();

#define FEDLORA_TEST_NUMBERS                                                       \
  Numbers<float, cuda::FloatMath::tf32>, Numbers<float, cuda::FloatMath::float32>, \
      Numbers<Bf16, cuda::FloatMath::tf32>, Numbers<Half, cuda::FloatMath::tf32>

/// How a matrix lies in memory.
enum class Rows { aligned, odd };

template <class T>
class DeviceMatrix {
 public:
  /// An output: full of NaN, which must never be read.
  DeviceMatrix(Index rows, Index cols, Rows kind)
      : rows_(rows),
        cols_(cols),
        stride_(kind == Rows::aligned ? (cols + 15) / 16 * 16 + 16 : cols + 3),
        size_(2 * margin + rows * stride_),
        memory_(static_cast<std::size_t>(size_ + 64)) {
    begin_ = memory_.data();
    while (reinterpret_cast<std::uintptr_t>(begin_) % 64 != 0) ++begin_;
    if (kind == Rows::odd) begin_ += 1;
    for (Index at = 0; at < size_; ++at) begin_[at] = sentinel();
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j) view()(i, j) = T(std::numeric_limits<float>::quiet_NaN());
  }
  DeviceMatrix(const Values& values, Rows kind) : DeviceMatrix(values.rows, values.cols, kind) {
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < cols_; ++j) view()(i, j) = T(static_cast<float>(values(i, j)));
  }

  MatrixView<T> view() { return {begin_ + margin, rows_, cols_, stride_}; }
  MatrixView<const T> in() const { return {begin_ + margin, rows_, cols_, stride_}; }

  Values values() const {
    wait_for_device();
    Values result(rows_, cols_);
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < cols_; ++j) result(i, j) = static_cast<double>(static_cast<float>(in()(i, j)));
    return result;
  }

  /// Whether nothing was written beside the matrix.
  bool intact() const {
    wait_for_device();
    const T expected = sentinel();
    for (Index at = 0; at < size_; ++at) {
      const Index inside = at - margin;
      if (inside >= 0 && inside < rows_ * stride_ && inside % stride_ < cols_) continue;
      if (std::memcmp(&begin_[at], &expected, sizeof(T)) != 0) return false;
    }
    return true;
  }

  /// Whether both hold the same bits, gaps included.
  bool same_bits(const DeviceMatrix& other) const {
    wait_for_device();
    return std::memcmp(begin_, other.begin_, static_cast<std::size_t>(size_) * sizeof(T)) == 0;
  }

 private:
  static constexpr Index margin = 48;
  static T sentinel() { return T(-7776.0f); }  // exact in all types

  Index rows_, cols_, stride_, size_;
  Reachable<T> memory_;
  T* begin_ = nullptr;
};

/// Random numbers that T holds exactly.
template <class T>
Values random_in(Index rows, Index cols, std::uint64_t seed, double scale = 1.0) {
  Values values = random_values(rows, cols, seed, scale);
  for (double& value : values.data) value = static_cast<double>(static_cast<float>(T(static_cast<float>(value))));
  return values;
}

template <class T>
void check_matrix(const DeviceMatrix<T>& got, const Values& expected, double bound, const std::string& what) {
  const double error = error_of(got.values(), expected);
  CHECK_MESSAGE(error <= bound, what << " is off by " << error);
  CHECK_MESSAGE(got.intact(), what << " was written beside");
}

/// Working memory between sentinels, full of NaN.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : bytes_(bytes), memory_(static_cast<Index>(1), floats(), Rows::aligned) {}
  std::span<std::byte> bytes() { return {reinterpret_cast<std::byte*>(memory_.view().data), bytes_}; }
  bool intact() const { return memory_.intact(); }

 private:
  Index floats() const { return static_cast<Index>((bytes_ + 3) / 4); }

  std::size_t bytes_;
  DeviceMatrix<float> memory_;
};

/// The numbers that clients gave to the rows of a batch: in no simple order.
inline std::vector<std::int32_t> row_numbers(Index rows) {
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(rows));
  for (Index i = 0; i < rows; ++i) numbers[static_cast<std::size_t>(i)] = static_cast<std::int32_t>((i * 7 + 3) % 91);
  return numbers;
}

/// mask ∘ x over the rows [begin, end), scaled; the other rows are left out.
inline Values dropped(const Values& x, const Dropout& dropout, const std::vector<std::int32_t>& numbers, Index begin,
                      Index end) {
  Values result(end - begin, x.cols);
  for (Index i = begin; i < end; ++i)
    for (Index j = 0; j < x.cols; ++j)
      result(i - begin, j) = x(i, j) * mask_of(dropout, numbers[static_cast<std::size_t>(i)], j);
  return result;
}

inline Values rows_of(const Values& x, Index begin, Index end) {
  Values result(end - begin, x.cols);
  for (Index i = begin; i < end; ++i)
    for (Index j = 0; j < x.cols; ++j) result(i - begin, j) = x(i, j);
  return result;
}

inline Values transposed(const Values& x) {
  Values result(x.cols, x.rows);
  for (Index i = 0; i < x.rows; ++i)
    for (Index j = 0; j < x.cols; ++j) result(j, i) = x(i, j);
  return result;
}

}  // namespace fedlora::tests
