// SPDX-License-Identifier: Apache-2.0
// The CPU backend's operations, as one worker has them: in one scalar type, over one GEMM policy and one level's loops,
// in its own memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "fedlora/backend/cpu/arena.hpp"
#include "fedlora/backend/cpu/linear.hpp"
#include "fedlora/backend/cpu/loops.hpp"
#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// Computes in T (float or double) on the calling thread. Every operation is repeatable to the bit for one build: sums
/// have a fixed order that depends on shapes alone. What each one promises is stated here and in the functions it
/// calls; backend/concepts.hpp lists what a runner must have.
template <class T, class Gemm, class Level>
class Runner {
 public:
  Runner() = default;
  /// A backend has nothing that its runners share.
  template <class Backend>
  explicit Runner(const Backend&) {}

  // --- memory: a stack, see Arena ------------------------------------------------------------------------------------
  /// The batch that comes has so many rows.
  void expect(Index) {}
  MatrixView<T> matrix(Index rows, Index cols) { return arena_.matrix(rows, cols); }
  /// A matrix that linear layers will read, or the gradient of one that they wrote.
  MatrixView<T> operand(Index rows, Index cols) { return arena_.matrix(rows, cols); }
  /// What a norm keeps of each row for backward.
  MatrixView<T> statistics(Index rows) { return arena_.matrix(rows, 2); }
  [[nodiscard]] auto scope() { return arena_.scope(); }
  using Mark = typename Arena<T>::Mark;
  Mark mark() const { return arena_.mark(); }
  /// Gives back what was taken since `mark`, which may lie in another function's past; nothing where less is taken.
  void rewind(const Mark& mark) { arena_.rewind(mark); }
  void reset() { arena_.reset(); }
  /// Scalars held, used or not.
  Index capacity() const { return arena_.capacity(); }

  // --- between the host's memory and the operations', which is the same here -----------------------------------------
  /// `table` where operations read it, until `reset`. It must live as long.
  const std::int32_t* place(std::span<const std::int32_t> table) { return table.data(); }
  const T* place(std::span<const T> table) { return table.data(); }
  /// Everything that was placed is there for the operations that follow.
  void flush() {}
  /// The sequences of a batch as attention reads them. `positions` (one per query) is null when queries are all rows in
  /// order; `row_numbers` (one per query) address the dropout of the spans. Both are placed already.
  struct AttentionTable {
    std::span<const AttentionSpan> spans;
    const std::int32_t* positions = nullptr;
    const std::int32_t* row_numbers = nullptr;
  };
  AttentionTable place(std::span<const AttentionSpan> spans, const std::int32_t* positions,
                       const std::int32_t* row_numbers) {
    return {spans, positions, row_numbers};
  }
  /// Parameters as operations read them; `values` must live as long.
  std::span<const T> parameters(std::span<const T> values) { return values; }
  /// Where operations add gradients up that are to be added to `gradient`.
  std::span<T> open_gradient(std::span<T> gradient) { return gradient; }
  /// They are in `gradient` now.
  void close_gradient(std::span<T>) {}
  /// Copies a matrix to `to`, rows one after another.
  void download(MatrixView<const T> from, T* to) const {
    for (Index i = 0; i < from.rows; ++i) std::copy_n(from.row(i), from.cols, to + i * from.cols);
  }

  // --- linear layers -------------------------------------------------------------------------------------------------
  /// y = x Wᵀ (+ bias). x (rows, in), W (out, in), y (rows, out).
  void linear_forward(MatrixView<const T> x, const FrozenMatrix& w, const T* bias, MatrixView<T> y) {
    cpu::linear_forward<Gemm, Level>(x, w.view<T>(), bias, y);
  }

  /// dx = dy W, or dx += dy W when `accumulate`.
  void linear_backward(MatrixView<const T> dy, const FrozenMatrix& w, MatrixView<T> dx, bool accumulate) {
    cpu::multiply_nn<Gemm>(dy, w.view<T>(), dx, accumulate ? T(1) : T(0));
  }

  /// Every part: y = x Wᵀ (+ bias), then S = dropout(x) Aᵀ and y += scale · S Bᵀ over each term's rows.
  void linear_forward(MatrixView<const T> x, std::span<const LinearPart<T>> parts) {
    for (const LinearPart<T>& part : parts) {
      linear_forward(x, *part.weight, part.bias, part.y);
      for (const LowRankTerm<T>& term : part.terms)
        cpu::low_rank_forward<Gemm, Level>(x, term, part.s.left(term.rank()), part.y, arena_);
    }
  }

  /// Given dy of every part: adds the gradients of its terms' A and B and, unless dx is empty, dx = (or, when
  /// `accumulate`, +=) Σ over parts of dy W and of the terms' parts. x may be empty when there is no term.
  void linear_backward(MatrixView<const T> x, std::span<const LinearPart<T>> parts, MatrixView<T> dx, bool accumulate) {
    for (const LinearPart<T>& part : parts) {
      if (!dx.empty()) linear_backward(part.dy, *part.weight, dx, accumulate);
      accumulate = true;
      for (const LowRankTerm<T>& term : part.terms)
        cpu::low_rank_backward<Gemm, Level, T>(part.dy, x, part.s.left(term.rank()), term, dx, arena_);
    }
  }

  /// A trainable linear layer: y = x Wᵀ + bias.
  void dense_forward(MatrixView<const T> x, MatrixView<const T> w, const T* bias, MatrixView<T> y) {
    cpu::linear_forward<Gemm, Level>(x, w, bias, y);
  }

  /// dw += dyᵀ x (unless empty), dbias += Σ dy (unless null), dx = dy W (unless empty).
  void dense_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> w, MatrixView<T> dw, T* dbias,
                      MatrixView<T> dx) {
    if (!dw.empty()) cpu::multiply_tn<Gemm, T>(dy, x, dw, T(1));
    if (dbias != nullptr)
      for (Index i = 0; i < dy.rows; ++i) loops().add_row(dy.row(i), dy.cols, dbias);
    if (!dx.empty()) cpu::multiply_nn<Gemm, T>(dy, w, dx);
  }

  // --- embeddings, rows ----------------------------------------------------------------------------------------------
  /// y[i] = Σ tables[t][ids[t][i]].
  void embed(std::span<const MatrixView<const T>> tables, std::span<const std::int32_t* const> ids, MatrixView<T> y) {
    for (Index i = 0; i < y.rows; ++i) {
      T* row = y.row(i);
      for (std::size_t t = 0; t < tables.size(); ++t) {
        const T* from = tables[t].row(ids[t][i]);
        if (t == 0)
          std::copy_n(from, y.cols, row);
        else
          loops().add_row(from, y.cols, row);
      }
    }
  }

  /// to[i] = from[rows[i]].
  void gather_rows(MatrixView<const T> from, const std::int32_t* rows, MatrixView<T> to) {
    for (Index i = 0; i < to.rows; ++i) std::copy_n(from.row(rows[i]), from.cols, to.row(i));
  }

  /// to[rows[i]] += from[i].
  void scatter_rows_add(MatrixView<const T> from, const std::int32_t* rows, MatrixView<T> to) {
    for (Index i = 0; i < from.rows; ++i) loops().add_row(from.row(i), from.cols, to.row(rows[i]));
  }

  void copy(MatrixView<const T> from, MatrixView<T> to) {
    for (Index i = 0; i < from.rows; ++i) std::copy_n(from.row(i), from.cols, to.row(i));
  }
  void add(MatrixView<const T> from, MatrixView<T> to) {
    for (Index i = 0; i < from.rows; ++i) loops().add_row(from.row(i), from.cols, to.row(i));
  }
  void fill_zero(MatrixView<T> to) {
    for (Index i = 0; i < to.rows; ++i) std::fill_n(to.row(i), to.cols, T(0));
  }

  /// y[s] = mean of x over the rows of sequence s.
  void mean_rows(MatrixView<const T> x, const std::int32_t* cu_seqlens, MatrixView<T> y) {
    for (Index s = 0; s < y.rows; ++s) {
      T* row = y.row(s);
      std::fill_n(row, y.cols, T(0));
      for (Index i = cu_seqlens[s]; i < cu_seqlens[s + 1]; ++i) loops().add_row(x.row(i), x.cols, row);
      const T factor = T(1) / static_cast<T>(cu_seqlens[s + 1] - cu_seqlens[s]);
      for (Index j = 0; j < y.cols; ++j) row[j] *= factor;
    }
  }

  /// dx[i] = dy[s] / length(s) for every row i of sequence s.
  void mean_rows_backward(MatrixView<const T> dy, const std::int32_t* cu_seqlens, MatrixView<T> dx) {
    for (Index s = 0; s < dy.rows; ++s) {
      const T factor = T(1) / static_cast<T>(cu_seqlens[s + 1] - cu_seqlens[s]);
      for (Index i = cu_seqlens[s]; i < cu_seqlens[s + 1]; ++i)
        for (Index j = 0; j < dx.cols; ++j) dx(i, j) = dy(s, j) * factor;
    }
  }

  // --- norms, activations, dropout -----------------------------------------------------------------------------------
  void norm_forward(NormKind kind, MatrixView<const T> x, const T* gamma, const T* beta, double eps, MatrixView<T> y,
                    MatrixView<T> statistics) {
    loops().norm_forward(kind, x, gamma, beta, static_cast<T>(eps), y, statistics);
  }

  void norm_backward(NormKind kind, MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> statistics,
                     const T* gamma, MatrixView<T> dx, bool accumulate) {
    loops().norm_backward(kind, dy, x, statistics, gamma, dx, accumulate);
  }

  /// x ← dropout(x + bias) + residual, in place, over rows [begin, end).
  void add_residual(MatrixView<T> x, const T* bias, MatrixView<const T> residual, const Dropout& dropout,
                    const std::int32_t* row_numbers, Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      loops().residual_row(x.row(i), x.cols, bias, residual.row(i), dropout, row_numbers[i]);
  }

  /// to = mask · scale · from over rows [begin, end); `to` may be `from`.
  void dropout(const Dropout& dropout, MatrixView<const T> from, MatrixView<T> to, const std::int32_t* row_numbers,
               Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      loops().dropout_row(dropout, static_cast<std::uint32_t>(row_numbers[i]), 0, from.cols, from.row(i), to.row(i));
  }

  void activation_forward(Activation activation, MatrixView<const T> x, const T* bias, MatrixView<T> y) {
    loops().activation_forward(activation, x, bias, y);
  }
  void activation_backward(Activation activation, MatrixView<const T> x, const T* bias, MatrixView<T> dy) {
    loops().activation_backward(activation, x, bias, dy);
  }
  void gated_forward(Activation activation, MatrixView<const T> gate, MatrixView<const T> up, MatrixView<T> y) {
    loops().gated_forward(activation, gate, up, y);
  }
  void gated_backward(Activation activation, MatrixView<const T> gate, MatrixView<const T> up, MatrixView<const T> dy,
                      MatrixView<T> dgate, MatrixView<T> dup) {
    loops().gated_backward(activation, gate, up, dy, dgate, dup);
  }

  // --- attention -----------------------------------------------------------------------------------------------------
  /// out = attention(q, k, v); see cpu::attention_forward.
  void attention_forward(const AttentionShape& shape, const AttentionTable& table, MatrixView<const T> q,
                         MatrixView<const T> k, MatrixView<const T> v, MatrixView<T> out) {
    const auto scope = arena_.scope();
    T* const scratch = attention_scratch(shape, table, false);
    loops().attention_forward(shape, table.spans, q, k, v, table.positions, table.row_numbers, out, scratch);
  }
  void attention_backward(const AttentionShape& shape, const AttentionTable& table, MatrixView<const T> q,
                          MatrixView<const T> k, MatrixView<const T> v, MatrixView<const T> d_out, MatrixView<T> dq,
                          MatrixView<T> dk, MatrixView<T> dv) {
    const auto scope = arena_.scope();
    T* const scratch = attention_scratch(shape, table, true);
    loops().attention_backward(shape, table.spans, q, k, v, table.positions, table.row_numbers, d_out, dq, dk, dv,
                               scratch);
  }

  /// Positions that the rotary tables hold.
  Index rotary_positions() const { return cosines_.rows; }
  /// The rotary tables, (positions, head_dim / 2) each, row after row.
  void set_rotary(Index positions, std::vector<T> cosines, std::vector<T> sines) {
    cosine_values_ = std::move(cosines);
    sine_values_ = std::move(sines);
    const Index half = static_cast<Index>(cosine_values_.size()) / positions;
    cosines_ = {cosine_values_.data(), positions, half};
    sines_ = {sine_values_.data(), positions, half};
  }
  /// Rotary positions, in place; `inverse` for the backward pass. See cpu::rotate.
  void rotate(MatrixView<T> x, Index heads, Index head_dim, const std::int32_t* positions, bool inverse) {
    loops().rotate(x, heads, head_dim, positions, cosines_, sines_, inverse);
  }

  // --- losses --------------------------------------------------------------------------------------------------------
  /// logits ← weight · (softmax - one_hot(label)); adds Σ -log softmax[label] to this runner's loss. A row with a
  /// negative label counts for nothing and becomes zero.
  void cross_entropy(MatrixView<T> logits, const std::int32_t* labels, double weight) {
    loss_ += loops().cross_entropy(logits, labels, static_cast<T>(weight));
  }
  /// outputs ← weight · 2 (output - target) / columns; adds Σ of the rows' means of (output - target)² to this runner's
  /// loss. `targets` are placed, as many rows of as many columns.
  void mean_squared_error(MatrixView<T> outputs, const T* targets, double weight) {
    loss_ += loops().mean_squared_error(outputs, targets, static_cast<T>(weight));
  }
  /// logits ← weight · (σ(logit) - target) / columns; adds Σ of the rows' means of the binary cross-entropy. As above.
  void binary_cross_entropy(MatrixView<T> logits, const T* targets, double weight) {
    loss_ += loops().binary_cross_entropy(logits, targets, static_cast<T>(weight));
  }
  /// The loss since the last call.
  double take_loss() { return std::exchange(loss_, 0.0); }

  /// Losses and best columns of every row; logits are left as they are.
  void row_losses(MatrixView<const T> logits, const std::int32_t* labels, std::span<RowLoss> losses) {
    for (Index i = 0; i < logits.rows; ++i) {
      const T* const row = logits.row(i);
      losses[static_cast<std::size_t>(i)] = {
          loops().cross_entropy_loss(MatrixView<const T>(row, 1, logits.cols), labels + i),
          static_cast<std::int32_t>(std::max_element(row, row + logits.cols) - row)};
    }
  }

 private:
  static constexpr const Loops<T>& loops() { return Level::template loops<T>(); }

  T* attention_scratch(const AttentionShape& shape, const AttentionTable& table, bool backward) {
    Index queries = 0, keys = 0;
    for (const AttentionSpan& span : table.spans) {
      queries = std::max(queries, span.query_end - span.query_begin);
      keys = std::max(keys, span.key_end - span.key_begin);
    }
    return arena_.take(loops().attention_scratch(shape, queries, keys, backward));
  }

  Arena<T> arena_;
  std::vector<T> cosine_values_, sine_values_;
  MatrixView<const T> cosines_, sines_;
  double loss_ = 0;
};

}  // namespace fedlora::cpu
