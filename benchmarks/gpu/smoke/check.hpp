// SPDX-License-Identifier: Apache-2.0
// What the cases of fedlora-gpu-smoke share: matrices in device memory between sentinels, outputs that begin as NaN,
// and the comparison with a reference in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/half.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::smoke {

/// How matrices lie in memory: rows that begin on multiples of 16 bytes, or not.
enum class Layout { vectors, odd };

/// The sizes of one set of cases.
struct Shape {
  std::string name;
  Layout layout = Layout::vectors;
  std::vector<Index> lengths;  ///< of the packed sequences
  Index hidden = 0, wide = 0, rank = 0;
  Index heads = 0, kv_heads = 0, head_dim = 0;
  Index vocabulary = 0;
  Index logit_rows = 0;
  Index parameters = 0;
  std::vector<Index> norm_cols;

  Index rows() const {
    Index sum = 0;
    for (const Index length : lengths) sum += length;
    return sum;
  }
};

/// Plain memory of the device, and a stream. The memory is gone before the stream.
struct Gpu {
  cuda::OwnedStream owned;
  cuda::DeviceMemory memory;
  cuda::Stream stream() const { return owned.get(); }
};

/// A matrix of the host.
struct Values {
  Index rows = 0, cols = 0;
  std::vector<double> data;

  Values() = default;
  Values(Index rows_, Index cols_) : rows(rows_), cols(cols_), data(static_cast<std::size_t>(rows_ * cols_)) {}
  double& operator()(Index i, Index j) { return data[static_cast<std::size_t>(i * cols + j)]; }
  double operator()(Index i, Index j) const { return data[static_cast<std::size_t>(i * cols + j)]; }
};

/// Uniform in [-scale, scale), as T holds them: never the same for two seeds.
template <class T>
Values random(Index rows, Index cols, std::uint64_t seed, double scale = 1.0) {
  Values values(rows, cols);
  std::uint64_t at = seed << 32;
  for (double& value : values.data) {
    const double unit = static_cast<double>(mix(0x536D6F6B65ull, at++) >> 11) * 0x1.0p-52 - 1.0;
    value = static_cast<double>(static_cast<float>(T(static_cast<float>(scale * unit))));
  }
  return values;
}

/// Numbers of rows as a client might give them, in no simple order.
inline std::vector<std::int32_t> numbers(Index count, Index below, Index first = 3) {
  std::vector<std::int32_t> result(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i)
    result[static_cast<std::size_t>(i)] = static_cast<std::int32_t>((i * 7 + first) % below);
  return result;
}

/// What dropout multiplies an element by.
inline double mask(const Dropout& dropout, std::int32_t row, Index channel, Index plane = 0) {
  if (!dropout) return 1.0;
  const RandomWords words = philox<7>(
      {static_cast<std::uint32_t>(channel / 4), static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(plane), 0},
      dropout.key);
  return words[static_cast<std::size_t>(channel % 4)] >= dropout.threshold ? static_cast<double>(dropout.scale) : 0.0;
}

/// Elements in device memory.
template <class U>
class Table {
 public:
  Table(const Gpu& gpu, std::vector<U> values)
      : values_(std::move(values)),
        stream_(gpu.stream()),
        buffer_(gpu.memory, values_.size() * sizeof(U), "a table", stream_) {
    cuda::upload<U>(values_, buffer_.as<U>(), stream_);
  }
  U* data() const { return buffer_.as<U>(); }
  const std::vector<U>& sent() const { return values_; }
  const U& operator[](Index i) const { return values_[static_cast<std::size_t>(i)]; }
  std::vector<U> get() const {
    std::vector<U> values(values_.size());
    cuda::download<U>(buffer_.as<U>(), values, stream_);
    return values;
  }

 private:
  std::vector<U> values_;
  cuda::Stream stream_;
  cuda::DeviceBuffer buffer_;
};

/// Working memory full of NaN.
inline cuda::DeviceBuffer workspace(const Gpu& gpu, std::size_t bytes) {
  const std::size_t words = bytes / 4 + 1;
  cuda::DeviceBuffer buffer(gpu.memory, words * 4, "workspace", gpu.stream());
  const std::vector<float> poison(words, std::numeric_limits<float>::quiet_NaN());
  cuda::upload<float>(poison, buffer.as<float>(), gpu.stream());
  return buffer;
}

/// A matrix in device memory, with sentinels around it and between its rows.
template <class U>
class Matrix {
 public:
  /// An output: full of NaN, as is the room behind its rows.
  Matrix(const Gpu& gpu, Index rows, Index cols, Layout layout, Index room = 0)
      : rows_(rows), cols_(cols), room_(room), stream_(gpu.stream()) {
    constexpr Index unit = 16 / static_cast<Index>(sizeof(U));
    stride_ = layout == Layout::vectors ? (cols + room + unit - 1) / unit * unit + unit : (cols + room + 3) | 1;
    begin_ = layout == Layout::vectors ? margin : margin + 1;
    sent_.assign(static_cast<std::size_t>(2 * margin + rows * stride_ + 1), sentinel());
    buffer_ = cuda::DeviceBuffer(gpu.memory, sent_.size() * sizeof(U), "a matrix", stream_);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols + room; ++j) at(sent_, i, j) = U(std::numeric_limits<float>::quiet_NaN());
    send();
  }
  Matrix(const Gpu& gpu, const Values& values, Layout layout, Index room = 0)
      : Matrix(gpu, values.rows, values.cols, layout, room) {
    set(values);
  }

  void set(const Values& values) {
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < cols_; ++j) at(sent_, i, j) = U(static_cast<float>(values(i, j)));
    send();
  }

  MatrixView<U> view() const {
    MatrixView<U> view(buffer_.template as<U>() + begin_, rows_, cols_, stride_);
    view.spare_cols = room_;
    return view;
  }
  MatrixView<const U> in() const { return view(); }
  U* data() const { return view().data; }
  /// `count` columns of the room behind the rows.
  MatrixView<U> behind(Index first, Index count) const { return {data() + cols_ + first, rows_, count, stride_}; }
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }

  /// Brings it back. Where something was written beside it: what; otherwise empty.
  std::string fetch() {
    got_.resize(sent_.size());
    cuda::download<U>(buffer_.template as<U>(), got_, stream_);
    for (Index k = 0; k < static_cast<Index>(sent_.size()); ++k) {
      const Index inside = k - begin_;
      if (inside >= 0 && inside < rows_ * stride_ && inside % stride_ < cols_ + room_) continue;
      if (!same(k)) return "element " + std::to_string(inside) + " from its beginning was written, beside it";
    }
    return {};
  }
  double got(Index i, Index j) const { return static_cast<double>(static_cast<float>(at(got_, i, j))); }
  bool unchanged(Index i, Index j) const { return same(begin_ + i * stride_ + j); }

 private:
  static constexpr Index margin = 64;
  static U sentinel() { return U(-7776.0f); }  // exact in all types

  template <class Elements>
  auto& at(Elements& elements, Index i, Index j) const {
    return elements[static_cast<std::size_t>(begin_ + i * stride_ + j)];
  }
  bool same(Index k) const {
    return std::memcmp(&got_[static_cast<std::size_t>(k)], &sent_[static_cast<std::size_t>(k)], sizeof(U)) == 0;
  }
  void send() { cuda::upload<U>(sent_, buffer_.template as<U>(), stream_); }

  Index rows_, cols_, room_, stride_ = 0, begin_ = 0;
  cuda::Stream stream_;
  std::vector<U> sent_, got_;
  cuda::DeviceBuffer buffer_;
};

/// All of `count`, or some of them where they are many.
inline std::vector<Index> some_of(Index count, Index most = 32) {
  std::vector<Index> chosen;
  if (count <= most + 16) {
    for (Index i = 0; i < count; ++i) chosen.push_back(i);
    return chosen;
  }
  for (Index i = 0; i < 3; ++i) chosen.push_back(i);
  for (Index i = 0; i < most - 6; ++i)
    chosen.push_back(3 +
                     static_cast<Index>(mix(7, static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(count - 6)));
  for (Index i = count - 3; i < count; ++i) chosen.push_back(i);
  return chosen;
}

/// What a case has found.
class Check {
 public:
  Check(const Shape& shape_, cuda::FloatMath math_) : shape(shape_), math(math_) {}

  const Shape& shape;
  cuda::FloatMath math;
  Gpu gpu;

  /// What rounding may cost in T, as a share of the largest entry: of results in 16 bits, of operands in tf32.
  template <class T>
  double tolerance() const {
    if constexpr (std::is_same_v<T, Bf16>) return 6e-3;
    if constexpr (std::is_same_v<T, Half>) return 1e-3;
    return math == cuda::FloatMath::tf32 ? 2e-3 : 1e-5;  // cuBLAS may cut operands off instead of rounding them
  }

  /// `got` against the reference: expected(i, values) writes row i's. The rows of `rows` are compared, all of `begin`
  /// to `end` must be numbers, and what is before and behind must be as it was sent.
  template <class U, class Expected>
  void rows(const std::string& what, Matrix<U>& got, double bound, Index begin, Index end,
            const std::vector<Index>& rows, const Expected& expected) {
    const std::string beside = got.fetch();
    if (!beside.empty()) return fail(what + ": " + beside);
    for (Index i = 0; i < got.rows(); ++i)
      for (Index j = 0; j < got.cols(); ++j) {
        if (i >= begin && i < end) {
          if (!std::isfinite(got.got(i, j)))
            return fail(what + place(i, j) + ": got " + text(got.got(i, j)) + ", not a number");
        } else if (!got.unchanged(i, j)) {
          return fail(what + place(i, j) + ": was changed, rows " + std::to_string(begin) + " to " +
                      std::to_string(end) + " alone should be");
        }
      }
    std::vector<std::vector<double>> all;
    double largest = 0;
    for (const Index i : rows) {
      all.emplace_back(static_cast<std::size_t>(got.cols()));
      expected(i, all.back().data());
      for (const double value : all.back()) largest = std::max(largest, std::abs(value));
    }
    if (!(largest > 0)) largest = 1;
    Index off = 0, compared = 0;
    std::string first;
    double most = 0, product = 0, square = 0;
    for (std::size_t k = 0; k < rows.size(); ++k)
      for (Index j = 0; j < got.cols(); ++j) {
        const double value = got.got(rows[k], j);
        const double should = all[k][static_cast<std::size_t>(j)];
        const double error = std::abs(value - should) / largest;
        ++compared;
        product += value * should;
        square += should * should;
        most = std::max(most, error);
        if (error <= bound) continue;
        if (off++ == 0) first = what + place(rows[k], j) + ": got " + text(value) + ", expected " + text(should);
      }
    note(what, most, bound);
    if (off > 0)
      fail(first + ", error " + text(most) + " of the largest (bound " + text(bound) + "), " + std::to_string(off) +
           " of " + std::to_string(compared) + " compared are off");
    // What rounding does to single entries evens out: a factor that is wrong by a hundredth shows in all of them together.
    const double factor = square > 0 ? product / square : 1;
    if (compared >= 64 && bound > 0 && std::abs(factor - 1) > largest_factor)
      fail(what + ": " + text(factor) + " times what is expected");
  }

  template <class U, class Expected>
  void matrix(const std::string& what, Matrix<U>& got, double bound, const Expected& expected) {
    rows(what, got, bound, 0, got.rows(), some_of(got.rows()), expected);
  }

  /// Numbers one by one: error over the larger of |expected| and `unit`.
  void value(const std::string& what, double got, double expected, double bound, double unit = 1e-30) {
    const double error = std::abs(got - expected) / std::max(std::abs(expected), unit);
    note(what, got == expected ? 0.0 : error, bound);
    if (got == expected || error <= bound) return;
    fail(what + ": got " + text(got) + ", expected " + text(expected));
  }

  bool passed() const { return failure_.empty(); }
  const std::string& failure() const { return failure_; }
  /// The check that came nearest to its bound.
  double error() const { return error_; }
  double bound() const { return bound_; }
  const std::string& nearest() const { return nearest_; }

 private:
  static constexpr double largest_factor = 3e-3;

  static std::string text(double value) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.7g", value);
    return buffer;
  }
  static std::string place(Index i, Index j) { return " (" + std::to_string(i) + ", " + std::to_string(j) + ")"; }

  void fail(const std::string& text) {
    if (failure_.empty()) failure_ = text;
  }
  void note(const std::string& what, double error, double bound) {
    const double share = bound > 0 ? error / bound : 0;
    if (share < share_) return;
    share_ = share;
    error_ = error;
    bound_ = bound;
    nearest_ = what;
  }

  std::string failure_, nearest_;
  double error_ = 0, bound_ = 0, share_ = 0;
};

}  // namespace fedlora::smoke
