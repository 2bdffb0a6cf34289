// SPDX-License-Identifier: Apache-2.0
// The backward pass of attention over packed rows. Forward keeps nothing: probabilities are computed again from q and
// k, first to find what normalises each row, then for the gradients of queries, then for those of keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "fedlora/backend/cuda/attention.cuh"
#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// What the gradients of keys need to know of a query and head, 16 bytes: four floats of which the last two are the
/// bits of integers.
struct QueryRecord {
  float logarithm;       ///< of the sum of exponentials: p = exponential(score - logarithm)
  float mean;            ///< Σ_j p_j dp_j, with dp the gradient of the probabilities over dropout's scale
  std::int32_t visible;  ///< keys it sees
  std::int32_t number;   ///< as dropout counts it

  static constexpr int floats = 4;

  FEDLORA_DEVICE Vector<float> vector() const {
    return {{logarithm, mean, __builtin_bit_cast(float, visible), __builtin_bit_cast(float, number)}};
  }
  FEDLORA_DEVICE static QueryRecord from(const Vector<float>& vector) {
    return {vector.elements[0], vector.elements[1], __builtin_bit_cast(std::int32_t, vector.elements[2]),
            __builtin_bit_cast(std::int32_t, vector.elements[3])};
  }
};

/// Rows that stream past a block at a time: 32, but for float at 128 columns, of which no more fit.
template <class T, int Dim>
inline constexpr int backward_step = Dim * sizeof(T) <= 256 ? 32 : 16;

/// The gradients of the queries of one tile and head, 16 to a warp, and their records.
///
/// Keys and values stream past twice. The first time gives, for each query, the maximum and the sum of exponentials as
/// in forward, and along with them Σ_j p_j dp_j. The second time ds = p ∘ (dp - Σ p dp), and dq = scale · ds k.
template <class T, FloatMath Math, int Dim>
struct AttentionQueryGradients {
  static constexpr int threads = attention_threads;
  static constexpr int step = backward_step<T, Dim>;  ///< keys
  static constexpr int stages = attention_stages<T, Dim>;
  static constexpr int stride = tile_stride<T>(Dim);
  static constexpr int bytes = 2 * (attention_tile + stages * step) * stride * static_cast<int>(sizeof(T));
  static constexpr bool keep_rows = sizeof(T) == 2 || Dim <= 32;
  static_assert(bytes <= shared_bytes_everywhere);

  AttentionOperands<T> in;
  Source<const T> d_out;     ///< (queries, heads · head_dim)
  Source<T> dq;              ///< (queries, heads · head_dim)
  float* records = nullptr;  ///< (heads, queries, 4)

  int shared_bytes() const { return bytes; }
  Grid grid() const { return {in.tables.query_tile_count * in.heads, 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto q_tile = block.template shared<T>(attention_tile * stride);
    const auto d_tile = block.template shared<T>(attention_tile * stride);
    const auto k_tiles = block.template shared<T>(stages * step * stride);
    const auto v_tiles = block.template shared<T>(stages * step * stride);
    const auto at = static_cast<std::uint32_t>(block.x());
    const AttentionTile tile = in.tables.query_tiles[at / static_cast<std::uint32_t>(in.heads)];
    const int head = static_cast<int>(at % static_cast<std::uint32_t>(in.heads));
    const AttentionSpan& span = in.tables.spans[tile.span];
    const RandomKey key_of_layer = attention_dropout(span, in.layer).key;
    const Source<const T> k = in.head_rows(in.k, span.key_begin, span.key_end, head / in.group);
    const Source<const T> v = in.head_rows(in.v, span.key_begin, span.key_end, head / in.group);
    const int tiles = divide_up(in.visible_to_tile(block, span, tile.first), step);
    const QueryRows rows(block, in, span, tile.first);

    // Tile t of the first pass and tile t - tiles of the second. What fits the buffers stays in them.
    const bool resident = tiles <= stages;
    const auto buffer_of = [&](int t) { return (resident && t >= tiles ? t - tiles : t) % stages * step * stride; };
    const auto begin_copy = [&](int t) {
      if (t < (resident ? tiles : 2 * tiles)) {
        const int to = buffer_of(t);
        const int row = (t < tiles ? t : t - tiles) * step;
        copy_rows<T, step, Dim>(block, k_tiles + to, k, row);
        copy_rows<T, step, Dim>(block, v_tiles + to, v, row);
      }
      block.commit_copies();  // an empty group too, so that the count of groups in flight stays the same
    };

    copy_rows<T, attention_tile, Dim>(block, q_tile, in.head_rows(in.q, span.query_begin, span.query_end, head),
                                      tile.first);
    copy_rows<T, attention_tile, Dim>(block, d_tile, in.head_rows(d_out, span.query_begin, span.query_end, head),
                                      tile.first);
    for (int t = 0; t < stages - 1; ++t) begin_copy(t);
    block.template wait_copies<stages - 2>();
    block.sync();
    const auto q_rows = q_tile + block.warp() * 16 * stride;
    const auto d_rows = d_tile + block.warp() * 16 * stride;
    LeftRows<T, Dim, keep_rows> q, d;
    q.keep(block, q_rows);
    d.keep(block, d_rows);

    RunningSoftmax softmax;
    float mean[2] = {0.0f, 0.0f};
    for (int t = 0; t < tiles; ++t) {
      begin_copy(t + stages - 1);
      const int key = t * step;
      if (key < rows.visible_to_warp) {
        const int from = buffer_of(t);
        Accumulator p[step / 8] = {}, dp[step / 8] = {};
        multiply_rows<T, Math, Dim>(block, p, q, q_rows, k_tiles + from);
        multiply_rows<T, Math, Dim>(block, dp, d, d_rows, v_tiles + from);
        float factor[2];
        softmax.add<T>(block, p, rows, key, in.scale, factor);
        KeptProbabilities kept;
        if (span.dropout) kept.draw_by_queries<step / 8>(block, dropout_with_key(span, key_of_layer), head, rows, key);
        for (int half = 0; half < 2; ++half) mean[half] *= factor[half];
        unrolled<step / 8>([&]<int N>() {
          for (int e = 0; e < 4; ++e)
            if (kept.keeps<N>(e)) mean[e / 2] += p[N].sums[e] * dp[N].sums[e];
        });
      }
      block.template wait_copies<stages - 2>();
      block.sync();
    }

    float logarithms[2];
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_of_row(block, softmax.sum[half]);
      const float products = sum_of_row(block, mean[half]);
      const bool sees = sum != 0.0f;  // any key at all
      logarithms[half] = sees ? softmax.top[half] + logarithm<T>(sum) : 0.0f;
      mean[half] = sees ? products / sum : 0.0f;
    }
    for (int half = 0; half < 2; ++half) {
      const int query = rows.first + 8 * half;
      if (block.lane() % 4 != 0 || query >= static_cast<int>(span.query_end - span.query_begin)) continue;
      const QueryRecord record = {logarithms[half], mean[half], rows.visible[half], in.number(span, query)};
      const Index row = span.query_begin + query;
      block.store_vector(records + (head * in.q.rows + row) * QueryRecord::floats, record.vector());
    }

    Accumulator sums[Dim / 8] = {};
    for (int t = tiles; t < 2 * tiles; ++t) {
      begin_copy(t + stages - 1);
      const int key = (t - tiles) * step;
      if (key < rows.visible_to_warp) {
        const int from = buffer_of(t);
        Accumulator p[step / 8] = {}, ds[step / 8] = {};
        multiply_rows<T, Math, Dim>(block, p, q, q_rows, k_tiles + from);
        multiply_rows<T, Math, Dim>(block, ds, d, d_rows, v_tiles + from);
        KeptProbabilities kept;
        if (span.dropout) kept.draw_by_queries<step / 8>(block, dropout_with_key(span, key_of_layer), head, rows, key);
        const int column = key + block.lane() % 4 * 2;
        unrolled<step / 8>([&]<int N>() {
          for (int e = 0; e < 4; ++e) {
            const bool seen = column + 8 * N + e % 2 < rows.visible[e / 2];
            const float weight = exponential<T>(seen ? p[N].sums[e] * in.scale - logarithms[e / 2] : no_score);
            const float slope = kept.keeps<N>(e) ? ds[N].sums[e] : 0.0f;
            ds[N].sums[e] = weight * (slope - mean[e / 2]);
          }
        });
        multiply_weights<T, Math, Dim>(block, sums, ds, k_tiles + from);
      }
      block.template wait_copies<stages - 2>();
      block.sync();
    }
    const float slope = in.score_slope * span.dropout.scale;
    const float factor[2] = {slope, slope};
    store_rows<T, Dim>(block, q_rows, sums, factor, in.head_rows(dq, span.query_begin, span.query_end, head),
                       tile.first + block.warp() * 16);
  }
};

/// The gradients of the keys and values of one tile and kv head, 16 to a warp.
///
/// Queries and gradients of out stream past, for one head of the group after the other. Scores are computed transposed,
/// keys as rows, so that p and ds are left operands as they come: dv = dropout(p)ᵀ d_out and dk = scale · dsᵀ q.
/// The record of a query lies in the 16 bytes that pad its row.
template <class T, FloatMath Math, int Dim>
struct AttentionKeyGradients {
  static constexpr int threads = attention_threads;
  static constexpr int step = backward_step<T, Dim>;  ///< queries
  static constexpr int stages = 2;
  static constexpr int stride = tile_stride<T>(Dim);
  static constexpr int elements = 2 * (attention_tile + stages * step) * stride;
  static constexpr int bytes = elements * static_cast<int>(sizeof(T));
  static constexpr int float_stride = stride * static_cast<int>(sizeof(T)) / 4;
  static constexpr int record_column = Dim * static_cast<int>(sizeof(T)) / 4;
  static constexpr bool keep_rows = Dim <= (sizeof(T) == 2 ? 64 : 16);
  static_assert(bytes <= shared_bytes_everywhere && float_stride - record_column >= QueryRecord::floats);

  AttentionOperands<T> in;
  Source<const T> d_out;           ///< (queries, heads · head_dim)
  Source<T> dk;                    ///< (rows, kv_heads · head_dim)
  Source<T> dv;                    ///< (rows, kv_heads · head_dim)
  const float* records = nullptr;  ///< (heads, queries, 4)

  int shared_bytes() const { return bytes; }
  Grid grid() const { return {in.tables.key_tile_count * in.kv_heads, 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto k_tile = block.template shared<T>(elements);
    const auto v_tile = k_tile + attention_tile * stride;
    const auto q_tiles = v_tile + attention_tile * stride;
    const auto d_tiles = q_tiles + stages * step * stride;
    block.restart_shared();  // the same memory, to find records in
    const auto query_records =
        block.template shared<float>(bytes / 4) + (2 * attention_tile * float_stride + record_column);

    const auto at = static_cast<std::uint32_t>(block.x());
    const AttentionTile tile = in.tables.key_tiles[at / static_cast<std::uint32_t>(in.kv_heads)];
    const int kv_head = static_cast<int>(at % static_cast<std::uint32_t>(in.kv_heads));
    const AttentionSpan& span = in.tables.spans[tile.span];
    const RandomKey key_of_layer = attention_dropout(span, in.layer).key;
    const int queries = static_cast<int>(span.query_end - span.query_begin);
    const int keys = static_cast<int>(span.key_end - span.key_begin);
    const int first_key = tile.first + block.warp() * 16;  // of this warp

    // Where queries are all rows in order, those before the first key do not see it.
    const bool in_order = in.causal && in.tables.positions == nullptr;
    const int first_query = in_order ? tile.first / step * step : 0;
    const int end_head = (kv_head + 1) * in.group;
    const auto begin_copy = [&](int head, int query, int stage) {
      if (head < end_head) {
        const int to = stage * step;
        copy_rows<T, step, Dim>(block, q_tiles + to * stride,
                                in.head_rows(in.q, span.query_begin, span.query_end, head), query);
        copy_rows<T, step, Dim>(block, d_tiles + to * stride,
                                in.head_rows(d_out, span.query_begin, span.query_end, head), query);
        const int i = block.thread();
        if (i < step) {
          const bool exists = query + i < queries;
          const float* const from = records + (head * in.q.rows + span.query_begin + query + i) * QueryRecord::floats;
          block.copy_async(query_records + (to + i) * float_stride, exists ? from : records, exists ? 16 : 0);
        }
      }
      block.commit_copies();
    };

    copy_rows<T, attention_tile, Dim>(block, k_tile, in.head_rows(in.k, span.key_begin, span.key_end, kv_head),
                                      tile.first);
    copy_rows<T, attention_tile, Dim>(block, v_tile, in.head_rows(in.v, span.key_begin, span.key_end, kv_head),
                                      tile.first);
    int head = first_query < queries ? kv_head * in.group : end_head;
    int first = first_query;
    int stage = 0;
    begin_copy(head, first, stage);
    block.template wait_copies<0>();
    block.sync();
    const auto k_rows = k_tile + block.warp() * 16 * stride;
    const auto v_rows = v_tile + block.warp() * 16 * stride;
    LeftRows<T, Dim, keep_rows> k, v;
    k.keep(block, k_rows);
    v.keep(block, v_rows);

    Accumulator dk_sums[Dim / 8] = {}, dv_sums[Dim / 8] = {};
    while (head < end_head) {
      const bool last = first + step >= queries;
      const int next_head = last ? head + 1 : head;
      const int next_first = last ? first_query : first + step;
      begin_copy(next_head, next_first, 1 - stage);
      if (first_key < keys && !(in_order && first + step <= first_key)) {
        const int from = stage * step;
        add_queries(block, span, key_of_layer, head, first_key, dk_sums, dv_sums, k, v, k_rows, v_rows,
                    q_tiles + from * stride, d_tiles + from * stride, query_records + from * float_stride);
      }
      block.template wait_copies<0>();
      block.sync();  // the next tile is there for all, and nobody reads this one any more
      head = next_head;
      first = next_first;
      stage = 1 - stage;
    }
    const float slope = in.score_slope * span.dropout.scale;
    const float dk_factor[2] = {slope, slope};
    const float dv_factor[2] = {span.dropout.scale, span.dropout.scale};
    store_rows<T, Dim>(block, k_rows, dk_sums, dk_factor, in.head_rows(dk, span.key_begin, span.key_end, kv_head),
                       first_key);
    store_rows<T, Dim>(block, v_rows, dv_sums, dv_factor, in.head_rows(dv, span.key_begin, span.key_end, kv_head),
                       first_key);
  }

 private:
  /// What `step` queries of one head add to the gradients of this warp's keys.
  template <class Block, class Rows, class Tile, class Records>
  FEDLORA_DEVICE void add_queries(Block& block, const AttentionSpan& span, RandomKey key_of_layer, int head,
                                  int first_key, Accumulator (&dk_sums)[Dim / 8], Accumulator (&dv_sums)[Dim / 8],
                                  const Rows& k, const Rows& v, Tile k_rows, Tile v_rows, Tile q_tile, Tile d_tile,
                                  Records query_records) const {
    const int lane = block.lane();
    const auto record = [&](int column) {
      return QueryRecord::from(
          block.load_vector(static_cast<const float*>(vector_at(query_records + column * float_stride))));
    };
    KeptProbabilities kept;
    if (span.dropout)
      kept.draw_by_keys<step / 8>(block, dropout_with_key(span, key_of_layer), head, first_key,
                                  [&](int n) { return record(8 * n + lane % 4 * 2 + lane / 4 % 2).number; });
    const int key = first_key + lane / 4;

    const auto probability = [&](float score, const QueryRecord& query, int e) {
      const bool seen = key + e / 2 * 8 < query.visible;
      return exponential<T>(seen ? score * in.scale - query.logarithm : no_score);
    };

    // For float the gradients of values are done before dp begins, for 16 bits all is weighed at once: so each of them
    // fits registers.
    Accumulator p[step / 8] = {}, ds[step / 8] = {};
    multiply_rows<T, Math, Dim>(block, p, k, k_rows, q_tile);
    if constexpr (sizeof(T) == 4) {
      Accumulator weights[step / 8];
      unrolled<step / 8>([&]<int N>() {
        for (int side = 0; side < 2; ++side) {
          const QueryRecord query = record(8 * N + lane % 4 * 2 + side);
          for (int e = side; e < 4; e += 2) {
            p[N].sums[e] = probability(p[N].sums[e], query, e);
            weights[N].sums[e] = kept.keeps<N>(e) ? p[N].sums[e] : 0.0f;
          }
        }
      });
      multiply_weights<T, Math, Dim>(block, dv_sums, weights, d_tile);
    }
    multiply_rows<T, Math, Dim>(block, ds, v, v_rows, d_tile);
    unrolled<step / 8>([&]<int N>() {
      for (int side = 0; side < 2; ++side) {
        const QueryRecord query = record(8 * N + lane % 4 * 2 + side);
        for (int e = side; e < 4; e += 2) {
          const bool keeps = kept.keeps<N>(e);
          float& weight = p[N].sums[e];
          if constexpr (sizeof(T) == 2) weight = probability(weight, query, e);
          ds[N].sums[e] = weight * ((keeps ? ds[N].sums[e] : 0.0f) - query.mean);
          if (!keeps) weight = 0.0f;
        }
      }
    });
    if constexpr (sizeof(T) == 2) multiply_weights<T, Math, Dim>(block, dv_sums, p, d_tile);
    multiply_weights<T, Math, Dim>(block, dk_sums, ds, q_tile);
  }
};

/// Bytes of workspace that `attention_backward` needs for `queries` rows of q: 16 for each and each head.
template <class T>
std::size_t attention_backward_workspace(const AttentionShape& shape, Index queries) {
  return static_cast<std::size_t>(shape.heads * queries * QueryRecord::floats) * sizeof(float);
}

/// Given d_out, the gradient of the output of `attention_forward`: dq, dk and dv, those of its inputs. With
/// p = softmax(q kᵀ · scale), m the mask of dropout times its scale, and dp = m ∘ (d_out vᵀ):
///   ds = p ∘ (dp - Σ_j p_j dp_j), dq = scale · ds k, dk = scale · dsᵀ q, dv = (m ∘ p)ᵀ d_out
/// and dk and dv are summed over the query heads of their group. Sums are float32; p and ds are rounded to T before
/// they are multiplied, and gradients once.
/// Shapes:      q, d_out and dq (queries, heads · head_dim), k, v, dk and dv (rows, kv_heads · head_dim); all in device
///              memory
/// Gradient:    overwritten for the queries and keys of the spans, with zeros where nothing attends; other rows are
///              left alone. No gradient overlaps an input or another, and no two spans share queries or keys
/// Determinism: the same bits in every run; the order of sums depends on the spans alone
/// \throws ShapeError
template <class T>
void attention_backward(const AttentionShape& shape, const AttentionTables& tables, MatrixView<const T> q,
                        MatrixView<const T> k, MatrixView<const T> v, MatrixView<const T> d_out, MatrixView<T> dq,
                        MatrixView<T> dk, MatrixView<T> dv, std::span<std::byte> workspace, Stream stream,
                        FloatMath math = FloatMath::tf32) {
  constexpr const char* where = "cuda::attention_backward";
  const AttentionOperands<T> in = detail::checked_operands(where, shape, tables, q, k, v);
  detail::check_shape(where, "d_out", q.rows, q.cols, d_out.rows, d_out.cols);
  detail::check_shape(where, "dq", q.rows, q.cols, dq.rows, dq.cols);
  detail::check_shape(where, "dk", k.rows, k.cols, dk.rows, dk.cols);
  detail::check_shape(where, "dv", v.rows, v.cols, dv.rows, dv.cols);
  float* const records = detail::workspace_floats(where, workspace, attention_backward_workspace<T>(shape, q.rows));
  detail::with_math<T>(math, [&](auto chosen) {
    detail::with_padded_head_dim(shape.head_dim, [&](auto dim) {
      AttentionQueryGradients<T, chosen(), dim()> of_queries;
      of_queries.in = in;
      of_queries.d_out = detail::source_of_heads(d_out, shape.head_dim);
      of_queries.dq = detail::source_of_heads(dq, shape.head_dim);
      of_queries.records = records;
      launch(stream, of_queries.grid(), of_queries);

      AttentionKeyGradients<T, chosen(), dim()> of_keys;
      of_keys.in = in;
      of_keys.d_out = of_queries.d_out;
      of_keys.dk = detail::source_of_heads(dk, shape.head_dim);
      of_keys.dv = detail::source_of_heads(dv, shape.head_dim);
      of_keys.records = records;
      launch(stream, of_keys.grid(), of_keys);
    });
  });
}

}  // namespace fedlora::cuda

#endif
