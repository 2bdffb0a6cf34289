// SPDX-License-Identifier: Apache-2.0
// Attention over packed rows, bidirectional or causal, with grouped-query heads: softmax(q kᵀ · scale) v for each
// sequence and head. Four queries at a time see all keys of their sequence, so memory is linear in its length; nothing
// of it is kept, backward computes the probabilities again (Dao et al. 2022, arXiv 2205.14135, section 3.1).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "fedlora/backend/cpu/arena.hpp"
#include "fedlora/backend/cpu/dropout.hpp"
#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {
namespace attention_detail {

inline constexpr int query_block = 4;

/// out[r][0 … C lanes) = Σ_k left[r][k] · right[k][0 … C lanes), for R rows at once.
template <int R, int C, class T>
[[gnu::always_inline]] inline void product_tile(const T* left, Index left_stride, const T* right, Index right_stride,
                                                Index inner, T* out, Index out_stride) {
  Lanes<T> sums[R][C] = {};
  for (Index k = 0; k < inner; ++k) {
    Lanes<T> values[C];
    for (int c = 0; c < C; ++c) load<T>(values[c], right + k * right_stride + c * lane_count<T>);
    for (int r = 0; r < R; ++r) {
      const T factor = left[r * left_stride + k];
      for (int c = 0; c < C; ++c) sums[r][c] += values[c] * factor;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<T>(sums[r][c], out + r * out_stride + c * lane_count<T>);
}

/// out (R, width) = left (R, inner) · right (inner, width); `width` is a multiple of the lanes.
template <int R, class T>
void product(const T* left, Index left_stride, const T* right, Index right_stride, Index inner, Index width, T* out,
             Index out_stride) {
  constexpr Index lanes = lane_count<T>;
  Index column = 0;
  for (; column + 4 * lanes <= width; column += 4 * lanes)
    product_tile<R, 4>(left, left_stride, right + column, right_stride, inner, out + column, out_stride);
  for (; column + 2 * lanes <= width; column += 2 * lanes)
    product_tile<R, 2>(left, left_stride, right + column, right_stride, inner, out + column, out_stride);
  for (; column < width; column += lanes)
    product_tile<R, 1>(left, left_stride, right + column, right_stride, inner, out + column, out_stride);
}

/// sums[j][0 … C lanes) += Σ_r weights[r][j] · rows[r][0 … C lanes), for every j < count.
template <int R, int C, class T>
[[gnu::always_inline]] inline void outer_tile(const T* weights, Index weights_stride, Index count, const T* rows,
                                              Index rows_stride, T* sums, Index sums_stride) {
  Lanes<T> values[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) load<T>(values[r][c], rows + r * rows_stride + c * lane_count<T>);
  for (Index j = 0; j < count; ++j) {
    Lanes<T> total[C];
    for (int c = 0; c < C; ++c) load<T>(total[c], sums + j * sums_stride + c * lane_count<T>);
    for (int r = 0; r < R; ++r) {
      const T factor = weights[r * weights_stride + j];
      for (int c = 0; c < C; ++c) total[c] += values[r][c] * factor;
    }
    for (int c = 0; c < C; ++c) store<T>(total[c], sums + j * sums_stride + c * lane_count<T>);
  }
}

template <int R, class T>
void outer(const T* weights, Index weights_stride, Index count, const T* rows, Index rows_stride, Index width, T* sums,
           Index sums_stride) {
  constexpr Index lanes = lane_count<T>;
  Index column = 0;
  for (; column + 2 * lanes <= width; column += 2 * lanes)
    outer_tile<R, 2>(weights, weights_stride, count, rows + column, rows_stride, sums + column, sums_stride);
  for (; column < width; column += lanes)
    outer_tile<R, 1>(weights, weights_stride, count, rows + column, rows_stride, sums + column, sums_stride);
}

template <class T>
Index padded(Index size) {
  return (size + lane_count<T> - 1) / lane_count<T> * lane_count<T>;
}

/// Rows of one head, contiguous and padded with zeros: (rows, padded(head_dim)), times `scale`.
template <class T>
void gather_head(MatrixView<const T> from, Index begin, Index end, Index column, Index head_dim, T scale, T* to) {
  const Index width = padded<T>(head_dim);
  for (Index i = begin; i < end; ++i) {
    const T* row = from.row(i) + column;
    T* out = to + (i - begin) * width;
    for (Index d = 0; d < head_dim; ++d) out[d] = row[d] * scale;
    for (Index d = head_dim; d < width; ++d) out[d] = T(0);
  }
}

/// The same transposed: (head_dim, padded(rows)).
template <class T>
void gather_head_transposed(MatrixView<const T> from, Index begin, Index end, Index column, Index head_dim, T* to) {
  const Index count = end - begin;
  const Index width = padded<T>(count);
  for (Index j = 0; j < count; ++j) {
    const T* row = from.row(begin + j) + column;
    for (Index d = 0; d < head_dim; ++d) to[d * width + j] = row[d];
  }
  for (Index d = 0; d < head_dim; ++d) std::fill(to + d * width + count, to + (d + 1) * width, T(0));
}

template <class T>
void scatter_head(const T* from, Index begin, Index end, Index column, Index head_dim, T scale, bool accumulate,
                  MatrixView<T> to) {
  const Index width = padded<T>(head_dim);
  for (Index i = begin; i < end; ++i) {
    const T* row = from + (i - begin) * width;
    T* out = to.row(i) + column;
    if (accumulate)
      for (Index d = 0; d < head_dim; ++d) out[d] += row[d] * scale;
    else
      for (Index d = 0; d < head_dim; ++d) out[d] = row[d] * scale;
  }
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

/// scores[0 … visible) → probabilities, zeros up to `width`. What lies behind `visible` is masked vector by vector:
/// scalar stores in front of a vector load would stall it.
template <class T>
void softmax_row(T* scores, Index visible, Index width) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  Lanes<T> behind;  // of each lane: how far it lies behind the last visible key
  for (Index lane = 0; lane < lane_count<T>; ++lane) behind[lane] = static_cast<T>(lane - visible);
  const Lanes<T> zero{};  // named, see exp_lanes
  const Lanes<T> unseen = zero + lowest;
  Lanes<T> tops = unseen;
  for (Index j = 0; j < width; j += lane_count<T>) {
    Lanes<T> values;
    load<T>(values, scores + j);
    values = behind + static_cast<T>(j) >= zero ? unseen : values;
    tops = values > tops ? values : tops;
  }
  const T top = max_lanes<T>(tops);
  Lanes<T> total{};
  for (Index j = 0; j < width; j += lane_count<T>) {
    Lanes<T> values;
    load<T>(values, scores + j);
    values -= top;
    exp_lanes(values);
    values = behind + static_cast<T>(j) >= zero ? zero : values;
    total += values;
    store<T>(values, scores + j);
  }
  const T inverse = T(1) / sum_lanes<T>(total);
  for (Index j = 0; j < width; j += lane_count<T>) {
    Lanes<T> values;
    load<T>(values, scores + j);
    values *= inverse;
    store<T>(values, scores + j);
  }
}

/// From probabilities and their gradients to gradients of the scores: g ← p ∘ (g - Σ p g).
template <class T>
void softmax_row_backward(const T* probabilities, T* gradients, Index width) {
  Lanes<T> total{};
  const T* const inputs[2] = {probabilities, gradients};
  T* const outputs[2] = {nullptr, gradients};
  T* const nowhere[2] = {nullptr, nullptr};
  for_lanes<T>(width, inputs, nowhere, [&](Lanes<T>(&v)[2], Index) { total += v[0] * v[1]; });
  const T sum = sum_lanes<T>(total);
  for_lanes<T>(width, inputs, outputs, [&](Lanes<T>(&v)[2], Index) { v[1] = v[0] * (v[1] - sum); });
}

template <int R, class T>
void forward_queries(const AttentionShape& shape, const AttentionSpan& span, const Dropout& dropout, Index head,
                     Index first, const T* q, const T* kt, const T* v, const std::int32_t* positions,
                     const std::int32_t* row_numbers, T* scores, T* out) {
  const Index keys = span.key_end - span.key_begin;
  const Index width = padded<T>(keys);
  const Index dim = padded<T>(shape.head_dim);
  product<R>(q + first * dim, dim, kt, width, shape.head_dim, width, scores, width);
  for (int r = 0; r < R; ++r) {
    const Index i = first + r;
    T* row = scores + r * width;
    softmax_row(row, visible_keys(shape, span, positions, i), width);
    if (dropout)
      dropout_row(dropout, static_cast<std::uint32_t>(row_numbers[span.query_begin + i]),
                  static_cast<std::uint32_t>(head), keys, row, row);
  }
  product<R>(scores, width, v, dim, keys, dim, out + first * dim, dim);
}

template <int R, class T>
void backward_queries(const AttentionShape& shape, const AttentionSpan& span, const Dropout& dropout, Index head,
                      Index first, const T* q, const T* kt, const T* k, const T* vt, const T* d_out,
                      const std::int32_t* positions, const std::int32_t* row_numbers, T* p, T* dp, T* dq, T* dk,
                      T* dv) {
  const Index keys = span.key_end - span.key_begin;
  const Index width = padded<T>(keys);
  const Index dim = padded<T>(shape.head_dim);
  product<R>(q + first * dim, dim, kt, width, shape.head_dim, width, p, width);
  product<R>(d_out + first * dim, dim, vt, width, shape.head_dim, width, dp, width);
  for (int r = 0; r < R; ++r) {
    const Index i = first + r;
    T* probabilities = p + r * width;
    T* gradients = dp + r * width;
    softmax_row(probabilities, visible_keys(shape, span, positions, i), width);
    const auto row_number = static_cast<std::uint32_t>(dropout ? row_numbers[span.query_begin + i] : 0);
    if (dropout)
      dropout_row(dropout, row_number, static_cast<std::uint32_t>(head), keys, gradients, gradients);
    softmax_row_backward(probabilities, gradients, width);
    if (dropout)
      dropout_row(dropout, row_number, static_cast<std::uint32_t>(head), keys, probabilities, probabilities);
  }
  product<R>(dp, width, k, dim, keys, dim, dq + first * dim, dim);
  outer<R>(dp, width, keys, q + first * dim, dim, dim, dk, dim);
  outer<R>(p, width, keys, d_out + first * dim, dim, dim, dv, dim);
}

}  // namespace attention_detail

/// out = attention(q, k, v). q and out are (queries, heads · head_dim), k and v are (rows, kv_heads · head_dim).
/// `positions` (one per query) is null when queries are all rows in order; `row_numbers` (one per query) address the
/// dropout of the spans.
template <class T>
void attention_forward(const AttentionShape& shape, std::span<const AttentionSpan> spans, MatrixView<const T> q,
                       MatrixView<const T> k, MatrixView<const T> v, const std::int32_t* positions,
                       const std::int32_t* row_numbers, MatrixView<T> out, Arena<T>& arena) {
  using namespace attention_detail;
  const Index group = shape.heads / shape.kv_heads;
  const Index dim = padded<T>(shape.head_dim);
  for (const AttentionSpan& span : spans) {
    const Dropout dropout = attention_dropout(span, shape.layer);
    const Index queries = span.query_end - span.query_begin;
    const Index keys = span.key_end - span.key_begin;
    const auto scope = arena.scope();
    T* kt = arena.take(shape.head_dim * padded<T>(keys));
    T* values = arena.take(keys * dim);
    T* q_head = arena.take(queries * dim);
    T* result = arena.take(queries * dim);
    T* scores = arena.take(query_block * padded<T>(keys));
    for (Index kv = 0; kv < shape.kv_heads; ++kv) {
      gather_head_transposed(k, span.key_begin, span.key_end, kv * shape.head_dim, shape.head_dim, kt);
      gather_head(v, span.key_begin, span.key_end, kv * shape.head_dim, shape.head_dim, T(1), values);
      for (Index head = kv * group; head < (kv + 1) * group; ++head) {
        gather_head(q, span.query_begin, span.query_end, head * shape.head_dim, shape.head_dim,
                    static_cast<T>(shape.scale), q_head);
        Index i = 0;
        for (; i + query_block <= queries; i += query_block)
          forward_queries<query_block>(shape, span, dropout, head, i, q_head, kt, values, positions, row_numbers,
                                       scores, result);
        for (; i < queries; ++i)
          forward_queries<1>(shape, span, dropout, head, i, q_head, kt, values, positions, row_numbers, scores,
                             result);
        scatter_head(result, span.query_begin, span.query_end, head * shape.head_dim, shape.head_dim, T(1), false, out);
      }
    }
  }
}

/// Given d_out (as out): dq, dk, dv, overwritten. Rows of dk and dv that no span covers are not touched.
template <class T>
void attention_backward(const AttentionShape& shape, std::span<const AttentionSpan> spans, MatrixView<const T> q,
                        MatrixView<const T> k, MatrixView<const T> v, const std::int32_t* positions,
                        const std::int32_t* row_numbers, MatrixView<const T> d_out, MatrixView<T> dq, MatrixView<T> dk,
                        MatrixView<T> dv, Arena<T>& arena) {
  using namespace attention_detail;
  const Index group = shape.heads / shape.kv_heads;
  const Index dim = padded<T>(shape.head_dim);
  for (const AttentionSpan& span : spans) {
    const Dropout dropout = attention_dropout(span, shape.layer);
    const Index queries = span.query_end - span.query_begin;
    const Index keys = span.key_end - span.key_begin;
    const auto scope = arena.scope();
    T* kt = arena.take(shape.head_dim * padded<T>(keys));
    T* vt = arena.take(shape.head_dim * padded<T>(keys));
    T* k_head = arena.take(keys * dim);
    T* q_head = arena.take(queries * dim);
    T* d_out_head = arena.take(queries * dim);
    T* dq_head = arena.take(queries * dim);
    T* dk_head = arena.take(keys * dim);
    T* dv_head = arena.take(keys * dim);
    T* p = arena.take(query_block * padded<T>(keys));
    T* dp = arena.take(query_block * padded<T>(keys));
    for (Index kv = 0; kv < shape.kv_heads; ++kv) {
      gather_head_transposed(k, span.key_begin, span.key_end, kv * shape.head_dim, shape.head_dim, kt);
      gather_head_transposed(v, span.key_begin, span.key_end, kv * shape.head_dim, shape.head_dim, vt);
      gather_head(k, span.key_begin, span.key_end, kv * shape.head_dim, shape.head_dim, T(1), k_head);
      std::fill_n(dk_head, keys * dim, T(0));
      std::fill_n(dv_head, keys * dim, T(0));
      for (Index head = kv * group; head < (kv + 1) * group; ++head) {
        const Index column = head * shape.head_dim;
        gather_head(q, span.query_begin, span.query_end, column, shape.head_dim, static_cast<T>(shape.scale), q_head);
        gather_head(d_out, span.query_begin, span.query_end, column, shape.head_dim, T(1), d_out_head);
        Index i = 0;
        for (; i + query_block <= queries; i += query_block)
          backward_queries<query_block>(shape, span, dropout, head, i, q_head, kt, k_head, vt, d_out_head, positions,
                                        row_numbers, p, dp, dq_head, dk_head, dv_head);
        for (; i < queries; ++i)
          backward_queries<1>(shape, span, dropout, head, i, q_head, kt, k_head, vt, d_out_head, positions, row_numbers,
                              p, dp, dq_head, dk_head, dv_head);
        scatter_head(dq_head, span.query_begin, span.query_end, column, shape.head_dim, static_cast<T>(shape.scale),
                     false, dq);
      }
      scatter_head(dk_head, span.key_begin, span.key_end, kv * shape.head_dim, shape.head_dim, T(1), false, dk);
      scatter_head(dv_head, span.key_begin, span.key_end, kv * shape.head_dim, shape.head_dim, T(1), false, dv);
    }
  }
}

/// Rotary positions (Su et al. 2021, arXiv 2104.09864), on the two halves of each head as transformers has them, in
/// place. `cosines` and `sines` are (positions, head_dim / 2); `inverse` turns back (the backward pass).
template <class T>
void rotate(MatrixView<T> x, Index heads, Index head_dim, const std::int32_t* positions, MatrixView<const T> cosines,
            MatrixView<const T> sines, bool inverse) {
  const Index half = head_dim / 2;
  const T sign = inverse ? T(-1) : T(1);
  for (Index i = 0; i < x.rows; ++i) {
    const T* cosine = cosines.row(positions[i]);
    const T* sine = sines.row(positions[i]);
    for (Index head = 0; head < heads; ++head) {
      T* low = x.row(i) + head * head_dim;
      T* high = low + half;
      for (Index d = 0; d < half; ++d) {
        const T a = low[d];
        const T b = high[d];
        low[d] = a * cosine[d] - b * sine[d] * sign;
        high[d] = b * cosine[d] + a * sine[d] * sign;
      }
    }
  }
}

}  // namespace fedlora::cpu
