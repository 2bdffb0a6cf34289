// SPDX-License-Identifier: Apache-2.0
// Products with a thin factor, a few ranks wide: S = X Aᵀ, Y += S A, G += Sᵀ X. A general GEMM spends its time packing
// the wide operand for them; these read it once, row by row. With a mask (0 or the dropout's scale, element by element)
// they see mask ∘ X, or add mask ∘ (S A). Sums depend on the shapes alone.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/backend/cpu/tile.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// Above this rank a general GEMM is at least as fast.
inline constexpr Index thin_ranks = 32;

/// Rows that are taken together: their operands stay in the cache from one thin product to the next.
inline constexpr Index thin_rows = 32;

inline namespace FEDLORA_CPU_LEVEL {
namespace thin {

/// Ranks whose sums, for two rows of X, are in registers at once.
inline constexpr int ranks = Level::registers >= 32 ? 8 : 4;

/// The last vector of each row of A begins early enough to be whole; lanes that earlier vectors hold already are zero.
template <class T>
struct Tail {
  Index begin = 0;                 ///< first column of the last vector
  Index fresh = 0;                 ///< its lanes that no earlier vector holds; 0: there is no such vector
  T a[thin_ranks][lane_count<T>];  ///< of A's ranks

  explicit Tail(const MatrixView<const T>& factor)
      : begin(factor.cols - lane_count<T>), fresh(factor.cols % lane_count<T>) {
    if (fresh == 0) return;
    for (Index r = 0; r < factor.rows; ++r) {
      std::fill_n(a[r], lane_count<T> - fresh, T(0));
      std::copy_n(factor.row(r) + factor.cols - fresh, fresh, a[r] + lane_count<T> - fresh);
    }
  }
};

template <class T, bool Masked>
[[gnu::always_inline]] inline void load_masked(Lanes<T>& lanes, const T* x, [[maybe_unused]] const T* mask) {
  load(lanes, x);
  if constexpr (Masked) {
    Lanes<T> factor;
    load(factor, mask);
    lanes *= factor;
  }
}

/// Ranks [first, first + R) of rows i to i + Rows of S = X Aᵀ. Meanwhile the same rows of `prefetched` come into the
/// cache.
template <class T, int R, int Rows, bool Masked>
[[gnu::noinline]] void shrink_rows(const MatrixView<const T>& x, const T* mask, const MatrixView<const T>& a,
                                   const Tail<T>& tail, Index first, Index i, T scale, const MatrixView<T>& s,
                                   const MatrixView<const T>& prefetched) {
  Lanes<T> sums[Rows][R] = {};
  const Index x_stride = x.stride;
  const Index mask_stride = x.cols;
  const auto add = [&](const T* values_at, const T* mask_at, const T* a_at, Index a_stride)
      __attribute__((always_inline)) {
    Lanes<T> values[Rows];
    each<Rows>([&](auto g) __attribute__((always_inline)) {
      load_masked<T, Masked>(values[g], values_at + g * x_stride, mask_at + (Masked ? g * mask_stride : 0));
    });
    each<R>([&](auto r) __attribute__((always_inline)) {
      Lanes<T> factor;
      load(factor, a_at + r * a_stride);
      each<Rows>([&](auto g) __attribute__((always_inline)) { sums[g][r] += values[g] * factor; });
    });
  };
  const T* const row = x.row(i);
  const T* const mask_row = mask + (Masked ? i * mask_stride : 0);
  const T* const factors = a.row(first);
  const Index whole = x.cols - x.cols % lane_count<T>;
  Index column = 0;
  if (first == 0 && !Masked)  // with a mask there are too few registers for one pointer more
    for (const Index end = std::min(whole, prefetched.cols); column < end; column += lane_count<T>) {
      each<Rows>([&](auto g) __attribute__((always_inline)) { __builtin_prefetch(prefetched.row(i + g) + column, 1); });
      add(row + column, mask_row + (Masked ? column : 0), factors + column, a.stride);
    }
  for (; column < whole; column += lane_count<T>)
    add(row + column, mask_row + (Masked ? column : 0), factors + column, a.stride);
  if (tail.fresh > 0) add(row + tail.begin, mask_row + (Masked ? tail.begin : 0), tail.a[first], lane_count<T>);
  each<Rows>([&](auto g) __attribute__((always_inline)) {
    T values[R];
    sum_each(sums[g], values);
    each<R>([&](auto r) __attribute__((always_inline)) { s(i + g, first + r) = scale * values[r]; });
  });
}

/// Calls body(R, first) with R = `ranks` and then smaller powers of two as a constant, until `rank` ranks are covered.
template <class Body>
[[gnu::always_inline]] inline void for_ranks(Index rank, Body&& body) {
  Index first = 0;
  for (; first + ranks <= rank; first += ranks) body(std::integral_constant<int, ranks>{}, first);
  if constexpr (ranks > 4)
    if (first + 4 <= rank) body(std::integral_constant<int, 4>{}, std::exchange(first, first + 4));
  if (first + 2 <= rank) body(std::integral_constant<int, 2>{}, std::exchange(first, first + 2));
  if (first < rank) body(std::integral_constant<int, 1>{}, first);
}

template <class T, bool Masked>
void shrink(const MatrixView<const T>& x, const T* mask, const MatrixView<const T>& a, T scale, const MatrixView<T>& s,
            const MatrixView<const T>& prefetched) {
  const Tail<T> tail(a);
  Index i = 0;
  for (; i + 2 <= x.rows; i += 2)  // all ranks of two rows, which are in the first cache from the second rank on
    for_ranks(a.rows, [&](auto count, Index first) {
      shrink_rows<T, count(), 2, Masked>(x, mask, a, tail, first, i, scale, s, prefetched);
    });
  for (; i < x.rows; ++i)
    for_ranks(a.rows, [&](auto count, Index first) {
      shrink_rows<T, count(), 1, Masked>(x, mask, a, tail, first, i, scale, s, prefetched);
    });
}

}  // namespace thin

/// S = scale · (mask ∘ X) Aᵀ. `mask` is (rows, cols) without gaps, or null. `prefetched` are the rows that the caller
/// touches next, as many as X has, or none; they are fetched in passing.
template <class T>
void thin_shrink(const MatrixView<const T>& x, const T* mask, const MatrixView<const T>& a, T scale,
                 const MatrixView<T>& s, const MatrixView<const T>& prefetched) {
  if (mask != nullptr)
    thin::shrink<T, true>(x, mask, a, scale, s, prefetched);
  else
    thin::shrink<T, false>(x, mask, a, scale, s, prefetched);
}

/// Y += scale · mask ∘ (S A).
template <class T>
void thin_expand(const MatrixView<const T>& s, T scale, const MatrixView<const T>& a, const T* mask,
                 const MatrixView<T>& y) {
  const SmallProduct<T> product{.left = s.data,
                                .left_stride = s.stride,
                                .right = a.data,
                                .right_stride = a.stride,
                                .inner = a.rows,
                                .out = y.data,
                                .out_stride = y.stride,
                                .into = mask == nullptr ? Into::add : Into::add_masked,
                                .scale = scale,
                                .mask = mask,
                                .mask_stride = y.cols};
  multiply_small<Left::rows>(product, y.rows, y.cols);
}

/// G += Sᵀ (mask ∘ X).
template <class T>
void thin_gather(const MatrixView<const T>& s, const MatrixView<const T>& x, const T* mask,
                 const MatrixView<T>& gradient) {
  const SmallProduct<T> product{.left = s.data,
                                .left_stride = s.stride,
                                .right = x.data,
                                .right_stride = x.stride,
                                .inner = x.rows,
                                .out = gradient.data,
                                .out_stride = gradient.stride,
                                .into = Into::add,
                                .mask = mask,
                                .mask_stride = x.cols};
  if (mask != nullptr)
    multiply_small<Left::columns, true>(product, gradient.rows, x.cols);
  else
    multiply_small<Left::columns>(product, gradient.rows, x.cols);
}

}  // namespace FEDLORA_CPU_LEVEL
}  // namespace fedlora::cpu
