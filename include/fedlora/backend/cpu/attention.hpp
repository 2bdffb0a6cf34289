// SPDX-License-Identifier: Apache-2.0
// Attention over packed rows, bidirectional or causal, with grouped-query heads: softmax(q kᵀ · scale) v for each
// sequence and head. A block of queries at a time sees all keys of its sequence, so memory is linear in its length;
// nothing of it is kept, backward computes the probabilities again (Dao et al. 2022, arXiv 2205.14135, section 3.1).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include "fedlora/backend/cpu/dropout.hpp"
#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/backend/cpu/tile.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {
namespace attention_detail {

/// Queries whose scores exist at the same time.
inline constexpr Index query_block = 32;

/// Rows of `size` scalars from one place to another, a few narrow vectors each as a rule.
template <class T>
[[gnu::noinline]] void copy_rows(const T* from, Index from_stride, Index rows, Index size, T* to, Index to_stride) {
  Index i = 0;
  for (; i + narrow_count<T> <= size; i += narrow_count<T>) {
    const T* at = from + i;
    T* into = to + i;
    for (Index row = 0; row < rows; ++row, at += from_stride, into += to_stride) {
      NarrowLanes<T> lanes;
      load(lanes, at);
      store(lanes, into);
    }
  }
  for (; i < size; ++i)
    for (Index row = 0; row < rows; ++row) to[row * to_stride + i] = from[row * from_stride + i];
}

/// Rows of one head, contiguous and padded with zeros: (rows, padded(head_dim)).
template <class T>
void gather_head(const MatrixView<const T>& from, Index begin, Index end, Index column, Index head_dim, T* to) {
  const Index width = padded<T>(head_dim);
  if (head_dim < width) std::fill_n(to, (end - begin) * width, T(0));
  copy_rows(from.row(begin) + column, from.stride, end - begin, head_dim, to, width);
}

template <class T>
void scatter_head(const T* from, Index begin, Index end, Index column, Index head_dim, const MatrixView<T>& to) {
  copy_rows(from, padded<T>(head_dim), end - begin, head_dim, to.row(begin) + column, to.stride);
}

/// `count` blocks of four rows (two of double) and as many columns, one block to the right of the other, become
/// columns.
template <class T>
[[gnu::noinline]] void transpose_blocks(const T* from, Index from_stride, Index count, T* to, Index to_stride) {
  using V = typename LanesOf<T, 16>::type;
  constexpr int block = static_cast<int>(count_of<V>);
  for (; count > 0; --count, from += block, to += block * to_stride) {
    V rows[block];
    each<block>([&](auto r) __attribute__((always_inline)) { load(rows[r], from + r * from_stride); });
    transpose(rows);
    each<block>([&](auto r) __attribute__((always_inline)) { store(rows[r], to + r * to_stride); });
  }
}

/// Column by column, what no block holds: to[d][j] = from[j][d].
template <class T>
[[gnu::noinline]] void transpose_rest(const T* from, Index from_stride, Index rows, Index columns, T* to,
                                      Index to_stride) {
  for (; columns > 0; --columns, ++from, to += to_stride) {
    const T* at = from;
    for (Index j = 0; j < rows; ++j, at += from_stride) to[j] = *at;
  }
}

/// Rows of one head, transposed: (head_dim, padded(rows)), with rows of `stride`.
template <class T>
void gather_head_transposed(const MatrixView<const T>& from, Index begin, Index end, Index column, Index head_dim,
                            T* to, Index stride) {
  constexpr Index block = 16 / static_cast<Index>(sizeof(T));
  const Index count = end - begin;
  const Index whole = head_dim / block * block;
  const Index whole_rows = count / block * block;
  const T* const at = from.row(begin) + column;
  if (count < padded<T>(count))
    for (Index d = 0; d < head_dim; ++d) std::fill(to + d * stride + count, to + d * stride + padded<T>(count), T(0));
  for (Index j = 0; j < whole_rows; j += block)
    transpose_blocks(at + j * from.stride, from.stride, whole / block, to + j, stride);
  transpose_rest(at + whole, from.stride, whole_rows, head_dim - whole, to + whole * stride, stride);
  transpose_rest(at + whole_rows * from.stride, from.stride, count - whole_rows, head_dim, to + whole_rows, stride);
}

/// How many keys query `i` of the sequence sees. Without `positions` the queries are all rows of the sequence, in
/// order.
inline Index visible_keys(const AttentionShape& shape, const AttentionSpan& span, const std::int32_t* positions,
                          Index i) {
  const Index keys = span.key_end - span.key_begin;
  if (!shape.causal) return keys;
  return std::min<Index>(keys,
                         (positions != nullptr ? positions[span.query_begin + i] : static_cast<std::int32_t>(i)) + 1);
}

/// One row of scores: those of the first `visible` keys to exp(score - top), all others up to `width` to zero. Returns
/// their sum by lanes.
template <class T>
[[gnu::noinline]] void exp_row(T* scores, T top, Index visible, Index width, Lanes<T>& total) {
  constexpr Index lanes = lane_count<T>;
  Lanes<T> padding;
  load(padding, unknown_zeros<T>());
  for (Index j = (visible + lanes - 1) / lanes * lanes; j < width; j += lanes) store(padding, scores + j);
  const Lanes<T> zero{};  // named, see exp_lanes
  Lanes<T> sum{};
  Index j = 0;
  for (; j + lanes <= visible; j += lanes) {
    Lanes<T> values;
    load(values, scores + j);
    values -= top;
    exp_lanes(values);
    sum += values;
    store(values, scores + j);
  }
  if (j < visible) {
    Lanes<T> values, place;
    load(values, scores + j);
    count_up(place);
    const auto seen = place < static_cast<T>(visible - j);
    values = seen ? values - top : zero;
    exp_lanes(values);
    values = seen ? values : zero;
    sum += values;
    store(values, scores + j);
  }
  total = sum;
}

/// `Rows` rows of scores → exp(score - largest) and, of each row, 1 / its sum; the probabilities are their product.
/// Zero behind the keys that a query sees.
template <int Rows, class T>
void softmax_rows(T* scores, Index width, const Index* visible, T* inverses) {
  constexpr Index lanes = lane_count<T>;
  const Lanes<T> zero{};
  const Lanes<T> lowest = zero - std::numeric_limits<T>::infinity();
  Lanes<T> tops[Rows];
  each<Rows>([&](auto r) __attribute__((always_inline)) { tops[r] = lowest; });
  Index seen_by_all = visible[0];
  each<Rows>([&](auto r) __attribute__((always_inline)) { seen_by_all = std::min(seen_by_all, visible[r]); });
  Index j = 0;
  for (; j + lanes <= seen_by_all; j += lanes)
    each<Rows>([&](auto r) __attribute__((always_inline)) {
      Lanes<T> values;
      load(values, scores + r * width + j);
      tops[r] = values > tops[r] ? values : tops[r];
    });
  Lanes<T> place;
  count_up(place);
  for (; j < width; j += lanes)
    each<Rows>([&](auto r) __attribute__((always_inline)) {
      Lanes<T> values;
      load(values, scores + r * width + j);
      values = place < static_cast<T>(visible[r] - j) ? values : lowest;
      tops[r] = values > tops[r] ? values : tops[r];
    });
  T top[Rows];
  max_each(tops, top);
  each<Rows>([&](auto r)
                 __attribute__((always_inline)) { exp_row(scores + r * width, top[r], visible[r], width, tops[r]); });
  T sums[Rows];
  sum_each(tops, sums);
  for (int r = 0; r < Rows; ++r) inverses[r] = T(1) / sums[r];
}

/// Given exp(score - largest) and gradients g of the probabilities p: the probabilities, in place of the first, and
/// gradients of the scores, p ∘ (g - Σ p g), in place of g.
template <int Rows, class T>
void softmax_rows_backward(T* scores, T* gradients, Index width, const T* inverses) {
  constexpr Index lanes = lane_count<T>;
  Lanes<T> totals[Rows] = {};
  for (Index j = 0; j < width; j += lanes)
    each<Rows>([&](auto r) __attribute__((always_inline)) {
      Lanes<T> p, g;
      load(p, scores + r * width + j);
      load(g, gradients + r * width + j);
      totals[r] += p * g;
    });
  T sums[Rows];
  sum_each(totals, sums);
  each<Rows>([&](auto r) __attribute__((always_inline)) {
    const T inverse = inverses[r];
    const T mean = sums[r] * inverse;
    for (Index j = 0; j < width; j += lanes) {
      Lanes<T> p, g;
      load(p, scores + r * width + j);
      load(g, gradients + r * width + j);
      p *= inverse;
      g = p * (g - mean);
      store(p, scores + r * width + j);
      store(g, gradients + r * width + j);
    }
  });
}

/// body(Rows, row) over `rows` rows, four at a time and then one by one.
template <class Body>
[[gnu::always_inline]] inline void for_row_groups(Index rows, Body&& body) {
  Index row = 0;
  for (; row + 4 <= rows; row += 4) body(std::integral_constant<int, 4>{}, row);
  for (; row < rows; ++row) body(std::integral_constant<int, 1>{}, row);
}

/// One sequence and head.
template <class T>
struct Head {
  const AttentionShape& shape;
  const AttentionSpan& span;
  Dropout dropout;
  Index head = 0;
  const std::int32_t* positions = nullptr;
  const std::int32_t* row_numbers = nullptr;
  Index stride = 0;  ///< of rows of scores: room for whole vectors
};

/// A block of a head's queries: which, and the keys that each sees.
struct QueryBlock {
  Index first = 0, count = 0;
  Index visible[query_block] = {};
  Index keys = 0;  ///< the most that one of them sees

  template <class T>
  [[gnu::noinline]] QueryBlock(const Head<T>& head, Index first_, Index count_) : first(first_), count(count_) {
    for (Index i = 0; i < count; ++i) {
      visible[i] = visible_keys(head.shape, head.span, head.positions, first + i);
      keys = std::max(keys, visible[i]);
    }
  }
};

/// scores ← dropout(scores) over a block's rows, in place.
template <class T>
[[gnu::noinline]] void drop_scores(const Head<T>& head, const QueryBlock& block, T* scores) {
  for (Index i = 0; i < block.count; ++i)
    dropout_row(head.dropout, static_cast<std::uint32_t>(head.row_numbers[head.span.query_begin + block.first + i]),
                static_cast<std::uint32_t>(head.head), block.keys, scores + i * head.stride, scores + i * head.stride);
}

/// scores = q kᵀ · scale, then exp(score - largest) and the sums' inverses.
template <class T>
void block_scores(const Head<T>& head, const QueryBlock& block, const T* q, Index q_stride, const T* kt, T* scores,
                  T* inverses) {
  multiply_small<Left::rows>(SmallProduct<T>{.left = q + block.first * q_stride,
                                             .left_stride = q_stride,
                                             .right = kt,
                                             .right_stride = head.stride,
                                             .inner = head.shape.head_dim,
                                             .out = scores,
                                             .out_stride = head.stride,
                                             .scale = static_cast<T>(head.shape.scale)},
                             block.count, padded<T>(block.keys));
  for_row_groups(
      block.count, [&](auto rows, Index i) __attribute__((always_inline)) {
        softmax_rows<rows()>(scores + i * head.stride, head.stride, block.visible + i, inverses + i);
      });
}

/// out = probabilities · v for a block.
template <class T>
void forward_block(const Head<T>& head, const QueryBlock& block, const T* q, Index q_stride, const T* kt, const T* v,
                   T* scores, T* out) {
  const Index dim = padded<T>(head.shape.head_dim);
  T inverses[query_block];
  block_scores(head, block, q, q_stride, kt, scores, inverses);
  if (head.dropout) drop_scores(head, block, scores);
  multiply_small<Left::rows>(SmallProduct<T>{.left = scores,
                                             .left_stride = head.stride,
                                             .right = v,
                                             .right_stride = dim,
                                             .inner = block.keys,
                                             .out = out + block.first * dim,
                                             .out_stride = dim,
                                             .row_scales = inverses},
                             block.count, dim);
}

/// The operands of a head's backward pass, contiguous: rows of padded(head_dim), transposed ones of `stride`.
template <class T>
struct BackwardOperands {
  const T *q, *d_out, *k, *kt, *vt;
  T *p, *dp, *dq, *dk, *dv;
};

template <class T>
void backward_block(const Head<T>& head, const QueryBlock& block, const BackwardOperands<T>& at) {
  const Index stride = head.stride;
  const Index dim = padded<T>(head.shape.head_dim);
  const T* const q = at.q + block.first * dim;
  const T* const d_out = at.d_out + block.first * dim;
  const T scale = static_cast<T>(head.shape.scale);
  T inverses[query_block];
  block_scores(head, block, at.q, dim, at.kt, at.p, inverses);
  multiply_small<Left::rows>(SmallProduct<T>{.left = d_out,
                                             .left_stride = dim,
                                             .right = at.vt,
                                             .right_stride = stride,
                                             .inner = head.shape.head_dim,
                                             .out = at.dp,
                                             .out_stride = stride},
                             block.count, padded<T>(block.keys));
  for (Index i = 0; i < block.count; ++i)
    for (Index j = padded<T>(block.keys); j < stride; j += narrow_count<T>)
      store(NarrowLanes<T>{}, at.dp + i * stride + j);
  if (head.dropout) drop_scores(head, block, at.dp);
  for_row_groups(
      block.count, [&](auto rows, Index i) __attribute__((always_inline)) {
        softmax_rows_backward<rows()>(at.p + i * stride, at.dp + i * stride, stride, inverses + i);
      });
  if (head.dropout) drop_scores(head, block, at.p);
  multiply_small<Left::rows>(SmallProduct<T>{.left = at.dp,
                                             .left_stride = stride,
                                             .right = at.k,
                                             .right_stride = dim,
                                             .inner = block.keys,
                                             .out = at.dq + block.first * dim,
                                             .out_stride = dim,
                                             .scale = scale},
                             block.count, dim);
  SmallProduct<T> gathered{.left = at.dp,
                           .left_stride = stride,
                           .right = q,
                           .right_stride = dim,
                           .inner = block.count,
                           .out = at.dk,
                           .out_stride = dim,
                           .into = Into::add,
                           .scale = scale};
  multiply_small<Left::columns>(gathered, block.keys, dim);
  gathered.left = at.p;
  gathered.right = d_out;
  gathered.out = at.dv;
  gathered.scale = T(1);
  multiply_small<Left::columns>(gathered, block.keys, dim);
}

/// The smallest multiple of whole vectors that holds `size`.
template <class T>
constexpr Index whole_vectors(Index size) {
  return (size + lane_count<T> - 1) / lane_count<T> * lane_count<T>;
}

/// Pieces of the scratch that a pass is given, each where a vector may begin.
template <class T>
class Pieces {
 public:
  explicit Pieces(T* scratch) : next_(scratch) {}
  T* take(Index count) { return std::exchange(next_, next_ + whole_vectors<T>(count)); }

 private:
  T* next_;
};

/// The part of one head's two halves that whole vectors hold, turned; returns how much of a half that is.
template <class V, class T>
[[gnu::always_inline]] inline Index rotate_head(T* low, const T* cosine, const T* sine, Index half, T sign) {
  Index d = 0;
  for (; d + count_of<V> <= half; d += count_of<V>) {
    V a, b, c, s;
    load(a, low + d);
    load(b, low + half + d);
    load(c, cosine + d);
    load(s, sine + d);
    s *= sign;
    const V turned = a * c - b * s;
    store(turned, low + d);
    b = b * c + a * s;
    store(b, low + half + d);
  }
  return d;
}

}  // namespace attention_detail

/// Scalars of scratch that attention over sequences of at most so many queries and keys needs, forward or backward.
template <class T>
Index attention_scratch(const AttentionShape& shape, Index queries, Index keys, bool backward) {
  using attention_detail::whole_vectors;
  const Index dim = padded<T>(shape.head_dim);
  const Index transposed = shape.head_dim * whole_vectors<T>(keys);
  const Index of_keys = whole_vectors<T>(keys * dim);
  const Index of_queries = whole_vectors<T>(queries * dim);
  const Index scores = std::min(queries, attention_detail::query_block) * whole_vectors<T>(keys);
  return backward ? 2 * transposed + 3 * of_keys + 3 * of_queries + 2 * scores
                  : transposed + of_keys + of_queries + scores;
}

/// out = attention(q, k, v). q and out are (queries, heads · head_dim), k and v are (rows, kv_heads · head_dim).
/// `positions` (one per query) is null when queries are all rows in order; `row_numbers` (one per query) address the
/// dropout of the spans. `scratch` holds attention_scratch() scalars, 64-byte aligned.
template <class T>
void attention_forward(const AttentionShape& shape, std::span<const AttentionSpan> spans, const MatrixView<const T>& q,
                       const MatrixView<const T>& k, const MatrixView<const T>& v, const std::int32_t* positions,
                       const std::int32_t* row_numbers, const MatrixView<T>& out, T* scratch) {
  using namespace attention_detail;
  const Index group = shape.heads / shape.kv_heads;
  const Index head_dim = shape.head_dim;
  const Index dim = padded<T>(head_dim);
  for (const AttentionSpan& span : spans) {
    const Index queries = span.query_end - span.query_begin;
    const Index keys = span.key_end - span.key_begin;
    Head<T> head{shape, span, attention_dropout(span, shape.layer), 0, positions, row_numbers, whole_vectors<T>(keys)};
    Pieces<T> pieces(scratch);
    T* kt = pieces.take(head_dim * head.stride);
    T* values = pieces.take(keys * dim);
    T* result = pieces.take(queries * dim);
    T* scores = pieces.take(std::min(queries, query_block) * head.stride);
    for (Index kv = 0; kv < shape.kv_heads; ++kv) {
      gather_head_transposed(k, span.key_begin, span.key_end, kv * head_dim, head_dim, kt, head.stride);
      gather_head(v, span.key_begin, span.key_end, kv * head_dim, head_dim, values);
      for (head.head = kv * group; head.head < (kv + 1) * group; ++head.head) {
        const T* const head_q = q.row(span.query_begin) + head.head * head_dim;
        for (Index i = 0; i < queries; i += query_block)
          forward_block(head, QueryBlock(head, i, std::min(query_block, queries - i)), head_q, q.stride, kt, values,
                        scores, result);
        scatter_head(result, span.query_begin, span.query_end, head.head * head_dim, head_dim, out);
      }
    }
  }
}

/// Given d_out (as out): dq, dk, dv, overwritten. Rows of dk and dv that no span covers are not touched.
template <class T>
void attention_backward(const AttentionShape& shape, std::span<const AttentionSpan> spans, const MatrixView<const T>& q,
                        const MatrixView<const T>& k, const MatrixView<const T>& v, const std::int32_t* positions,
                        const std::int32_t* row_numbers, const MatrixView<const T>& d_out, const MatrixView<T>& dq,
                        const MatrixView<T>& dk, const MatrixView<T>& dv, T* scratch) {
  using namespace attention_detail;
  const Index group = shape.heads / shape.kv_heads;
  const Index head_dim = shape.head_dim;
  const Index dim = padded<T>(head_dim);
  for (const AttentionSpan& span : spans) {
    const Index queries = span.query_end - span.query_begin;
    const Index keys = span.key_end - span.key_begin;
    Head<T> head{shape, span, attention_dropout(span, shape.layer), 0, positions, row_numbers, whole_vectors<T>(keys)};
    Pieces<T> pieces(scratch);
    T* const kt = pieces.take(head_dim * head.stride);
    T* const vt = pieces.take(head_dim * head.stride);
    T* const k_head = pieces.take(keys * dim);
    T* const q_head = pieces.take(queries * dim);
    T* const d_out_head = pieces.take(queries * dim);
    T* const dq_head = pieces.take(queries * dim);
    T* const dk_head = pieces.take(keys * dim);
    T* const dv_head = pieces.take(keys * dim);
    T* const p = pieces.take(std::min(queries, query_block) * head.stride);
    T* const dp = pieces.take(std::min(queries, query_block) * head.stride);
    const BackwardOperands<T> operands{q_head, d_out_head, k_head, kt, vt, p, dp, dq_head, dk_head, dv_head};
    for (Index kv = 0; kv < shape.kv_heads; ++kv) {
      gather_head_transposed(k, span.key_begin, span.key_end, kv * head_dim, head_dim, kt, head.stride);
      gather_head_transposed(v, span.key_begin, span.key_end, kv * head_dim, head_dim, vt, head.stride);
      gather_head(k, span.key_begin, span.key_end, kv * head_dim, head_dim, k_head);
      std::fill_n(dk_head, keys * dim, T(0));
      std::fill_n(dv_head, keys * dim, T(0));
      for (head.head = kv * group; head.head < (kv + 1) * group; ++head.head) {
        const Index column = head.head * head_dim;
        gather_head(q, span.query_begin, span.query_end, column, head_dim, q_head);
        gather_head(d_out, span.query_begin, span.query_end, column, head_dim, d_out_head);
        for (Index i = 0; i < queries; i += query_block)
          backward_block(head, QueryBlock(head, i, std::min(query_block, queries - i)), operands);
        scatter_head(dq_head, span.query_begin, span.query_end, column, head_dim, dq);
      }
      scatter_head(dk_head, span.key_begin, span.key_end, kv * head_dim, head_dim, dk);
      scatter_head(dv_head, span.key_begin, span.key_end, kv * head_dim, head_dim, dv);
    }
  }
}

/// Rotary positions (Su et al. 2021, arXiv 2104.09864), on the two halves of each head as transformers has them, in
/// place. `cosines` and `sines` are (positions, head_dim / 2); `inverse` turns back (the backward pass).
template <class T>
void rotate(const MatrixView<T>& x, Index heads, Index head_dim, const std::int32_t* positions,
            const MatrixView<const T>& cosines, const MatrixView<const T>& sines, bool inverse) {
  const Index half = head_dim / 2;
  const T sign = inverse ? T(-1) : T(1);
  for (Index i = 0; i < x.rows; ++i) {
    const T* const cosine = cosines.row(positions[i]);
    const T* const sine = sines.row(positions[i]);
    T* const end = x.row(i) + heads * head_dim;
    for (T* low = x.row(i); low < end; low += head_dim) {
      Index d = 0;
      if (half % lane_count<T> == 0)
        d = attention_detail::rotate_head<Lanes<T>>(low, cosine, sine, half, sign);
      else
        d = attention_detail::rotate_head<typename LanesOf<T, 16>::type>(low, cosine, sine, half, sign);
      for (; d < half; ++d) {
        const T a = low[d];
        const T b = low[half + d];
        low[d] = a * cosine[d] - b * sine[d] * sign;
        low[half + d] = b * cosine[d] + a * sine[d] * sign;
      }
    }
  }
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
