// SPDX-License-Identifier: Apache-2.0
// Linear layers over a frozen matrix, with and without low-rank terms. The base product is one GEMM over all rows; each
// term adds thin products over its own rows.
#pragma once

#include <algorithm>
#include <span>

#include "fedlora/backend/cpu/arena.hpp"
#include "fedlora/backend/cpu/dropout.hpp"
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

/// Rows of the dropped-out input that are held at a time.
inline constexpr Index dropout_rows = 64;

/// y = x Wᵀ (+ bias); W is (out, in). With `beta` 1 the product is added to y.
template <class Gemm, class T>
void linear_forward(MatrixView<const T> x, MatrixView<const T> w, const T* bias, MatrixView<T> y) {
  if (bias != nullptr)
    for (Index i = 0; i < y.rows; ++i) std::copy_n(bias, y.cols, y.row(i));
  multiply_nt<Gemm>(x, w, y, bias != nullptr ? T(1) : T(0));
}

/// S = dropout(x) Aᵀ, then y += scale · S Bᵀ, over the term's rows. `s` is (rows of x, rank) and is kept for backward.
template <class Gemm, class T>
void low_rank_forward(MatrixView<const T> x, const LowRankTerm<T>& term, MatrixView<T> s, MatrixView<T> y,
                      Arena<T>& arena) {
  const Index rows = term.end - term.begin;
  const MatrixView<const T> x_rows = x.rows_between(term.begin, term.end);
  const MatrixView<T> s_rows = s.rows_between(term.begin, term.end);
  if (term.dropout) {
    const auto scope = arena.scope();
    const MatrixView<T> dropped = arena.matrix(std::min(rows, dropout_rows), x.cols);
    for (Index begin = 0; begin < rows; begin += dropout_rows) {
      const Index end = std::min(rows, begin + dropout_rows);
      for (Index i = begin; i < end; ++i)
        dropout_row(term.dropout, static_cast<std::uint32_t>(term.row_numbers[term.begin + i]), 0, x.cols,
                    x_rows.row(i), dropped.row(i - begin));
      multiply_nt<Gemm, T>(dropped.rows_between(0, end - begin), term.a, s_rows.rows_between(begin, end));
    }
  } else {
    multiply_nt<Gemm, T>(x_rows, term.a, s_rows);
  }
  multiply_nt<Gemm, T>(s_rows, term.b, y.rows_between(term.begin, term.end), T(1), term.scale);
}

/// Given dy, over the term's rows: grad_b += scale · dyᵀ S, dS = scale · dy B, grad_a += dSᵀ dropout(x), and, unless dx
/// is empty, dx += mask ∘ (dS A). The mask is drawn again, not stored.
template <class Gemm, class T>
void low_rank_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> s, const LowRankTerm<T>& term,
                       MatrixView<T> dx, Arena<T>& arena) {
  const Index rows = term.end - term.begin;
  const auto scope = arena.scope();
  const MatrixView<const T> dy_rows = dy.rows_between(term.begin, term.end);
  const MatrixView<const T> x_rows = x.rows_between(term.begin, term.end);
  const MatrixView<T> ds = arena.matrix(rows, term.rank());
  multiply_tn<Gemm, T>(dy_rows, s.rows_between(term.begin, term.end), term.grad_b, T(1), term.scale);
  multiply_nn<Gemm, T>(dy_rows, term.b, ds, T(0), term.scale);
  if (!term.dropout) {
    multiply_tn<Gemm, T>(ds, x_rows, term.grad_a, T(1));
    if (!dx.empty()) multiply_nn<Gemm, T>(ds, term.a, dx.rows_between(term.begin, term.end), T(1));
    return;
  }
  const MatrixView<T> block = arena.matrix(std::min(rows, dropout_rows), x.cols);
  for (Index begin = 0; begin < rows; begin += dropout_rows) {
    const Index end = std::min(rows, begin + dropout_rows);
    const MatrixView<T> part = block.rows_between(0, end - begin);
    const MatrixView<const T> ds_part = ds.rows_between(begin, end);
    for (Index i = begin; i < end; ++i)
      dropout_row(term.dropout, static_cast<std::uint32_t>(term.row_numbers[term.begin + i]), 0, x.cols, x_rows.row(i),
                  part.row(i - begin));
    multiply_tn<Gemm, T>(ds_part, part, term.grad_a, T(1));
    if (dx.empty()) continue;
    multiply_nn<Gemm, T>(ds_part, term.a, part);
    for (Index i = begin; i < end; ++i)
      dropout_row_add(term.dropout, static_cast<std::uint32_t>(term.row_numbers[term.begin + i]), 0, x.cols,
                      part.row(i - begin), dx.row(term.begin + i));
  }
}

}  // namespace fedlora::cpu
