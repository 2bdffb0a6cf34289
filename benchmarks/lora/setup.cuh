// SPDX-License-Identifier: Apache-2.0
// What a variant is given to work with, and the device memory that the data lies in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/half.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"
#include "layers.hpp"

namespace fedlora::benchmarks {

struct Setup {
  cuda::Stream stream{};
  cuda::DeviceMemory memory;
  cuda::FloatMath math = cuda::FloatMath::tf32;  ///< how floats are multiplied
  std::size_t l2_bytes = 0;
  double warm_up_seconds = 0.2;
  Index fewest_passes = 20;  ///< of one measurement
};

/// Every element: scale · random_values. A thread has four of a row.
template <class T>
struct FillKernel {
  static constexpr int threads = 256;

  MatrixView<T> to;
  RandomKey key;
  float scale;

  FEDLORA_HOST_DEVICE Index across() const { return cuda::divide_up<Index>(to.cols, 4); }
  int shared_bytes() const { return 0; }
  cuda::Grid grid() const { return {cuda::divide_up<Index>(to.rows * across(), threads), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index at = block.x() * threads + block.thread();
    const Index i = at / across();
    const Index j = (at - i * across()) * 4;
    if (i >= to.rows) return;
    float values[4];
    random_values(key, i, j, values);
    for (int e = 0; e < 4; ++e)
      if (j + e < to.cols) to.data[i * to.stride + j + e] = T(scale * values[e]);
  }
};

/// How two matrices differ.
struct Difference {
  float most = 0;     ///< the largest |a - b|
  float largest = 0;  ///< the largest |b|
  int bits = 0;       ///< elements whose bits are not the same
  int numbers = 0;    ///< elements that are finite in both
};

/// Each thread's share of a comparison.
template <class T>
struct CompareKernel {
  static constexpr int threads = 128;
  static constexpr Index most_blocks = 512;

  MatrixView<const T> a, b;
  Index blocks = 0;
  Difference* to = nullptr;  ///< (blocks · threads)

  int shared_bytes() const { return 0; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index thread = block.x() * threads + block.thread();
    Difference difference;
    for (Index at = thread; at < a.rows * a.cols; at += blocks * threads) {
      const Index i = at / a.cols;
      const Index j = at - i * a.cols;
      const T left = a.data[i * a.stride + j];
      const T right = b.data[i * b.stride + j];
      const float apart = size_of(static_cast<float>(left) - static_cast<float>(right));
      const float size = size_of(static_cast<float>(right));
      if (apart > difference.most) difference.most = apart;
      if (size > difference.largest) difference.largest = size;
      if (!same_bits(left, right)) ++difference.bits;
      if (apart <= 3e38f) ++difference.numbers;  // neither infinite nor a NaN
    }
    to[thread] = difference;
  }

 private:
  FEDLORA_DEVICE static float size_of(float value) { return value < 0 ? -value : value; }
  FEDLORA_DEVICE static bool same_bits(const T& left, const T& right) {
    if constexpr (std::is_same_v<T, float>)
      return __builtin_bit_cast(std::uint32_t, left) == __builtin_bit_cast(std::uint32_t, right);
    else
      return left.bits == right.bits;
  }
};

/// Device memory for as long as it lives. See `make_layers`.
class DevicePlace {
 public:
  explicit DevicePlace(const Setup& setup) : arena_(setup.memory, setup.stream, "the data of a bench") {}

  template <class T>
  MatrixView<T> matrix(Index rows, Index cols, Index room) {
    return arena_.matrix<T>(rows, cols, room);
  }

  template <class T>
  void fill(MatrixView<T> matrix, RandomKey key, float scale) {
    const FillKernel<T> kernel{matrix, key, scale};
    cuda::launch_own(arena_.stream(), kernel.grid(), kernel);
  }

  const std::int32_t* row_numbers(Index rows) {
    if (static_cast<Index>(numbers_.size()) < rows) {
      for (Index i = static_cast<Index>(numbers_.size()); i < rows; ++i)
        numbers_.push_back(static_cast<std::int32_t>(i));
      on_device_ = arena_.take<std::int32_t>(rows);
      cuda::upload<std::int32_t>(numbers_, on_device_, arena_.stream());
    }
    return on_device_;
  }

  template <class T>
  std::vector<Result<T>> copy(const std::vector<Result<T>>& results) {
    std::vector<Result<T>> copies;
    for (const Result<T>& result : results) copies.push_back({copy(result.values), copy(result.gradient)});
    return copies;
  }

  /// How `a` differs from `b`. Waits.
  template <class T>
  Difference compare(const Result<T>& a, const Result<T>& b) {
    return a.values.empty() ? compare<float>(a.gradient, b.gradient) : compare<T>(a.values, b.values);
  }

 private:
  template <class T>
  MatrixView<T> copy(MatrixView<T> from) {
    if (from.empty()) return {};
    const MatrixView<T> to = arena_.matrix<T>(from.rows, from.cols);
    cuda::copy<T>(from, to, arena_.stream());
    return to;
  }

  template <class T>
  Difference compare(MatrixView<const T> a, MatrixView<const T> b) {
    using Kernel = CompareKernel<T>;
    const Index blocks = std::min(Kernel::most_blocks, cuda::divide_up<Index>(a.size(), Kernel::threads));
    if (shares_ == nullptr) shares_ = arena_.take<Difference>(Kernel::most_blocks * Kernel::threads);
    cuda::launch_own(arena_.stream(), {blocks, 1}, Kernel{a, b, blocks, shares_});
    std::vector<Difference> shares(static_cast<std::size_t>(blocks * Kernel::threads));
    cuda::download<Difference>(shares_, shares, arena_.stream());
    Difference all;
    for (const Difference& share : shares) {
      all.most = std::max(all.most, share.most);
      all.largest = std::max(all.largest, share.largest);
      all.bits += share.bits;
      all.numbers += share.numbers;
    }
    return all;
  }

  cuda::Arena arena_;
  std::vector<std::int32_t> numbers_;
  std::int32_t* on_device_ = nullptr;
  Difference* shares_ = nullptr;
};

}  // namespace fedlora::benchmarks
