// SPDX-License-Identifier: Apache-2.0
// A group of frozen linear layers with low-rank terms, forward and backward: cuBLAS's base products and what stands
// around them, by the kernels of low_rank_*.cuh or, for comparison, by plain products.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/context.cuh"
#include "fedlora/backend/cuda/low_rank_augmented.cuh"
#include "fedlora/backend/cuda/low_rank_backward.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "fedlora/backend/cuda/low_rank_masked.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"
#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Columns behind the rows of a matrix that linear layers read: the padded ranks of q, k and v up to 16, or of gate and
/// up to 24, or of one layer up to 48. Groups of higher ranks add S Bᵀ to the result.
inline constexpr Index augmented_columns = 48;

/// The rows of a batch, and as many as a runner's matrices have room for: products take the spare rows along, so that
/// batches of nearly the same size are the same products to cuBLAS, its plans and a captured graph. What is in the
/// spare rows reaches no result.
struct BatchRows {
  Index rows = 0;
  Index bucket = 0;

  BatchRows() = default;
  explicit BatchRows(Index rows_) : rows(rows_) {
    Index unit = 64;  // then an eighth of the power of two below
    while (16 * unit <= rows) unit *= 2;
    bucket = divide_up(rows, unit) * unit;
  }

  /// `count`, or the bucket if these are the batch's rows.
  Index room(Index count) const { return count == rows ? bucket : count; }
};

/// The linear layers of one runner. T is float, Bf16 or Half.
template <class T>
class Linear {
 public:
  using Term = LowRankTerm<T, float>;
  using Part = LinearPart<T, float>;

  Linear(const Options& options, const DeviceMemory& memory, Stream stream)
      : math_(options.math),
        path_(options.low_rank),
        slot_bytes_(options.slot_bytes),
        memory_(memory),
        stream_(stream) {}

  /// Every part: y = x Wᵀ (+ bias) and, over each term's rows, S = dropout(x) Aᵀ and y += scale · S Bᵀ. Where x has
  /// spare columns, S may be written there as well. The same bits in every run.
  void forward(Blas& blas, Arena& arena, MatrixView<const T> x, std::span<const Part> parts) {
    if (path_ == LowRankPath::plain || !fits(parts)) return plain_forward(blas, arena, x, parts);
    const std::vector<Group> groups = groups_of(parts);
    for (const Group& group : groups) shrink(arena, x, parts, group);
    const Index behind = columns_behind(x, parts, groups, Augmented::by_columns);
    if (behind > 0) {
      Index column = 0;
      for (const Member& member : groups[0].members) {
        const Part& part = parts[member.part];
        const Index padded = padded_rank(member.term->rank());
        // What dropout and rounding have made of S is what backward will see: both are copies of one.
        copy_padded(part.s.left(member.term->rank()), behind_rows(x, column, padded));
        column += padded;
      }
    }
    Index column = 0;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      const Part& part = parts[p];
      const Term* const term = behind > 0 ? term_of(groups[0], p) : nullptr;
      if (term != nullptr) {
        augmented_forward(blas, x, part, *term, column, behind);
        column += padded_rank(term->rank());
        continue;
      }
      base_forward(blas, x, part.weight->template view<T>(), part.bias, part.y);
      if (behind > 0) continue;
      for (const Term& each : part.terms) low_rank_expand<T>(part.s.left(each.rank()), each, part.y, stream_, math_);
    }
  }

  /// Given dy of every part: adds the gradients of its terms' A and B and, unless dx is empty, dx = (or, when
  /// `accumulate`, +=) Σ over parts of dy W and of the terms' parts. Where a part's dy has spare columns, dS may be
  /// written there. The same bits in every run.
  void backward(Blas& blas, Arena& arena, MatrixView<const T> x, std::span<const Part> parts, MatrixView<T> dx,
                bool accumulate) {
    if (path_ == LowRankPath::plain || !fits(parts)) return plain_backward(blas, arena, x, parts, dx, accumulate);
    const std::vector<Group> groups = groups_of(parts);
    std::vector<bool> behind(parts.size(), false);  // whose dS stands behind dY's rows
    for (std::size_t p = 0; !dx.empty() && p < parts.size(); ++p)
      behind[p] = groups.size() == 1 && term_of(groups[0], p) != nullptr &&
                  columns_behind(parts[p], *term_of(groups[0], p), groups[0]) > 0;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      if (dx.empty() || behind[p]) continue;
      base_backward(blas, parts[p].dy, parts[p].weight->template view<T>(), dx, accumulate);
      accumulate = true;
    }
    for (const Group& group : groups) adapter_backward(arena, x, parts, group, behind, dx);
    for (std::size_t p = 0; p < parts.size(); ++p) {
      if (!behind[p]) continue;
      augmented_backward(blas, parts[p], *term_of(groups[0], p), dx, accumulate);
      accumulate = true;
    }
  }

  /// y = x Wᵀ (+ bias).
  void base_forward(Blas& blas, MatrixView<const T> x, MatrixView<const T> w, const T* bias, MatrixView<T> y) {
    const Index spare = std::min(x.spare_rows, y.spare_rows);
    blas.multiply_bias<T>(with_rows(x, spare), w, bias, with_rows(y, spare), math_);
  }

  /// dx = dy W, or dx += dy W when `accumulate`.
  void base_backward(Blas& blas, MatrixView<const T> dy, MatrixView<const T> w, MatrixView<T> dx, bool accumulate) {
    const Index spare = std::min(dy.spare_rows, dx.spare_rows);
    multiply(blas, false, false, 1.0f, with_rows(dy, spare), w, accumulate ? 1.0f : 0.0f, with_rows(dx, spare));
  }

 private:
  /// A term and the part it belongs to.
  struct Member {
    std::size_t part;
    const Term* term;
  };

  /// Terms over the same rows.
  struct Group {
    Index begin, end;
    std::vector<Member> members;
  };

  static bool fits(std::span<const Part> parts) {
    if (parts.size() > static_cast<std::size_t>(largest_group)) return false;
    for (const Part& part : parts)
      for (const Term& term : part.terms)
        if (term.rank() > largest_rank) return false;
    return true;
  }

  static std::vector<Group> groups_of(std::span<const Part> parts) {
    std::vector<Group> groups;
    for (std::size_t p = 0; p < parts.size(); ++p)
      for (const Term& term : parts[p].terms) {
        const auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
          return group.begin == term.begin && group.end == term.end;
        });
        if (same != groups.end())
          same->members.push_back({p, &term});
        else
          groups.push_back({term.begin, term.end, {{p, &term}}});
      }
    return groups;
  }

  static const Term* term_of(const Group& group, std::size_t part) {
    for (const Member& member : group.members)
      if (member.part == part) return member.term;
    return nullptr;
  }

  void shrink(Arena& arena, MatrixView<const T> x, std::span<const Part> parts, const Group& group) {
    ShrinkTerm<T> terms[largest_group];
    TermShape shapes[largest_group];
    std::size_t count = 0;
    for (const Member& member : group.members) {
      shapes[count] = {parts[member.part].weight->rows, member.term->rank()};
      terms[count++] = {*member.term, parts[member.part].s.left(member.term->rank())};
    }
    const auto scope = arena.scope();
    const std::span<std::byte> workspace =
        arena.bytes(low_rank_shrink_group_workspace<T>(group.end - group.begin, x.cols, {shapes, count}));
    low_rank_shrink_group<T>(x, {terms, count}, workspace, stream_, math_);
  }

  void adapter_backward(Arena& arena, MatrixView<const T> x, std::span<const Part> parts, const Group& group,
                        const std::vector<bool>& behind, MatrixView<T> dx) {
    // The terms whose part of dX comes with the base product go apart from those that add it here.
    for (const bool augmented : {false, true}) {
      BackwardTerm<T> terms[largest_group];
      TermShape shapes[largest_group];
      std::size_t count = 0;
      for (const Member& member : group.members) {
        if (behind[member.part] != augmented) continue;
        const Part& part = parts[member.part];
        shapes[count] = {part.dy.cols, member.term->rank()};
        MatrixView<T> ds;
        if (augmented) ds = behind_rows(part.dy, 0, padded_rank(member.term->rank()));
        terms[count++] = {*member.term, part.dy, part.s.left(member.term->rank()), ds};
      }
      if (count == 0) continue;
      const auto scope = arena.scope();
      const std::span<std::byte> workspace =
          arena.bytes(low_rank_backward_group_workspace<T>(group.end - group.begin, x.cols, {shapes, count}));
      low_rank_backward_group<T>(x, {terms, count}, augmented ? MatrixView<T>{} : dx, workspace, stream_, math_);
    }
  }

  // --- [X | S] [W | scale · B]ᵀ and [dY | dS] [W ; A] ----------------------------------------------------------------

  Index rank_limit() const {
    return std::is_same_v<T, float> && math_ == FloatMath::float32 ? augmented_rank_limit_float32
                                                                   : augmented_rank_limit;
  }

  /// Columns behind the rows of x for the padded ranks of all parts, or 0 where S Bᵀ is to be added instead.
  Index columns_behind(MatrixView<const T> x, std::span<const Part> parts, const std::vector<Group>& groups,
                       Augmented by) const {
    if (groups.size() != 1 || groups[0].begin != 0 || groups[0].end != x.rows) return 0;
    Index columns = 0;
    for (const Member& member : groups[0].members) columns += padded_rank(member.term->rank());
    if (x.spare_cols < columns) return 0;
    for (const Member& member : groups[0].members) {
      const FrozenMatrix& w = *parts[member.part].weight;
      if (!augmented_is_right(by, x.rows, w.cols, w.rows, columns, false, Slot::nothing, rank_limit()) ||
          !slot_holds(w.rows * (w.cols + columns)))
        return 0;
    }
    return columns;
  }

  /// The same behind the rows of one part's dY.
  Index columns_behind(const Part& part, const Term& term, const Group& group) const {
    const Index columns = padded_rank(term.rank());
    const FrozenMatrix& w = *part.weight;
    const bool right = group.begin == 0 && group.end == part.dy.rows && part.dy.spare_cols >= columns &&
                       augmented_is_right(Augmented::by_rows, part.dy.rows, w.cols, w.rows, columns,
                                          static_cast<bool>(term.dropout), Slot::nothing, rank_limit()) &&
                       slot_holds((w.rows + columns) * w.cols);
    return right ? columns : 0;
  }

  template <class U>
  static MatrixView<U> with_rows(MatrixView<U> matrix, Index more) {
    matrix.rows += more;
    return matrix;
  }

  /// The matrix and the first of its spare columns.
  static MatrixView<const T> with_columns(MatrixView<const T> matrix, Index more) {
    matrix.cols += more;
    return matrix;
  }

  /// `count` of the spare columns, from number `column` on, which may be written though the matrix is constant.
  static MatrixView<T> behind_rows(MatrixView<const T> matrix, Index column, Index count) {
    return {const_cast<T*>(matrix.data) + matrix.cols + column, matrix.rows, count, matrix.stride};
  }

  /// Zeros where `to` is wider.
  void copy_padded(MatrixView<const T> from, MatrixView<T> to) {
    copy<T>(from, to.left(from.cols), stream_);
    if (to.cols > from.cols) fill_zero<T>({to.data + from.cols, to.rows, to.cols - from.cols, to.stride}, stream_);
  }

  bool slot_holds(Index elements) const { return static_cast<std::size_t>(elements) * sizeof(T) <= slot_bytes_; }

  /// The slot as a matrix. It grows to the largest that was asked for.
  MatrixView<T> slot(Index rows, Index cols) {
    constexpr Index unit = 16 / static_cast<Index>(sizeof(T));
    const Index stride = (cols + unit - 1) / unit * unit;
    const auto bytes = static_cast<std::size_t>(rows * stride) * sizeof(T);
    if (slot_.size() < bytes) slot_ = DeviceBuffer(memory_, bytes, "a slot for [W | scale B]", stream_);
    return {slot_.template as<T>(), rows, cols, stride};
  }

  void augmented_forward(Blas& blas, MatrixView<const T> x, const Part& part, const Term& term, Index column,
                         Index columns) {
    const MatrixView<const T> w = part.weight->template view<T>();
    const MatrixView<T> filled = slot(w.rows, w.cols + columns);
    const AugmentedPiece<T> piece{term.b, term.scale, 0, column};
    fill_augmented<T>(Augmented::by_columns, w, {&piece, 1}, filled, stream_);
    base_forward(blas, with_columns(x, columns), filled, part.bias, part.y);
  }

  void augmented_backward(Blas& blas, const Part& part, const Term& term, MatrixView<T> dx, bool accumulate) {
    const MatrixView<const T> w = part.weight->template view<T>();
    const Index columns = padded_rank(term.rank());
    const MatrixView<T> filled = slot(w.rows + columns, w.cols);
    const AugmentedPiece<T> piece{term.a, 1.0f, 0, 0};
    fill_augmented<T>(Augmented::by_rows, w, {&piece, 1}, filled, stream_);
    base_backward(blas, with_columns(part.dy, columns), filled, dx, accumulate);
  }

  // --- one product after another -------------------------------------------------------------------------------------

  /// C = alpha · op(A) op(B) + beta · C.
  template <class C>
  void multiply(Blas& blas, bool transpose_a, bool transpose_b, float alpha, MatrixView<const T> a,
                MatrixView<const T> b, float beta, MatrixView<C> c) {
    blas.multiply<T, C>(transpose_a, transpose_b, c.rows, c.cols, transpose_a ? a.rows : a.cols, alpha, a.data,
                        a.stride, b.data, b.stride, beta, c.data, c.stride, math_);
  }

  /// dropout(x) over the term's rows.
  MatrixView<const T> dropped(Arena& arena, MatrixView<const T> x, const Term& term) {
    const MatrixView<const T> rows = x.rows_between(term.begin, term.end);
    if (!term.dropout) return rows;
    const MatrixView<T> result = arena.matrix<T>(rows.rows, rows.cols);
    dropout<T>(term.dropout, rows, result, term.row_numbers + term.begin, 0, rows.rows, stream_);
    return result;
  }

  void plain_forward(Blas& blas, Arena& arena, MatrixView<const T> x, std::span<const Part> parts) {
    for (const Part& part : parts) {
      base_forward(blas, x, part.weight->template view<T>(), part.bias, part.y);
      for (const Term& term : part.terms) {
        const auto scope = arena.scope();
        const MatrixView<T> s = part.s.left(term.rank()).rows_between(term.begin, term.end);
        multiply<T>(blas, false, true, 1.0f, dropped(arena, x, term), term.a, 0.0f, s);
        multiply<T>(blas, false, true, term.scale, s, term.b, 1.0f, part.y.rows_between(term.begin, term.end));
      }
    }
  }

  void plain_backward(Blas& blas, Arena& arena, MatrixView<const T> x, std::span<const Part> parts, MatrixView<T> dx,
                      bool accumulate) {
    for (const Part& part : parts) {
      if (!dx.empty()) base_backward(blas, part.dy, part.weight->template view<T>(), dx, accumulate);
      accumulate = true;
      for (const Term& term : part.terms) {
        const auto scope = arena.scope();
        const MatrixView<const T> dy = part.dy.rows_between(term.begin, term.end);
        const MatrixView<const T> s = part.s.left(term.rank()).rows_between(term.begin, term.end);
        const MatrixView<T> ds = arena.matrix<T>(dy.rows, term.rank());
        multiply<T>(blas, false, false, term.scale, dy, term.b, 0.0f, ds);
        if (!term.grad_b.empty()) multiply<float>(blas, true, false, term.scale, dy, s, 1.0f, term.grad_b);
        if (!term.grad_a.empty())
          multiply<float>(blas, true, false, 1.0f, ds, dropped(arena, x, term), 1.0f, term.grad_a);
        if (dx.empty()) continue;
        const MatrixView<T> dx_rows = dx.rows_between(term.begin, term.end);
        if (!term.dropout) {
          multiply<T>(blas, false, false, 1.0f, ds, term.a, 1.0f, dx_rows);
          continue;
        }
        const MatrixView<T> product = arena.matrix<T>(dx_rows.rows, dx_rows.cols);
        multiply<T>(blas, false, false, 1.0f, ds, term.a, 0.0f, product);
        masked_add<T>(product, term.dropout, term.row_numbers + term.begin, dx_rows, stream_);
      }
    }
  }

  FloatMath math_;
  LowRankPath path_;
  std::size_t slot_bytes_;
  DeviceMemory memory_;
  Stream stream_;
  DeviceBuffer slot_;
};

}  // namespace fedlora::cuda

#endif
