// SPDX-License-Identifier: Apache-2.0
// Linear layers over a frozen matrix, with and without low-rank terms. The base product is one GEMM over all rows; each
// term adds thin products over its own rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "fedlora/backend/cpu/arena.hpp"
#include "fedlora/backend/cpu/loops.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// C = alpha · A Bᵀ + beta · C.
template <class Gemm, class T>
void multiply_nt(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c, T beta = T(0), T alpha = T(1)) {
  Gemm::template multiply<T>(false, true, c.rows, c.cols, a.cols, alpha, a.data, a.stride, b.data, b.stride, beta,
                             c.data, c.stride);
}

/// C = alpha · A B + beta · C.
template <class Gemm, class T>
void multiply_nn(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c, T beta = T(0), T alpha = T(1)) {
  Gemm::template multiply<T>(false, false, c.rows, c.cols, a.cols, alpha, a.data, a.stride, b.data, b.stride, beta,
                             c.data, c.stride);
}

/// C = alpha · Aᵀ B + beta · C.
template <class Gemm, class T>
void multiply_tn(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c, T beta = T(0), T alpha = T(1)) {
  Gemm::template multiply<T>(true, false, c.rows, c.cols, a.rows, alpha, a.data, a.stride, b.data, b.stride, beta,
                             c.data, c.stride);
}

/// y = x Wᵀ (+ bias); W is (out, in).
template <class Gemm, class Level, class T>
void linear_forward(MatrixView<const T> x, MatrixView<const T> w, const T* bias, MatrixView<T> y) {
  multiply_nt<Gemm>(x, w, y);
  if (bias == nullptr) return;
  for (Index i = 0; i < y.rows; ++i)  // afterwards: a product that adds to its output reads it at a worse time
    Level::template loops<T>().add_row(bias, y.cols, y.row(i));
}

/// result = a ∘ b over the rows of b; `a` may have more.
template <class Level, class T>
void multiply_elements(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> result) {
  for (Index i = 0; i < b.rows; ++i) Level::template loops<T>().multiply_row(a.row(i), b.row(i), b.cols, result.row(i));
}

/// mask = 0 or the dropout's scale for the `mask.rows` rows of a batch from `begin`.
template <class Level, class T>
void low_rank_mask(const LowRankTerm<T>& term, Index begin, MatrixView<T> mask) {
  for (Index i = 0; i < mask.rows; ++i)
    Level::template loops<T>().dropout_mask(term.dropout, static_cast<std::uint32_t>(term.row_numbers[begin + i]), 0,
                                            mask.cols, mask.row(i));
}

/// to = fromᵀ, for the thin factor whose ranks are its columns.
template <class Level, class T>
void transpose_factor(MatrixView<const T> from, MatrixView<T> to) {
  for (Index i = 0; i < from.rows; ++i)
    for (Index j = 0; j < from.cols; ++j) to(j, i) = from(i, j);
}

/// Whether the thin products are used for these widths.
template <class T>
bool is_thin(const Loops<T>& loops, Index rank, Index in, Index out) {
  return rank <= thin_ranks && in >= loops.lanes && out >= loops.lanes;
}

/// S = dropout(x) Aᵀ, then y += scale · S Bᵀ, over the term's rows. `s` is (rows of x, rank) and is kept for backward.
template <class Gemm, class Level, class T>
void low_rank_forward(MatrixView<const T> x, const LowRankTerm<T>& term, MatrixView<T> s, MatrixView<T> y,
                      Arena<T>& arena) {
  const Loops<T>& loops = Level::template loops<T>();
  const auto scope = arena.scope();
  const bool thin = is_thin(loops, term.rank(), x.cols, y.cols);
  const Index height = std::min(term.end - term.begin, thin_rows);
  MatrixView<T> mask, dropped, b;
  if (term.dropout) mask = arena.matrix(height, x.cols);
  if (term.dropout && !thin) dropped = arena.matrix(height, x.cols);
  if (thin) {
    b = arena.matrix(term.rank(), y.cols);
    transpose_factor<Level, T>(term.b, b);
  }
  for (Index begin = term.begin; begin < term.end; begin += height) {
    const Index end = std::min(term.end, begin + height);
    MatrixView<const T> x_rows = x.rows_between(begin, end);
    const MatrixView<T> s_rows = s.rows_between(begin, end);
    if (term.dropout) low_rank_mask<Level>(term, begin, mask.rows_between(0, end - begin));
    if (thin) {
      loops.thin_shrink(x_rows, mask.data, term.a, T(1), s_rows, y.rows_between(begin, end));
      loops.thin_expand(s_rows, term.scale, b, nullptr, y.rows_between(begin, end));
      continue;
    }
    if (term.dropout) {
      multiply_elements<Level, T>(mask, x_rows, dropped.rows_between(0, end - begin));
      x_rows = dropped.rows_between(0, end - begin);
    }
    multiply_nt<Gemm, T>(x_rows, term.a, s_rows);
    multiply_nt<Gemm, T>(s_rows, term.b, y.rows_between(begin, end), T(1), term.scale);
  }
}

/// Given dy, over the term's rows: grad_b += scale · dyᵀ S, dS = scale · dy B, grad_a += dSᵀ dropout(x), and, unless dx
/// is empty, dx += mask ∘ (dS A). The mask is drawn again, not stored.
template <class Gemm, class Level, class T>
void low_rank_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> s, const LowRankTerm<T>& term,
                       MatrixView<T> dx, Arena<T>& arena) {
  const Loops<T>& loops = Level::template loops<T>();
  const auto scope = arena.scope();
  const bool thin = is_thin(loops, term.rank(), x.cols, dy.cols);
  const Index height = std::min(term.end - term.begin, thin_rows);
  const MatrixView<T> ds = arena.matrix(height, term.rank());
  MatrixView<T> mask, product, b, grad_b;
  if (term.dropout) mask = arena.matrix(height, x.cols);
  if (term.dropout && !thin) product = arena.matrix(height, x.cols);
  if (thin) {
    b = arena.matrix(term.rank(), dy.cols);
    transpose_factor<Level, T>(term.b, b);
    grad_b = arena.matrix(term.rank(), dy.cols);
    std::fill_n(grad_b.data, grad_b.size(), T(0));
  }
  for (Index begin = term.begin; begin < term.end; begin += height) {
    const Index end = std::min(term.end, begin + height);
    const MatrixView<const T> dy_rows = dy.rows_between(begin, end);
    const MatrixView<const T> s_rows = s.rows_between(begin, end);
    const MatrixView<T> ds_rows = ds.rows_between(0, end - begin);
    MatrixView<const T> x_rows = x.rows_between(begin, end);
    MatrixView<T> dx_rows;
    if (!dx.empty()) dx_rows = dx.rows_between(begin, end);
    if (term.dropout) low_rank_mask<Level>(term, begin, mask.rows_between(0, end - begin));
    if (thin) {
      loops.thin_gather(s_rows, dy_rows, nullptr, grad_b);
      loops.thin_shrink(dy_rows, nullptr, b, term.scale, ds_rows, x_rows);
      loops.thin_gather(ds_rows, x_rows, mask.data, term.grad_a);
      if (!dx.empty()) loops.thin_expand(ds_rows, T(1), term.a, mask.data, dx_rows);
      continue;
    }
    multiply_tn<Gemm, T>(dy_rows, s_rows, term.grad_b, T(1), term.scale);
    multiply_nn<Gemm, T>(dy_rows, term.b, ds_rows, T(0), term.scale);
    if (!term.dropout) {
      multiply_tn<Gemm, T>(ds_rows, x_rows, term.grad_a, T(1));
      if (!dx.empty()) multiply_nn<Gemm, T>(ds_rows, term.a, dx_rows, T(1));
      continue;
    }
    const MatrixView<T> product_rows = product.rows_between(0, end - begin);
    multiply_elements<Level, T>(mask, x_rows, product_rows);
    multiply_tn<Gemm, T>(ds_rows, product_rows, term.grad_a, T(1));
    if (dx.empty()) continue;
    multiply_nn<Gemm, T>(ds_rows, term.a, product_rows);
    multiply_elements<Level, T>(mask, product_rows, product_rows);
    for (Index i = 0; i < dx_rows.rows; ++i) loops.add_row(product_rows.row(i), dx_rows.cols, dx_rows.row(i));
  }
  if (thin)
    for (Index j = 0; j < grad_b.cols; ++j)
      for (Index r = 0; r < grad_b.rows; ++r) term.grad_b(j, r) += term.scale * grad_b(r, j);
}

}  // namespace fedlora::cpu
