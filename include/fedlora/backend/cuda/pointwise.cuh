// SPDX-License-Identifier: Apache-2.0
// What is done to every element by itself: activations, residual sums, dropout, copies, conversions; and the sums of
// columns that gradients of biases are. All are bound by memory: each operand is read once and each result written
// once, 16 bytes at a time where the rows allow it, and computed in float32 in between.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <type_traits>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/elementwise.cuh"
#include "fedlora/backend/cuda/packed.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Outputs = operation(inputs), element by element, for matrices of one shape. An operation has
///   static constexpr int inputs, outputs
///   void operator()(Packed<T> (&v)[max(inputs, outputs)], Index i, Index j) const
/// and turns the inputs' elements (i, j), …, 16 bytes of each, into the outputs'. An input without data reads as zero.
///
/// A thread takes one vector of each operand, of two rows where there are few operands, so that about 32 bytes are on
/// their way; it asks for all of them before it takes one apart, and reads before it writes, because outputs may be
/// inputs and the compiler could not move the second read up. Threads stand side by side along a row, 32 of the block's
/// 256 where there are many rows, more of them where there are few.
template <class T, class Operation>
struct PointwiseKernel {
  static constexpr int threads = 256;
  static constexpr int rows_per_thread = Operation::inputs < 3 ? 2 : 1;
  static constexpr int inputs = Operation::inputs;
  static constexpr int outputs = Operation::outputs;
  static constexpr int slots = inputs > outputs ? inputs : outputs;

  Source<const T> from[inputs > 0 ? inputs : 1];
  Source<T> to[outputs];
  Operation operation;
  bool by_vectors = false;  ///< whether 16 bytes of a row of each may be read or written at once
  int across_bits = 5;      ///< log2 of the threads side by side
  std::uint32_t tiles_across = 1;

  /// Chooses the tile for the shape of the outputs, and the way in and out.
  void arrange() {
    by_vectors = std::all_of(to, to + outputs, [](const auto& matrix) { return matrix.by_vectors; }) &&
                 std::all_of(from, from + inputs, [](const auto& matrix) { return matrix.by_vectors; });
    const Index vectors = divide_up<Index>(to[0].cols, vector_length<T>);
    while (across_bits > 0 && (Index{1} << across_bits) / 2 >= vectors) --across_bits;
    while (across_bits < 8 && tile_rows() / 2 >= to[0].rows && (Index{1} << across_bits) < vectors) ++across_bits;
    tiles_across = static_cast<std::uint32_t>(divide_up<Index>(vectors, Index{1} << across_bits));
  }
  FEDLORA_HOST_DEVICE int tile_rows() const { return (threads >> across_bits) * rows_per_thread; }
  int shared_bytes() const { return 0; }
  Grid grid() const { return {divide_up<Index>(to[0].rows, tile_rows()) * tiles_across, 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto tile = static_cast<std::uint32_t>(block.x());
    const std::uint32_t tile_row = tile / tiles_across;
    const Index first = static_cast<Index>(tile - tile_row * tiles_across) << across_bits;
    const Index col = (first + (block.thread() & ((1 << across_bits) - 1))) * vector_length<T>;
    const Index row = static_cast<Index>(tile_row) * tile_rows() + (block.thread() >> across_bits);
    if (col >= to[0].cols) return;

    const bool whole = by_vectors && to[0].cols - col >= vector_length<T>;
    Packed<T> v[rows_per_thread][slots] = {};
    if (whole) {  // outside of the loads, so that nothing stands between them
      each_row(row, [&]<int R>(Index i) {
        unrolled<inputs>([&]<int K>() {
          if (from[K].data != nullptr) v[R][K] = load_packed(block, from[K].data + i * from[K].stride + col);
        });
      });
    } else {
      each_row(row, [&]<int R>(Index i) {
        const int count = elements_at(to[0], i, col);
        unrolled<inputs>([&]<int K>() {
          const Source<const T>& source = from[K];
          if (count > 0 && source.data != nullptr)
            v[R][K] = load_elements(block, source.data + i * source.stride + col, count, source.by_vectors);
        });
      });
    }
    each_row(row, [&]<int R>(Index i) {
      operation(v[R], i, col);
      unrolled<outputs>([&]<int K>() {
        T* const target = to[K].data + i * to[K].stride + col;
        if (whole)
          store_packed(block, target, v[R][K]);
        else
          store_elements(block, target, v[R][K], elements_at(to[0], i, col), to[K].by_vectors);
      });
    });
  }

 private:
  /// Calls body<R>(i) for each row of this thread that there is.
  template <class Body>
  FEDLORA_DEVICE void each_row(Index row, Body&& body) const {
    unrolled<rows_per_thread>([&]<int R>() {
      const Index i = row + R * (threads >> across_bits);
      if (i < to[0].rows) body.template operator()<R>(i);
    });
  }
};

/// to[i] = To(from[i]); a thread converts so many elements that the longer of both is whole vectors.
template <class To, class From>
struct ConvertKernel {
  static constexpr int threads = 256;
  static constexpr int length = std::max(vector_length<To>, vector_length<From>);

  const From* from;
  To* to;
  Index size;
  bool by_vectors;

  int shared_bytes() const { return 0; }
  Grid grid() const { return {divide_up<Index>(size, Index{threads} * length), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index first = (block.x() * threads + block.thread()) * length;
    if (first >= size) return;
    if (by_vectors && size - first >= length) {
      Vector<From> read[length / vector_length<From>];
      for (int v = 0; v < length / vector_length<From>; ++v)
        read[v] = block.load_vector(from + first + v * vector_length<From>);
      for (int v = 0; v < length / vector_length<To>; ++v) {
        Vector<To> written;
        for (int e = 0; e < vector_length<To>; ++e) {
          const int at = v * vector_length<To> + e;
          written.elements[e] = converted(read[at / vector_length<From>].elements[at % vector_length<From>]);
        }
        block.store_vector(to + first + v * vector_length<To>, written);
      }
    } else {
      const int count = static_cast<int>(size - first < length ? size - first : length);
      for (int e = 0; e < count; ++e) to[first + e] = converted(from[first + e]);
    }
  }

 private:
  FEDLORA_DEVICE static To converted(From value) {
    if constexpr (std::is_same_v<To, From>)
      return value;
    else
      return To(static_cast<float>(value));
  }
};

/// The sums of the columns of X over runs of its rows.
///
/// A block takes 512 bytes of each row of its run. Warp w adds up rows w, w + 8, … of the run, four of them on their
/// way at once; the eight sums of a column are then added in order.
template <class T>
struct ColumnSumsKernel {
  static constexpr int threads = 256;
  static constexpr int warps = threads / 32;
  static constexpr int length = vector_length<T>;
  static constexpr int tile_cols = 32 * length;
  static constexpr int rows_at_once = 4;

  Source<const T> x;
  Index rows_per_run = 0;
  float* to = nullptr;  ///< the sums of the first run
  Index to_stride = 0;  ///< floats from one run to the next
  bool add = false;     ///< to what is there already

  int shared_bytes() const { return warps * tile_cols * static_cast<int>(sizeof(float)); }
  Grid grid() const { return {divide_up<Index>(x.cols, tile_cols), divide_up<Index>(x.rows, rows_per_run)}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto partials = block.template shared<float>(warps * tile_cols);
    const Index col = block.x() * tile_cols;
    const Index begin = block.y() * rows_per_run;
    const Index end = begin + rows_per_run < x.rows ? begin + rows_per_run : x.rows;
    const Index mine = col + block.lane() * length;
    const int count = elements_at(x, begin, mine);
    const bool whole = x.by_vectors && count == length;
    float sums[length] = {};
    for (Index i = begin + block.warp(); i < end; i += rows_at_once * warps) {
      Packed<T> parts[rows_at_once] = {};
      const auto load = [&](auto&& vector_at) {
        unrolled<rows_at_once>([&]<int R>() {
          if (const Index row = i + R * warps; row < end) parts[R] = vector_at(x.data + row * x.stride + mine);
        });
      };
      if (whole)
        load([&](const T* from) { return load_packed(block, from); });
      else if (count > 0)
        load([&](const T* from) { return load_elements(block, from, count, x.by_vectors); });
      unrolled<rows_at_once>([&]<int R>() {
        for (int e = 0; e < length; ++e) sums[e] += parts[R][e];
      });
    }
    for (int e = 0; e < length; ++e) partials[(block.warp() * length + e) * 32 + block.lane()] = sums[e];
    block.sync();
    for (int at = block.thread(); at < tile_cols; at += threads) {
      const Index j = col + at % 32 * length + at / 32;
      if (j >= x.cols) continue;
      float sum = 0.0f;
      for (int w = 0; w < warps; ++w) sum += partials[w * tile_cols + at];
      float& result = to[block.y() * to_stride + j];
      result = add ? result + sum : sum;
    }
  }
};

namespace detail {

/// Calls body with the activation as a constant; one constant stands for all rare ones.
template <class Body>
void with_activation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::gelu:
      return body(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh:
      return body(std::integral_constant<Activation, Activation::gelu_tanh>{});
    case Activation::relu:
      return body(std::integral_constant<Activation, Activation::relu>{});
    case Activation::silu:
      return body(std::integral_constant<Activation, Activation::silu>{});
    case Activation::tanh:
      return body(std::integral_constant<Activation, Activation::tanh>{});
    default:
      return body(std::integral_constant<Activation, Activation::linear>{});
  }
}

template <class T, class Operation>
void pointwise(Stream stream, const Operation& operation, std::initializer_list<MatrixView<const T>> from,
               std::initializer_list<MatrixView<T>> to) {
  PointwiseKernel<T, Operation> kernel;
  std::transform(from.begin(), from.end(), kernel.from, [](const auto& view) { return Source<const T>(view); });
  std::transform(to.begin(), to.end(), kernel.to, [](const auto& view) { return Source<T>(view); });
  kernel.operation = operation;
  if (kernel.to[0].rows == 0 || kernel.to[0].cols == 0) return;
  kernel.arrange();
  launch(stream, kernel.grid(), kernel);
}

/// One row of channels as a matrix that has it in every row.
template <class T>
MatrixView<const T> in_every_row(const T* channels, Index rows, Index cols) {
  return {channels, rows, cols, 0};
}

/// How the rows of `sum_rows` are cut into runs.
struct ColumnSumRuns {
  Index rows_per_run;
  Index count;

  ColumnSumRuns(Index rows, Index cols, Index element_bytes) {
    const Index tiles = std::max<Index>(1, divide_up<Index>(cols * element_bytes, 512));
    // More than 64 runs, or runs of less than four rows to a warp, would cost more to add up than they save.
    const Index wanted = std::min<Index>(64, divide_up(enough_blocks, tiles));
    rows_per_run = std::max<Index>(32, divide_up(rows, wanted));
    count = std::max<Index>(1, divide_up(rows, rows_per_run));
  }
};

/// Floats from one run's sums to the next: whole vectors.
inline Index run_stride(Index cols) { return divide_up<Index>(cols, 4) * 4; }

}  // namespace detail

/// y = f(x + bias), computed in float32 and rounded once to T.
/// Shapes:   x, y (rows, cols), bias (cols) or null; all in device memory
/// Aliasing: y may be x
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void activation_forward(Activation activation, MatrixView<const T> x, const T* bias, MatrixView<T> y, Stream stream) {
  detail::check_shape("cuda::activation_forward", "y", x.rows, x.cols, y.rows, y.cols);
  detail::with_activation(activation, [&](auto function) {
    detail::pointwise<T>(stream, elementwise::ActivationForward<function()>{activation},
                         {x, detail::in_every_row(bias, x.rows, x.cols)}, {y});
  });
}

/// dy ← dy ∘ f'(x + bias), in place.
/// Shapes:   x, dy (rows, cols), bias (cols) or null; all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void activation_backward(Activation activation, MatrixView<const T> x, const T* bias, MatrixView<T> dy, Stream stream) {
  detail::check_shape("cuda::activation_backward", "dy", x.rows, x.cols, dy.rows, dy.cols);
  detail::with_activation(activation, [&](auto function) {
    detail::pointwise<T>(stream, elementwise::ActivationBackward<function()>{activation},
                         {dy, x, detail::in_every_row(bias, x.rows, x.cols)}, {dy});
  });
}

/// y = f(gate) ∘ up (SwiGLU: Shazeer 2020, arXiv 2002.05202).
/// Shapes:   gate, up, y (rows, cols); all in device memory
/// Aliasing: y may be gate or up
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void gated_forward(Activation activation, MatrixView<const T> gate, MatrixView<const T> up, MatrixView<T> y,
                   Stream stream) {
  constexpr const char* where = "cuda::gated_forward";
  detail::check_shape(where, "up", gate.rows, gate.cols, up.rows, up.cols);
  detail::check_shape(where, "y", gate.rows, gate.cols, y.rows, y.cols);
  detail::with_activation(activation, [&](auto function) {
    detail::pointwise<T>(stream, elementwise::GatedForward<function()>{activation}, {gate, up}, {y});
  });
}

/// dgate = dy ∘ up ∘ f'(gate) and dup = dy ∘ f(gate), both from one pass over the inputs.
/// Shapes:   all (rows, cols), in device memory
/// Aliasing: dup may be dy; either may also be gate or up, as long as they are two matrices
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void gated_backward(Activation activation, MatrixView<const T> gate, MatrixView<const T> up, MatrixView<const T> dy,
                    MatrixView<T> dgate, MatrixView<T> dup, Stream stream) {
  constexpr const char* where = "cuda::gated_backward";
  detail::check_shape(where, "up", gate.rows, gate.cols, up.rows, up.cols);
  detail::check_shape(where, "dy", gate.rows, gate.cols, dy.rows, dy.cols);
  detail::check_shape(where, "dgate", gate.rows, gate.cols, dgate.rows, dgate.cols);
  detail::check_shape(where, "dup", gate.rows, gate.cols, dup.rows, dup.cols);
  detail::with_activation(activation, [&](auto function) {
    detail::pointwise<T>(stream, elementwise::GatedBackward<function()>{activation}, {dy, gate, up}, {dup, dgate});
  });
}

/// x ← dropout(x + bias) + residual over rows [begin, end), in place; rounded once. The mask is that of
/// core/random.hpp for (row_numbers[i], channel), the same on every backend.
/// Shapes:   x, residual (rows, cols), bias (cols) or null, row_numbers (rows), unread without dropout; all in device
///           memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void add_residual(MatrixView<T> x, const T* bias, MatrixView<const T> residual, const Dropout& dropout,
                  const std::int32_t* row_numbers, Index begin, Index end, Stream stream) {
  constexpr const char* where = "cuda::add_residual";
  detail::check_shape(where, "residual", x.rows, x.cols, residual.rows, residual.cols);
  detail::check_rows(where, begin, end, x.rows);
  const MatrixView<T> run = x.rows_between(begin, end);
  detail::pointwise<T>(stream, elementwise::AddResidual{dropout, dropout ? row_numbers + begin : nullptr},
                       {run, detail::in_every_row(bias, run.rows, run.cols), residual.rows_between(begin, end)}, {run});
}

/// to = mask ∘ from, times the scale, over rows [begin, end); a copy where `dropout` drops nothing. The mask is that of
/// core/random.hpp for (row_numbers[i], channel), the same on every backend.
/// Shapes:   from, to (rows, cols), row_numbers (rows), unread without dropout; all in device memory
/// Aliasing: to may be from
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void dropout(const Dropout& dropout, MatrixView<const T> from, MatrixView<T> to, const std::int32_t* row_numbers,
             Index begin, Index end, Stream stream) {
  constexpr const char* where = "cuda::dropout";
  detail::check_shape(where, "the result", from.rows, from.cols, to.rows, to.cols);
  detail::check_rows(where, begin, end, from.rows);
  const MatrixView<const T> read = from.rows_between(begin, end);
  const MatrixView<T> written = to.rows_between(begin, end);
  if (dropout)
    detail::pointwise<T>(stream, elementwise::Drop{dropout, row_numbers + begin}, {read}, {written});
  else if (from.data != to.data)
    detail::pointwise<T>(stream, elementwise::Copy{}, {read}, {written});
}

/// to = from, bit for bit.
/// Shapes:   from, to (rows, cols); all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void copy(MatrixView<const T> from, MatrixView<T> to, Stream stream) {
  detail::check_shape("cuda::copy", "the copy", from.rows, from.cols, to.rows, to.cols);
  detail::pointwise<T>(stream, elementwise::Copy{}, {from}, {to});
}

/// to += from, rounded once.
/// Shapes:   from, to (rows, cols); all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void add(MatrixView<const T> from, MatrixView<T> to, Stream stream) {
  detail::check_shape("cuda::add", "the sum", from.rows, from.cols, to.rows, to.cols);
  detail::pointwise<T>(stream, elementwise::Add{}, {to, from}, {to});
}

/// to = 0. What stands between the rows is left alone.
/// Determinism: the same bits in every run
template <class T>
void fill_zero(MatrixView<T> to, Stream stream) {
  detail::pointwise<T>(stream, elementwise::FillZero{}, {}, {to});
}

/// to[i] = from[i] for `size` elements of float, Bf16 or Half, rounded to nearest even; of one type, a copy. The arrays
/// are in device memory and do not overlap.
/// Determinism: the same bits in every run
template <class To, class From>
void convert(const From* from, To* to, Index size, Stream stream) {
  const bool aligned =
      reinterpret_cast<std::uintptr_t>(from) % 16 == 0 && reinterpret_cast<std::uintptr_t>(to) % 16 == 0;
  const ConvertKernel<To, From> kernel{from, to, size, aligned};
  launch(stream, kernel.grid(), kernel);
}

/// Bytes of workspace that `sum_rows` needs.
template <class T>
std::size_t sum_rows_workspace(Index rows, Index cols) {
  const detail::ColumnSumRuns runs(rows, cols, sizeof(T));
  return runs.count == 1 ? 0 : static_cast<std::size_t>(runs.count * detail::run_stride(cols)) * sizeof(float);
}

/// to[j] += Σᵢ x(i, j), in float32: the gradient of a bias. Rows are added up in runs, and then the runs; `workspace`
/// holds `sum_rows_workspace` bytes.
/// Shapes:      x (rows, cols), to (cols); all in device memory
/// Gradient:    accumulated
/// Determinism: the same bits in every run; the order of sums depends on shapes alone
/// \throws ShapeError
template <class T>
void sum_rows(MatrixView<const T> x, float* to, std::span<std::byte> workspace, Stream stream) {
  if (x.rows == 0 || x.cols == 0) return;
  const detail::ColumnSumRuns runs(x.rows, x.cols, sizeof(T));
  const Index stride = detail::run_stride(x.cols);
  float* const partials = detail::workspace_floats("cuda::sum_rows", workspace, sum_rows_workspace<T>(x.rows, x.cols));
  ColumnSumsKernel<T> kernel;
  kernel.x = Source<const T>(x);
  kernel.rows_per_run = runs.rows_per_run;
  kernel.to = runs.count > 1 ? partials : to;
  kernel.to_stride = stride;
  kernel.add = runs.count == 1;
  launch(stream, kernel.grid(), kernel);
  if (runs.count == 1) return;
  ColumnSumsKernel<float> sum;
  sum.x = Source<const float>(MatrixView<const float>(partials, runs.count, x.cols, stride));
  sum.rows_per_run = runs.count;
  sum.to = to;
  sum.add = true;
  launch(stream, sum.grid(), sum);
}

}  // namespace fedlora::cuda

#endif
