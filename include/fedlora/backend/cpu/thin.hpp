// SPDX-License-Identifier: Apache-2.0
// Products with a thin factor, a few ranks wide: S = X Aᵀ, Y += S A, G += Sᵀ X. A general GEMM spends its time packing
// the wide operand for them; these read it once, row by row. With a mask (0 or the dropout's scale, element by element)
// they see mask ∘ X, or add mask ∘ (S A). Sums depend on the shapes alone.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// Above this rank a general GEMM is at least as fast.
inline constexpr Index thin_ranks = 32;

/// Rows that are taken together: their operands stay in the cache from one thin product to the next.
inline constexpr Index thin_rows = 32;

/// Whether the thin products can be used for these widths.
template <class T>
bool is_thin(Index rank, Index in, Index out) {
  return rank <= thin_ranks && in >= lane_count<T> && out >= lane_count<T>;
}

namespace thin {

/// The first or the second halves of a's and b's segments of `Length` lanes.
template <class T, Index Length, bool Second>
[[gnu::always_inline]] inline void take_halves(const Lanes<T>& a, const Lanes<T>& b, Lanes<T>& halves) {
  constexpr auto from = [](Index place) {  // b's lanes follow a's
    constexpr Index half = Length / 2;
    return static_cast<int>(place / half * Length + place % half + (Second ? half : 0));
  };
  // Lane by lane: nvcc expands no pack here.
  if constexpr (lane_count<T> == 8)
    halves = __builtin_shufflevector(a, b, from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7));
  else
    halves = __builtin_shufflevector(a, b, from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7),
                                     from(8), from(9), from(10), from(11), from(12), from(13), from(14), from(15));
}

/// Of two vectors of segments of `Length` lanes, one vector of segments half as long: each segment's halves added.
template <class T, Index Length>
[[gnu::always_inline]] inline void fold(const Lanes<T>& a, const Lanes<T>& b, Lanes<T>& result) {
  Lanes<T> first, second;
  take_halves<T, Length, false>(a, b, first);
  take_halves<T, Length, true>(a, b, second);
  result = first + second;
}

/// values[r] = the sum of the lanes of sums[r], by halves.
template <class T, int R>
[[gnu::always_inline]] inline void sum_each(const Lanes<T> (&sums)[R], T* values) {
  constexpr Index lanes = lane_count<T>;
  static_assert(R == 1 || R == 2 || R == 4 || R == 8);
  Lanes<T> all;
  if constexpr (R == 1) {
    all = sums[0];
  } else if constexpr (R == 2) {
    fold<T, lanes>(sums[0], sums[1], all);
  } else {
    Lanes<T> pairs[R / 2], fours[R / 4];
    for (int i = 0; i < R / 2; ++i) fold<T, lanes>(sums[2 * i], sums[2 * i + 1], pairs[i]);
    for (int i = 0; i < R / 4; ++i) fold<T, lanes / 2>(pairs[2 * i], pairs[2 * i + 1], fours[i]);
    if constexpr (R == 8)
      fold<T, lanes / 4>(fours[0], fours[1], all);
    else
      all = fours[0];
  }
  constexpr Index left = lanes / R;
  if constexpr (left >= 16) fold<T, 16>(all, all, all);
  if constexpr (left >= 8) fold<T, 8>(all, all, all);
  if constexpr (left >= 4) fold<T, 4>(all, all, all);
  if constexpr (left >= 2) fold<T, 2>(all, all, all);
  T stored[lanes];
  store<T>(all, stored);
  for (int r = 0; r < R; ++r) values[r] = stored[r];
}

/// The last vector of each row of A begins early enough to be whole; lanes that earlier vectors hold already are zero.
template <class T, int R>
struct Tail {
  Index begin = 0;  ///< first column of the last vector
  Index fresh = 0;  ///< its lanes that no earlier vector holds; 0: there is no such vector
  T a[R][lane_count<T>] = {};

  Tail(const T* a_data, Index stride, Index cols) : begin(cols - lane_count<T>), fresh(cols % lane_count<T>) {
    if (fresh == 0) return;
    for (int r = 0; r < R; ++r) std::copy_n(a_data + r * stride + cols - fresh, fresh, a[r] + lane_count<T> - fresh);
  }
};

template <class T, bool Masked>
[[gnu::always_inline]] inline void load_masked(Lanes<T>& lanes, const T* x, [[maybe_unused]] const T* mask) {
  load<T>(lanes, x);
  if constexpr (Masked) {
    Lanes<T> factor;
    load<T>(factor, mask);
    lanes *= factor;
  }
}

/// Rows i to i + Rows of S = X Aᵀ, R columns. Meanwhile the same rows of `soon` come into the cache.
template <class T, int R, int Rows, bool Masked>
void shrink_rows(const MatrixView<const T>& x, const T* mask, const T* a, Index stride, const Tail<T, R>& tail, Index i,
                 T scale, T* s, Index s_stride, const MatrixView<const T>& soon) {
  Lanes<T> sums[Rows][R] = {};
  const T* row[Rows];
  const T* mask_row[Rows] = {};
  for (int g = 0; g < Rows; ++g) {
    row[g] = x.row(i + g);
    if constexpr (Masked) mask_row[g] = mask + (i + g) * x.cols;
  }
  const auto add = [&](Index column, const T* a_at, Index a_stride) __attribute__((always_inline)) {
    Lanes<T> values[Rows];
    if (column < soon.cols)
      for (int g = 0; g < Rows; ++g) __builtin_prefetch(soon.row(i + g) + column, 1);
    for (int g = 0; g < Rows; ++g)
      load_masked<T, Masked>(values[g], row[g] + column, mask_row[g] + (Masked ? column : 0));
    for (int r = 0; r < R; ++r) {
      Lanes<T> factor;
      load<T>(factor, a_at + r * a_stride);
      for (int g = 0; g < Rows; ++g) sums[g][r] += values[g] * factor;
    }
  };
  Index column = 0;
  for (; column + lane_count<T> <= x.cols; column += lane_count<T>) add(column, a + column, stride);
  if (tail.fresh > 0) add(tail.begin, tail.a[0], lane_count<T>);
  for (int g = 0; g < Rows; ++g) {
    T values[R];
    sum_each<T, R>(sums[g], values);
    for (int r = 0; r < R; ++r) s[(i + g) * s_stride + r] = scale * values[r];
  }
}

template <class T, int R, bool Masked>
void shrink(const MatrixView<const T>& x, const T* mask, const T* a, Index stride, T scale, T* s, Index s_stride,
            const MatrixView<const T>& soon) {
  const Tail<T, R> tail(a, stride, x.cols);
  Index i = 0;
  for (; i + 2 <= x.rows; i += 2) shrink_rows<T, R, 2, Masked>(x, mask, a, stride, tail, i, scale, s, s_stride, soon);
  for (; i < x.rows; ++i) shrink_rows<T, R, 1, Masked>(x, mask, a, stride, tail, i, scale, s, s_stride, soon);
}

/// Columns [column, column + Vectors lanes) of Y += S A.
template <class T, int R, int Vectors, bool Masked>
void expand_columns(const T* s, Index s_stride, T scale, const T* a, Index stride, const T* mask, Index column,
                    const MatrixView<T>& y) {
  Lanes<T> factors[R][Vectors];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < Vectors; ++v) {
      load<T>(factors[r][v], a + r * stride + v * lane_count<T>);
      factors[r][v] *= scale;
    }
  for (Index i = 0; i < y.rows; ++i) {
    const T* weights = s + i * s_stride;
    T* to = y.row(i) + column;
    Lanes<T> sums[Vectors] = {};
    if constexpr (!Masked)
      for (int v = 0; v < Vectors; ++v) load<T>(sums[v], to + v * lane_count<T>);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < Vectors; ++v) sums[v] += factors[r][v] * weights[r];
    if constexpr (Masked)
      for (int v = 0; v < Vectors; ++v) {
        Lanes<T> before, factor;
        load<T>(before, to + v * lane_count<T>);
        load<T>(factor, mask + i * y.cols + column + v * lane_count<T>);
        sums[v] = before + sums[v] * factor;
      }
    for (int v = 0; v < Vectors; ++v) store<T>(sums[v], to + v * lane_count<T>);
  }
}

template <class T, int R, bool Masked>
void expand(const T* s, Index s_stride, T scale, const T* a, Index stride, const T* mask, const MatrixView<T>& y) {
  constexpr Index lanes = lane_count<T>;
  const Tail<T, R> tail(a, stride, y.cols);
  Index column = 0;
  for (; column + 2 * lanes <= y.cols; column += 2 * lanes)
    expand_columns<T, R, 2, Masked>(s, s_stride, scale, a + column, stride, mask, column, y);
  for (; column + lanes <= y.cols; column += lanes)
    expand_columns<T, R, 1, Masked>(s, s_stride, scale, a + column, stride, mask, column, y);
  if (tail.fresh > 0) expand_columns<T, R, 1, Masked>(s, s_stride, scale, tail.a[0], lanes, mask, tail.begin, y);
}

/// Columns [column, column + Vectors lanes) of G += Sᵀ X; of the last vector only the last `fresh` lanes.
template <class T, int R, int Vectors, bool Masked>
void gather_columns(const T* s, Index s_stride, const MatrixView<const T>& x, const T* mask, Index column, Index fresh,
                    T* gradient, Index stride) {
  Lanes<T> sums[R][Vectors] = {};
  for (Index i = 0; i < x.rows; ++i) {
    const T* weights = s + i * s_stride;
    Lanes<T> values[Vectors];
    for (int v = 0; v < Vectors; ++v)
      load_masked<T, Masked>(values[v], x.row(i) + column + v * lane_count<T>,
                             Masked ? mask + i * x.cols + column + v * lane_count<T> : mask);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < Vectors; ++v) sums[r][v] += values[v] * weights[r];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < Vectors; ++v) {
      T* to = gradient + r * stride + column + v * lane_count<T>;
      if (fresh == lane_count<T>) {
        Lanes<T> before;
        load<T>(before, to);
        store<T>(before + sums[r][v], to);
      } else {
        T values[lane_count<T>];
        store<T>(sums[r][v], values);
        for (Index lane = lane_count<T> - fresh; lane < lane_count<T>; ++lane) to[lane] += values[lane];
      }
    }
}

template <class T, int R, bool Masked>
void gather(const T* s, Index s_stride, const MatrixView<const T>& x, const T* mask, T* gradient, Index stride) {
  constexpr Index lanes = lane_count<T>;
  Index column = 0;
  for (; column + 2 * lanes <= x.cols; column += 2 * lanes)
    gather_columns<T, R, 2, Masked>(s, s_stride, x, mask, column, lanes, gradient, stride);
  for (; column + lanes <= x.cols; column += lanes)
    gather_columns<T, R, 1, Masked>(s, s_stride, x, mask, column, lanes, gradient, stride);
  if (column < x.cols)
    gather_columns<T, R, 1, Masked>(s, s_stride, x, mask, x.cols - lanes, x.cols - column, gradient, stride);
}

/// Calls body(R, first) with R = 8, 4, 2, 1 as a constant, until `rank` ranks are covered.
template <class Body>
void for_ranks(Index rank, Body&& body) {
  Index first = 0;
  for (; first + 8 <= rank; first += 8) body(std::integral_constant<int, 8>{}, first);
  if (first + 4 <= rank) body(std::integral_constant<int, 4>{}, std::exchange(first, first + 4));
  if (first + 2 <= rank) body(std::integral_constant<int, 2>{}, std::exchange(first, first + 2));
  if (first < rank) body(std::integral_constant<int, 1>{}, first);
}

}  // namespace thin

/// S = scale · (mask ∘ X) Aᵀ. `mask` is (rows, cols) without gaps, or null. `soon` are the rows that the caller touches
/// next, as many as X has; they are fetched in passing.
template <class T>
void thin_shrink(MatrixView<const T> x, const T* mask, MatrixView<const T> a, T scale, MatrixView<T> s,
                 MatrixView<const T> soon = {}) {
  thin::for_ranks(a.rows, [&](auto ranks, Index first) {
    if (mask != nullptr)
      thin::shrink<T, ranks(), true>(x, mask, a.row(first), a.stride, scale, s.data + first, s.stride, soon);
    else
      thin::shrink<T, ranks(), false>(x, mask, a.row(first), a.stride, scale, s.data + first, s.stride, soon);
  });
}

/// Y += scale · mask ∘ (S A).
template <class T>
void thin_expand(MatrixView<const T> s, T scale, MatrixView<const T> a, const T* mask, MatrixView<T> y) {
  thin::for_ranks(a.rows, [&](auto ranks, Index first) {
    if (mask != nullptr)
      thin::expand<T, ranks(), true>(s.data + first, s.stride, scale, a.row(first), a.stride, mask, y);
    else
      thin::expand<T, ranks(), false>(s.data + first, s.stride, scale, a.row(first), a.stride, mask, y);
  });
}

/// G += Sᵀ (mask ∘ X).
template <class T>
void thin_gather(MatrixView<const T> s, MatrixView<const T> x, const T* mask, MatrixView<T> gradient) {
  thin::for_ranks(gradient.rows, [&](auto ranks, Index first) {
    if (mask != nullptr)
      thin::gather<T, ranks(), true>(s.data + first, s.stride, x, mask, gradient.row(first), gradient.stride);
    else
      thin::gather<T, ranks(), false>(s.data + first, s.stride, x, mask, gradient.row(first), gradient.stride);
  });
}

/// to = fromᵀ, for the thin factor whose ranks are its columns.
template <class T>
void thin_transpose(MatrixView<const T> from, MatrixView<T> to) {
  for (Index i = 0; i < from.rows; ++i)
    for (Index j = 0; j < from.cols; ++j) to(j, i) = from(i, j);
}

}  // namespace fedlora::cpu
