// SPDX-License-Identifier: Apache-2.0
// The forward pass of attention over packed rows: out = dropout(softmax(q kᵀ · scale)) v for each sequence and head.
#pragma once

#include <cstdint>

#include "fedlora/backend/cuda/attention.cuh"
#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Attention of the queries of one tile and head, 16 to a warp, over their keys in order.
///
/// Keys and values pass, 32 at a time, through a ring of buffers filled by cp.async: all but one are on their way, or
/// there, while one is used. Queries stay in registers but for float at 128 columns. The running softmax is that of
/// FlashAttention-2, algorithm 1: sums are divided once, in the end.
template <class T, FloatMath Math, int Dim>
struct AttentionForwardKernel {
  static constexpr int threads = attention_threads;
  static constexpr int step = 32;  ///< keys
  static constexpr int stages = attention_stages<T, Dim>;
  static constexpr int stride = tile_stride<T>(Dim);
  static constexpr int bytes = (attention_tile + 2 * stages * step) * stride * static_cast<int>(sizeof(T));
  static constexpr bool keep_queries = sizeof(T) == 2 || Dim <= 64;
  static_assert(bytes <= shared_bytes_everywhere);

  AttentionOperands<T> in;
  Source<T> out;  ///< (queries, heads · head_dim)

  int shared_bytes() const { return bytes; }
  Grid grid() const { return {in.tables.query_tile_count * in.heads, 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto q_tile = block.template shared<T>(attention_tile * stride);
    const auto k_tiles = block.template shared<T>(stages * step * stride);
    const auto v_tiles = block.template shared<T>(stages * step * stride);
    const auto at = static_cast<std::uint32_t>(block.x());  // heads of one tile side by side: a group shares its keys
    const AttentionTile tile = in.tables.query_tiles[at / static_cast<std::uint32_t>(in.heads)];
    const int head = static_cast<int>(at % static_cast<std::uint32_t>(in.heads));
    const AttentionSpan& span = in.tables.spans[tile.span];
    const RandomKey key_of_layer = attention_dropout(span, in.layer).key;
    const Source<const T> k = in.head_rows(in.k, span.key_begin, span.key_end, head / in.group);
    const Source<const T> v = in.head_rows(in.v, span.key_begin, span.key_end, head / in.group);
    const int tiles = divide_up(in.visible_to_tile(block, span, tile.first), step);
    const QueryRows rows(block, in, span, tile.first);

    const auto begin_copy = [&](int t) {
      if (t < tiles) {
        const int to = t % stages * step * stride;
        copy_rows<T, step, Dim>(block, k_tiles + to, k, t * step);
        copy_rows<T, step, Dim>(block, v_tiles + to, v, t * step);
      }
      block.commit_copies();  // an empty group too, so that the count of groups in flight stays the same
    };

    copy_rows<T, attention_tile, Dim>(block, q_tile, in.head_rows(in.q, span.query_begin, span.query_end, head),
                                      tile.first);
    for (int t = 0; t < stages - 1; ++t) begin_copy(t);
    block.template wait_copies<stages - 2>();
    block.sync();
    const auto q_rows = q_tile + block.warp() * 16 * stride;
    LeftRows<T, Dim, keep_queries> q;
    q.keep(block, q_rows);

    Accumulator sums[Dim / 8] = {};
    RunningSoftmax softmax;
    for (int t = 0; t < tiles; ++t) {
      begin_copy(t + stages - 1);
      const int key = t * step;
      if (key < rows.visible_to_warp) {
        const int from = t % stages * step * stride;
        Accumulator weights[step / 8] = {};
        multiply_rows<T, Math, Dim>(block, weights, q, q_rows, k_tiles + from);
        float factor[2];
        softmax.add<T>(block, weights, rows, key, in.scale, factor);
        unrolled<Dim / 8>([&]<int N>() {
          for (int e = 0; e < 4; ++e) sums[N].sums[e] *= factor[e / 2];
        });
        if (span.dropout) {
          KeptProbabilities kept;
          kept.draw_by_queries<step / 8>(block, dropout_with_key(span, key_of_layer), head, rows, key);
          unrolled<step / 8>([&]<int N>() {
            for (int e = 0; e < 4; ++e)
              if (!kept.keeps<N>(e)) weights[N].sums[e] = 0.0f;
          });
        }
        multiply_weights<T, Math, Dim>(block, sums, weights, v_tiles + from);
      }
      block.template wait_copies<stages - 2>();
      block.sync();  // the next tile is there for all, and nobody reads this one any more
    }

    float factor[2];
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_of_row(block, softmax.sum[half]);
      factor[half] = sum == 0.0f ? 0.0f : span.dropout.scale / sum;  // 0: a query that sees no key
    }
    store_rows<T, Dim>(block, q_rows, sums, factor, in.head_rows(out, span.query_begin, span.query_end, head),
                       tile.first + block.warp() * 16);
  }
};

/// out = dropout(softmax(q kᵀ · scale)) v for every span and head (Vaswani et al. 2017, section 3.2.1); query head h
/// reads head h / (heads / kv_heads) of keys and values. A causal query sees the keys up to its position. Sums are
/// float32; probabilities are rounded to T before they are multiplied, and out once. Dropout is drawn as
/// `AttentionSpan` says, the mask of the CPU. A query that sees no key gets zeros.
/// Shapes:      q and out (queries, heads · head_dim), k and v (rows, kv_heads · head_dim); all in device memory
/// Output:      overwritten for the queries of the spans; other rows are left alone. It overlaps no input
/// Memory:      nothing beside it
/// Determinism: the same bits in every run; the order of sums depends on the spans alone
/// \throws ShapeError
template <class T>
void attention_forward(const AttentionShape& shape, const AttentionTables& tables, MatrixView<const T> q,
                       MatrixView<const T> k, MatrixView<const T> v, MatrixView<T> out, Stream stream,
                       FloatMath math = FloatMath::tf32) {
  constexpr const char* where = "cuda::attention_forward";
  const AttentionOperands<T> in = detail::checked_operands(where, shape, tables, q, k, v);
  detail::check_shape(where, "out", q.rows, q.cols, out.rows, out.cols);
  detail::with_math<T>(math, [&](auto chosen) {
    detail::with_padded_head_dim(shape.head_dim, [&](auto dim) {
      AttentionForwardKernel<T, chosen(), dim()> kernel;
      kernel.in = in;
      kernel.out = detail::source_of_heads(out, shape.head_dim);
      launch(stream, kernel.grid(), kernel);
    });
  });
}

}  // namespace fedlora::cuda

#endif
