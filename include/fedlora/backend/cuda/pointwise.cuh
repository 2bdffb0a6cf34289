// SPDX-License-Identifier: Apache-2.0
// What is done to every element by itself: activations, residual sums, dropout, copies, conversions; and the sums of
// columns that gradients of biases are. All are bound by memory: each operand is read once and each result written
// once, 16 bytes at a time where the rows allow it, and computed in float32 in between.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <type_traits>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// The elements from[0], …, 16 bytes, of which the first `count` exist; the others become zero. `by_vectors` says that
/// `from` is a multiple of 16.
template <class T, class Block>
FEDLORA_DEVICE Vector<T> load_elements(Block& block, const T* from, int count, bool by_vectors) {
  if (by_vectors && count == vector_length<T>) return block.load_vector(from);
  Vector<T> vector;
  for (int e = 0; e < vector_length<T>; ++e) vector.elements[e] = e < count ? from[e] : T(0.0f);
  return vector;
}

/// Writes the first `count` elements to to[0], ….
template <class T, class Block>
FEDLORA_DEVICE void store_elements(Block& block, T* to, const Vector<T>& vector, int count, bool by_vectors) {
  if (by_vectors && count == vector_length<T>) {
    block.store_vector(to, vector);
  } else {
    for (int e = 0; e < vector_length<T>; ++e)
      if (e < count) to[e] = vector.elements[e];
  }
}

/// f(x) and f'(x).
template <Activation Function>
FEDLORA_DEVICE void activate(float x, float& value, float& slope) {
  if constexpr (Function == Activation::gelu) {
    const float cdf = 0.5f + 0.5f * erff(x * 0.70710678118654752f);
    value = x * cdf;
    slope = cdf + x * (expf(-0.5f * x * x) * 0.39894228040143268f);
  } else if constexpr (Function == Activation::gelu_tanh) {
    const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    const float half = 1.0f / (1.0f + expf(-2.0f * inner));  // (1 + tanh(inner)) / 2
    const float bend = half * (1.0f - half);
    value = x * half;
    // Far out the bend is zero and x² may be infinite.
    slope = half + (bend > 0.0f ? x * bend * (1.0f + 0.134145f * x * x) * 1.5957691216057307f : bend);
  } else if constexpr (Function == Activation::relu) {
    value = x > 0.0f ? x : 0.0f;
    slope = x > 0.0f ? 1.0f : 0.0f;
  } else if constexpr (Function == Activation::silu) {
    const float sigmoid = 1.0f / (1.0f + expf(-x));
    value = x * sigmoid;
    slope = sigmoid + value * (1.0f - sigmoid);
  } else {
    value = tanhf(x);
    slope = 1.0f - value * value;
  }
}

/// Outputs = operation(inputs), element by element, for matrices of one shape. An operation has
///   static constexpr int inputs, outputs
///   void operator()(Vector<T> (&v)[max(inputs, outputs)], Index i, Index j) const
/// and turns the inputs' elements (i, j), …, 16 bytes of each, into the outputs'. An input without data reads as zero.
///
/// A thread takes one vector of each operand, of two rows where there are few operands, so that about 32 bytes are on
/// their way; it reads all of them before it writes, because outputs may be inputs and the compiler could not move the
/// second read up. Threads stand side by side along a row, 32 of the block's 256 where there are many rows, more of
/// them where there are few.
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
  int across_bits = 5;  ///< log2 of the threads side by side
  std::uint32_t tiles_across = 1;

  /// Chooses the tile for the shape of the outputs.
  void arrange() {
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

    Vector<T> vectors[rows_per_thread][slots];
    unrolled<rows_per_thread>([&]<int R>() {
      const Index i = row + R * (threads >> across_bits);
      const int count = elements_at(to[0], i, col);
      if (count == 0) return;
      unrolled<inputs>([&]<int K>() {
        const Source<const T>& source = from[K];
        const bool there = source.data != nullptr;
        vectors[R][K] = load_elements(block, there ? source.data + i * source.stride + col : source.data,
                                      there ? count : 0, source.by_vectors);
      });
    });
    unrolled<rows_per_thread>([&]<int R>() {
      const Index i = row + R * (threads >> across_bits);
      const int count = elements_at(to[0], i, col);
      if (count == 0) return;
      operation(vectors[R], i, col);
      unrolled<outputs>([&]<int K>() {
        store_elements(block, to[K].data + i * to[K].stride + col, vectors[R][K], count, to[K].by_vectors);
      });
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
    float sums[length] = {};
    for (Index i = begin + block.warp(); i < end; i += rows_at_once * warps) {
      Vector<T> vectors[rows_at_once];
      unrolled<rows_at_once>([&]<int R>() {
        const Index row = i + R * warps;
        const Index at = col + block.lane() * length;
        const int count = row < end ? elements_at(x, row, at) : 0;
        vectors[R] = load_elements(block, count > 0 ? x.data + row * x.stride + at : x.data, count, x.by_vectors);
      });
      unrolled<rows_at_once>([&]<int R>() {
        for (int e = 0; e < length; ++e) sums[e] += static_cast<float>(vectors[R].elements[e]);
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

/// The operations of `PointwiseKernel`. v[k] is input k before and output k after.
namespace elementwise {

/// v[0] = f(v[0] + v[1])
template <Activation Function>
struct ActivationForward {
  static constexpr int inputs = 2, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&v)[2], Index, Index) const {
    for (int e = 0; e < vector_length<T>; ++e) {
      float value, slope;
      activate<Function>(static_cast<float>(v[0].elements[e]) + static_cast<float>(v[1].elements[e]), value, slope);
      v[0].elements[e] = T(value);
    }
  }
};

/// v[0] = v[0] f'(v[1] + v[2])
template <Activation Function>
struct ActivationBackward {
  static constexpr int inputs = 3, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&v)[3], Index, Index) const {
    for (int e = 0; e < vector_length<T>; ++e) {
      float value, slope;
      activate<Function>(static_cast<float>(v[1].elements[e]) + static_cast<float>(v[2].elements[e]), value, slope);
      v[0].elements[e] = T(static_cast<float>(v[0].elements[e]) * slope);
    }
  }
};

/// v[0] = f(v[0]) v[1]
template <Activation Function>
struct GatedForward {
  static constexpr int inputs = 2, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&v)[2], Index, Index) const {
    for (int e = 0; e < vector_length<T>; ++e) {
      float value, slope;
      activate<Function>(static_cast<float>(v[0].elements[e]), value, slope);
      v[0].elements[e] = T(value * static_cast<float>(v[1].elements[e]));
    }
  }
};

/// (v[0], v[1]) = (v[0] f(v[1]), v[0] v[2] f'(v[1]))
template <Activation Function>
struct GatedBackward {
  static constexpr int inputs = 3, outputs = 2;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&v)[3], Index, Index) const {
    for (int e = 0; e < vector_length<T>; ++e) {
      const auto dy = static_cast<float>(v[0].elements[e]);
      float value, slope;
      activate<Function>(static_cast<float>(v[1].elements[e]), value, slope);
      v[0].elements[e] = T(dy * value);
      v[1].elements[e] = T(dy * static_cast<float>(v[2].elements[e]) * slope);
    }
  }
};

/// What dropout leaves of the elements (row, j), …; `j` is a multiple of 4, and four elements share one draw.
template <int Count>
FEDLORA_DEVICE void drop_elements(float (&values)[Count], const Dropout& dropout, std::int32_t row, Index j) {
  for (int quad = 0; quad < Count; quad += 4) {
    const RandomWords words = dropout_words(dropout, row, j + quad);
    for (int e = 0; e < 4; ++e)
      values[quad + e] =
          words[static_cast<std::size_t>(e)] < dropout.threshold ? 0.0f : values[quad + e] * dropout.scale;
  }
}

/// v[0] = dropout(v[0] + v[1]) + v[2]
struct AddResidual {
  static constexpr int inputs = 3, outputs = 1;
  Dropout dropout;
  const std::int32_t* row_numbers;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&v)[3], Index i, Index j) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e)
      values[e] = static_cast<float>(v[0].elements[e]) + static_cast<float>(v[1].elements[e]);
    if (dropout) drop_elements(values, dropout, row_numbers[i], j);
    for (int e = 0; e < vector_length<T>; ++e) v[0].elements[e] = T(values[e] + static_cast<float>(v[2].elements[e]));
  }
};

/// v[0] = dropout(v[0])
struct Drop {
  static constexpr int inputs = 1, outputs = 1;
  Dropout dropout;
  const std::int32_t* row_numbers;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&v)[1], Index i, Index j) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) values[e] = static_cast<float>(v[0].elements[e]);
    drop_elements(values, dropout, row_numbers[i], j);
    for (int e = 0; e < vector_length<T>; ++e) v[0].elements[e] = T(values[e]);
  }
};

/// v[0] = v[0] + v[1]
struct Add {
  static constexpr int inputs = 2, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&v)[2], Index, Index) const {
    for (int e = 0; e < vector_length<T>; ++e)
      v[0].elements[e] = T(static_cast<float>(v[0].elements[e]) + static_cast<float>(v[1].elements[e]));
  }
};

/// v[0] stays what it is, bit for bit.
struct Copy {
  static constexpr int inputs = 1, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&)[1], Index, Index) const {}
};

/// v[0] = 0
struct FillZero {
  static constexpr int inputs = 0, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Vector<T> (&v)[1], Index, Index) const {
    for (int e = 0; e < vector_length<T>; ++e) v[0].elements[e] = T(0.0f);
  }
};

}  // namespace elementwise

namespace detail {

/// Calls body with the activation as a constant.
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
    detail::pointwise<T>(stream, elementwise::ActivationForward<function()>{},
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
    detail::pointwise<T>(stream, elementwise::ActivationBackward<function()>{},
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
    detail::pointwise<T>(stream, elementwise::GatedForward<function()>{}, {gate, up}, {y});
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
    detail::pointwise<T>(stream, elementwise::GatedBackward<function()>{}, {dy, gate, up}, {dup, dgate});
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
