// SPDX-License-Identifier: Apache-2.0
// Operations that move rows: embeddings, gathered and scattered rows, means over sequences, rotary positions. Bound by
// memory alone: every element is read once and written once, 16 bytes at a time where rows allow it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/packed.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

namespace detail {

template <class T>
struct SingleElement {
  T element;
  FEDLORA_DEVICE float operator[](int) const { return static_cast<float>(element); }
};

/// What one thread moves at once: 16 bytes of a row, or one element where rows do not allow more, so that a warp still
/// reads and writes whole lines.
template <class T, int Length>
using Piece = std::conditional_t<Length == 1, SingleElement<T>, Packed<T>>;

template <class T, int Length, class Block>
FEDLORA_DEVICE Piece<T, Length> load_piece(Block& block, const T* from) {
  if constexpr (Length == 1)
    return {*from};
  else
    return load_packed(block, from);
}

template <class T, int Length, class Block>
FEDLORA_DEVICE void store_piece(Block& block, T* to, const Piece<T, Length>& piece) {
  if constexpr (Length == 1)
    *to = piece.element;
  else
    store_packed(block, to, piece);
}

/// The values, each rounded to T.
template <class T, int Length>
FEDLORA_DEVICE Piece<T, Length> piece_of(const float (&values)[Length]) {
  if constexpr (Length == 1)
    return {T(values[0])};
  else
    return pack<T>(values);
}

/// Whether a matrix may be moved by pieces of 16 bytes.
template <class T>
bool in_vectors(MatrixView<T> matrix) {
  return Source<T>(matrix).by_vectors && matrix.cols % vector_length<T> == 0;
}

/// Calls body with the length of pieces, as a constant.
template <class T, class Body>
void with_piece_length(bool by_vectors, Body&& body) {
  if (by_vectors)
    body(std::integral_constant<int, vector_length<T>>{});
  else
    body(std::integral_constant<int, 1>{});
}

/// A table of rows, and which of them is wanted for each i; all in order where `rows` is null.
template <class T>
struct RowTable {
  const T* data = nullptr;
  Index stride = 0;
  const std::int32_t* rows = nullptr;

  FEDLORA_DEVICE const T* row(Index i) const { return data + (rows == nullptr ? i : Index{rows[i]}) * stride; }
};

inline void check_width(const char* where, const std::string& name, Index expected, Index got) {
  if (expected != got)
    fail<ShapeError>(where, name + " of " + std::to_string(expected) + " columns", std::to_string(got));
}

inline void check_height(const char* where, const std::string& name, Index expected, Index got) {
  if (expected != got) fail<ShapeError>(where, name + " of " + std::to_string(expected) + " rows", std::to_string(got));
}

}  // namespace detail

/// to[to_rows[i]] = Σ_t tables[t][rows_t[i]], in the order of t; one table is copied bit by bit. A warp has a row, each
/// lane up to four pieces of it, all of which are on their way at once.
template <class T, int Length, int Tables>
struct SumRowsKernel {
  static constexpr int threads = 128;
  static constexpr int steps = 4;

  detail::RowTable<T> tables[Tables];
  T* to = nullptr;
  Index to_stride = 0;
  const std::int32_t* to_rows = nullptr;
  Index rows = 0;
  Index cols = 0;

  int shared_bytes() const { return 0; }
  Grid grid() const { return {divide_up<Index>(rows, threads / 32), divide_up<Index>(cols, 32 * steps * Length)}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index row = block.x() * (threads / 32) + block.warp();
    if (row >= rows) return;
    const Index col = (block.y() * (32 * steps) + block.lane()) * Length;
    const T* from[Tables];
    unrolled<Tables>([&]<int Table>() { from[Table] = tables[Table].row(row); });

    detail::Piece<T, Length> sums[steps];
    unrolled<steps>([&]<int Step>() {
      const Index j = col + Step * 32 * Length;
      if (j >= cols) return;
      sums[Step] = detail::load_piece<T, Length>(block, from[0] + j);
      if constexpr (Tables > 1) {
        float values[Length];
        for (int e = 0; e < Length; ++e) values[e] = sums[Step][e];
        unrolled<Tables - 1>([&]<int Table>() {
          const auto piece = detail::load_piece<T, Length>(block, from[Table + 1] + j);
          for (int e = 0; e < Length; ++e) values[e] += piece[e];
        });
        sums[Step] = detail::piece_of<T, Length>(values);
      }
    });

    T* const target = to + (to_rows == nullptr ? row : Index{to_rows[row]}) * to_stride;
    unrolled<steps>([&]<int Step>() {
      const Index j = col + Step * 32 * Length;
      if (j < cols) detail::store_piece<T, Length>(block, target + j, sums[Step]);
    });
  }
};

/// y[s] = mean of x over the rows [cu_seqlens[s], cu_seqlens[s + 1]). A block has one sequence and a slab of columns,
/// 128 bytes of each row; 16 groups of its threads take every 16th row, and their sums are added in order.
template <class T, int Length>
struct MeanRowsKernel {
  static constexpr int groups = 16;
  static constexpr int across = Length == 1 ? 32 : 8;
  static constexpr int slab = across * Length;
  static constexpr int threads = groups * across;
  static constexpr int batch = 4;

  Source<const T> x;
  Source<T> y;
  const std::int32_t* cu_seqlens = nullptr;

  int shared_bytes() const { return groups * slab * static_cast<int>(sizeof(float)); }
  Grid grid() const { return {y.rows, divide_up<Index>(y.cols, slab)}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto parts = block.template shared<float>(groups * slab);
    const Index begin = cu_seqlens[block.x()];
    const Index end = cu_seqlens[block.x() + 1];
    const int group = block.thread() / across;
    const int inside = block.thread() % across * Length;
    const Index first_col = block.y() * slab;

    float sums[Length] = {};
    if (first_col + inside < x.cols) {
      const T* const column = x.data + first_col + inside;
      for (Index first = begin + group; first < end; first += batch * groups) {
        detail::Piece<T, Length> pieces[batch];
        unrolled<batch>([&]<int B>() {
          const Index i = first + B * groups;
          if (i < end) pieces[B] = detail::load_piece<T, Length>(block, column + i * x.stride);
        });
        unrolled<batch>([&]<int B>() {
          if (first + B * groups >= end) return;
          for (int e = 0; e < Length; ++e) sums[e] += pieces[B][e];
        });
      }
    }
    for (int e = 0; e < Length; ++e) parts[group * slab + inside + e] = sums[e];
    block.sync();
    const int j = block.thread();
    if (j >= slab || first_col + j >= y.cols) return;
    float sum = 0.0f;
    for (int part = 0; part < groups; ++part) sum += parts[part * slab + j];
    y.data[block.x() * y.stride + first_col + j] = T(sum * (1.0f / static_cast<float>(end - begin)));
  }
};

/// dx[i] = dy[s] / length(s) for every row i of sequence s. Blocks as in `MeanRowsKernel`; the rows of a sequence are
/// dealt out to `splits` of them.
template <class T, int Length>
struct MeanRowsBackwardKernel {
  static constexpr int groups = 16;
  static constexpr int across = Length == 1 ? 32 : 8;
  static constexpr int slab = across * Length;
  static constexpr int threads = groups * across;

  Source<const T> dy;
  Source<T> dx;
  const std::int32_t* cu_seqlens = nullptr;
  Index splits = 1;

  int shared_bytes() const { return 0; }
  Grid grid() const { return {dy.rows, divide_up<Index>(dy.cols, slab) * splits}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index begin = cu_seqlens[block.x()];
    const Index end = cu_seqlens[block.x() + 1];
    const Index j = block.y() / splits * slab + block.thread() % across * Length;
    Index i = begin + block.y() % splits * groups + block.thread() / across;
    if (j >= dx.cols || i >= end) return;
    const float factor = 1.0f / static_cast<float>(end - begin);
    const auto gradient = detail::load_piece<T, Length>(block, dy.data + block.x() * dy.stride + j);
    float values[Length];
    for (int e = 0; e < Length; ++e) values[e] = gradient[e] * factor;
    const auto piece = detail::piece_of<T, Length>(values);
    for (; i < end; i += splits * groups) detail::store_piece<T, Length>(block, dx.data + i * dx.stride + j, piece);
  }
};

/// Turns the two halves of each head by the angles of the row's position. A warp has a row, each lane up to two pairs
/// of pieces.
template <class T, int Length>
struct RotateKernel {
  static constexpr int threads = 128;
  static constexpr int steps = 2;

  Source<T> x;
  Index half = 0;  ///< of a head's columns; a multiple of `Length`
  const std::int32_t* positions = nullptr;
  const float* cosines = nullptr;
  Index cosines_stride = 0;
  const float* sines = nullptr;
  Index sines_stride = 0;
  float sign = 1.0f;

  int shared_bytes() const { return 0; }
  Grid grid() const {
    return {divide_up<Index>(x.rows, threads / 32), divide_up<Index>(x.cols / 2 / Length, 32 * steps)};
  }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index row = block.x() * (threads / 32) + block.warp();
    if (row >= x.rows) return;
    const Index position = positions[row];
    T* const data = x.data + row * x.stride;
    const int of_head = static_cast<int>(half) / Length;  // pairs of pieces
    const int pairs = static_cast<int>(x.cols / 2) / Length;
    const int first = static_cast<int>(block.y()) * (32 * steps) + block.lane();
    detail::Piece<T, Length> low[steps], high[steps];
    unrolled<steps>([&]<int Step>() {
      const int at = first + Step * 32;
      if (at >= pairs) return;
      const Index d = Index{at % of_head} * Length;
      const T* const from = data + at / of_head * (2 * half) + d;
      low[Step] = detail::load_piece<T, Length>(block, from);
      high[Step] = detail::load_piece<T, Length>(block, from + half);
      float cosine[Length], sine[Length], a[Length], b[Length];
      load_angles(block, cosines + position * cosines_stride + d, cosine);
      load_angles(block, sines + position * sines_stride + d, sine);
      for (int e = 0; e < Length; ++e) {
        a[e] = low[Step][e] * cosine[e] - high[Step][e] * sine[e] * sign;
        b[e] = high[Step][e] * cosine[e] + low[Step][e] * sine[e] * sign;
      }
      low[Step] = detail::piece_of<T, Length>(a);
      high[Step] = detail::piece_of<T, Length>(b);
    });
    unrolled<steps>([&]<int Step>() {
      const int at = first + Step * 32;
      if (at >= pairs) return;
      T* const to = data + at / of_head * (2 * half) + Index{at % of_head} * Length;
      detail::store_piece<T, Length>(block, to, low[Step]);
      detail::store_piece<T, Length>(block, to + half, high[Step]);
    });
  }

 private:
  template <class Block>
  FEDLORA_DEVICE static void load_angles(Block& block, const float* from, float (&to)[Length]) {
    if constexpr (Length == 1) {
      to[0] = *from;
    } else {
      unrolled<Length / 4>([&]<int Quad>() {
        const Vector<float> four = block.load_vector(from + 4 * Quad);
        for (int e = 0; e < 4; ++e) to[4 * Quad + e] = four.elements[e];
      });
    }
  }
};

namespace detail {

template <class T, int Length, int Tables>
void launch_sum_rows(const RowTable<T>* tables, MatrixView<T> to, const std::int32_t* to_rows, Index rows,
                     Stream stream) {
  SumRowsKernel<T, Length, Tables> kernel;
  for (int table = 0; table < Tables; ++table) kernel.tables[table] = tables[table];
  kernel.to = to.data;
  kernel.to_stride = to.stride;
  kernel.to_rows = to_rows;
  kernel.rows = rows;
  kernel.cols = to.cols;
  launch(stream, kernel.grid(), kernel);
}

template <class T>
RowTable<T> row_table(MatrixView<const T> table, const std::int32_t* rows) {
  return {table.data, table.stride, rows};
}

}  // namespace detail

/// y[i] = Σ_t tables[t][ids[t][i]], summed in float in the order of t and rounded once to T. y is overwritten.
/// Shapes:      1 to 3 tables (·, cols), as many ids of y.rows numbers each, y (rows, cols). The matrices and each
/// ids[t]
///              are in device memory, the two spans are not
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void embed(std::span<const MatrixView<const T>> tables, std::span<const std::int32_t* const> ids, MatrixView<T> y,
           Stream stream) {
  constexpr const char* where = "cuda::embed";
  if (tables.empty() || tables.size() > 3) fail<ShapeError>(where, "1 to 3 tables", std::to_string(tables.size()));
  if (ids.size() != tables.size())
    fail<ShapeError>(where, std::to_string(tables.size()) + " lists of ids", std::to_string(ids.size()));
  bool by_vectors = detail::in_vectors(y);
  detail::RowTable<T> terms[3];
  for (std::size_t t = 0; t < tables.size(); ++t) {
    detail::check_width(where, "table " + std::to_string(t), y.cols, tables[t].cols);
    by_vectors = by_vectors && detail::in_vectors(tables[t]);
    terms[t] = detail::row_table(tables[t], ids[t]);
  }
  detail::with_piece_length<T>(by_vectors, [&](auto length) {
    if (tables.size() == 1)
      detail::launch_sum_rows<T, length(), 1>(terms, y, nullptr, y.rows, stream);
    else if (tables.size() == 2)
      detail::launch_sum_rows<T, length(), 2>(terms, y, nullptr, y.rows, stream);
    else
      detail::launch_sum_rows<T, length(), 3>(terms, y, nullptr, y.rows, stream);
  });
}

/// to[i] = from[rows[i]], bit by bit. `to` is overwritten; a row may be taken more than once.
/// Shapes:      from (·, cols), rows to.rows numbers, to (count, cols); all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void gather_rows(MatrixView<const T> from, const std::int32_t* rows, MatrixView<T> to, Stream stream) {
  detail::check_width("cuda::gather_rows", "rows", to.cols, from.cols);
  const detail::RowTable<T> table = detail::row_table(from, rows);
  detail::with_piece_length<T>(detail::in_vectors(from) && detail::in_vectors(to), [&](auto length) {
    detail::launch_sum_rows<T, length(), 1>(&table, to, nullptr, to.rows, stream);
  });
}

/// to[rows[i]] += from[i], in float, rounded once to T. The numbers in `rows` are distinct; other rows of `to` are left
/// alone.
/// Shapes:      from (count, cols), rows from.rows numbers, to (·, cols); all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void scatter_rows_add(MatrixView<const T> from, const std::int32_t* rows, MatrixView<T> to, Stream stream) {
  detail::check_width("cuda::scatter_rows_add", "rows", to.cols, from.cols);
  const detail::RowTable<T> terms[2] = {detail::row_table(MatrixView<const T>(to), rows),
                                        detail::row_table(from, static_cast<const std::int32_t*>(nullptr))};
  detail::with_piece_length<T>(detail::in_vectors(from) && detail::in_vectors(to), [&](auto length) {
    detail::launch_sum_rows<T, length(), 2>(terms, to, rows, from.rows, stream);
  });
}

/// y[s] = mean of x over the rows [cu_seqlens[s], cu_seqlens[s + 1]), at least one. y is overwritten.
/// Shapes:      x (rows, cols), cu_seqlens y.rows + 1 numbers that rise to at most x.rows, y (sequences, cols); all in
///              device memory
/// Determinism: the same bits in every run; the order of sums depends on the length of the sequence alone
/// \throws ShapeError
template <class T>
void mean_rows(MatrixView<const T> x, const std::int32_t* cu_seqlens, MatrixView<T> y, Stream stream) {
  detail::check_width("cuda::mean_rows", "rows", y.cols, x.cols);
  detail::with_piece_length<T>(detail::in_vectors(x), [&](auto length) {
    MeanRowsKernel<T, length()> kernel;
    kernel.x = Source<const T>(x);
    kernel.y = Source<T>(y);
    kernel.cu_seqlens = cu_seqlens;
    launch(stream, kernel.grid(), kernel);
  });
}

/// dx[i] = dy[s] / length(s) for every row i of sequence s. Those rows of dx are overwritten, others are left alone.
/// Shapes:      as in `mean_rows`: dy (sequences, cols), dx (rows, cols); all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void mean_rows_backward(MatrixView<const T> dy, const std::int32_t* cu_seqlens, MatrixView<T> dx, Stream stream) {
  detail::check_width("cuda::mean_rows_backward", "rows", dy.cols, dx.cols);
  if (dy.rows == 0 || dx.rows == 0) return;
  detail::with_piece_length<T>(detail::in_vectors(dy) && detail::in_vectors(dx), [&](auto length) {
    MeanRowsBackwardKernel<T, length()> kernel;
    kernel.dy = Source<const T>(dy);
    kernel.dx = Source<T>(dx);
    kernel.cu_seqlens = cu_seqlens;
    // Eight rows to a thread are enough for one block, if sequences are about equally long.
    const Index wanted = divide_up<Index>(divide_up<Index>(dx.rows, dy.rows), 8 * kernel.groups);
    kernel.splits = std::min<Index>(wanted, 64);
    launch(stream, kernel.grid(), kernel);
  });
}

/// Rotary positions (Su et al. 2021, arXiv 2104.09864), on the two halves (a, b) of each head as transformers has them,
/// in place: a ← a cos − b sin, b ← b cos + a sin, with the angles of the row's position; `inverse` turns back (the
/// backward pass). Computed in float and rounded once to T.
/// Shapes:      x (rows, heads · head_dim), head_dim even, positions x.rows numbers below cosines.rows, cosines and
///              sines (positions, head_dim / 2), in float for every T; all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void rotate(MatrixView<T> x, Index heads, Index head_dim, const std::int32_t* positions,
            MatrixView<const float> cosines, MatrixView<const float> sines, bool inverse, Stream stream) {
  constexpr const char* where = "cuda::rotate";
  if (heads < 1 || head_dim < 2 || head_dim % 2 != 0)
    fail<ShapeError>(where, "heads of an even length", std::to_string(heads) + " of " + std::to_string(head_dim));
  detail::check_width(where, "X", heads * head_dim, x.cols);
  detail::check_width(where, "cosines", head_dim / 2, cosines.cols);
  detail::check_width(where, "sines", head_dim / 2, sines.cols);
  detail::check_height(where, "sines", cosines.rows, sines.rows);
  const bool by_vectors = detail::in_vectors(x) && Source<const float>(cosines).by_vectors &&
                          Source<const float>(sines).by_vectors && head_dim / 2 % vector_length<T> == 0;
  detail::with_piece_length<T>(by_vectors, [&](auto length) {
    RotateKernel<T, length()> kernel;
    kernel.x = Source<T>(x);
    kernel.half = head_dim / 2;
    kernel.positions = positions;
    kernel.cosines = cosines.data;
    kernel.cosines_stride = cosines.stride;
    kernel.sines = sines.data;
    kernel.sines_stride = sines.stride;
    kernel.sign = inverse ? -1.0f : 1.0f;
    launch(stream, kernel.grid(), kernel);
  });
}

}  // namespace fedlora::cuda

#endif
