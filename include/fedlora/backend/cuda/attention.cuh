// SPDX-License-Identifier: Apache-2.0
// What the kernels of attention share: the tables they read, products of rows and of weights, the running softmax, and
// dropout of probabilities. Attention is softmax(q kᵀ · scale) v for each sequence and head. Scores exist only in
// registers, one (16, 32) piece to a warp at a time, so memory is linear in the length of sequences
// (FlashAttention-2: Dao 2023, arXiv 2307.08691).
//
// Left operands of products are always rows of one warp, and weights (probabilities, or gradients of scores) go from
// the sums of one product to the left operand of the next without leaving registers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/packed.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// The largest width of a head the kernels take.
inline constexpr Index largest_head_dim = 128;

/// Queries, or keys, that one block looks after: 16 to a warp.
inline constexpr int attention_tile = 64;
inline constexpr int attention_threads = 128;

/// Buffers of keys and values that a block keeps filled: where rows are short, so many that 128 keys fit.
template <class T, int Dim>
inline constexpr int attention_stages = Dim * sizeof(T) <= 128 ? 4 : 2;

/// Up to `attention_tile` queries, or keys, of one span.
struct AttentionTile {
  std::int32_t span;   ///< which span
  std::int32_t first;  ///< the first query, or key, of the tile within the span
};

/// What the kernels read beside the matrices; every pointer is to device memory.
struct AttentionTables {
  const AttentionSpan* spans = nullptr;
  Index span_count = 0;
  const AttentionTile* query_tiles = nullptr;  ///< of these spans, as `query_tiles` gives them
  Index query_tile_count = 0;
  const AttentionTile* key_tiles = nullptr;  ///< as `key_tiles` gives them; read by backward alone
  Index key_tile_count = 0;
  const std::int32_t* positions = nullptr;    ///< of each query; null when query i is row i of its sequence
  const std::int32_t* row_numbers = nullptr;  ///< of each query, for dropout; null when no span has any
};

namespace detail {

/// The numbers of the spans, those with the largest `work` first, and in their own order where it is the same.
template <class Work>
std::vector<std::int32_t> by_falling_work(const char* where, std::span<const AttentionSpan> spans, Work&& work) {
  for (const AttentionSpan& span : spans)
    if (span.query_end < span.query_begin || span.key_end < span.key_begin)
      fail<ShapeError>(where, "spans that end where they begin or later",
                       "queries [" + std::to_string(span.query_begin) + ", " + std::to_string(span.query_end) +
                           ") and keys [" + std::to_string(span.key_begin) + ", " + std::to_string(span.key_end) + ")");
  std::vector<std::int32_t> order(spans.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return work(spans[static_cast<std::size_t>(a)]) > work(spans[static_cast<std::size_t>(b)]);
  });
  return order;
}

}  // namespace detail

/// The tiles of queries of all spans, on the host, in the order in which blocks should begin: spans with many keys
/// first and, for the causal mask, late queries before early ones, so that no long block is left for the end.
/// \throws ShapeError
inline std::vector<AttentionTile> query_tiles(std::span<const AttentionSpan> spans) {
  std::vector<AttentionTile> tiles;
  const auto keys = [](const AttentionSpan& span) { return span.key_end - span.key_begin; };
  for (const std::int32_t at : detail::by_falling_work("cuda::query_tiles", spans, keys)) {
    const AttentionSpan& span = spans[static_cast<std::size_t>(at)];
    const Index count = divide_up<Index>(span.query_end - span.query_begin, attention_tile);
    for (Index tile = count; tile-- > 0;) tiles.push_back({at, static_cast<std::int32_t>(tile * attention_tile)});
  }
  return tiles;
}

/// The tiles of keys of all spans, on the host, in the order in which blocks should begin: spans with many queries
/// first and, for the causal mask, early keys before late ones. \throws ShapeError
inline std::vector<AttentionTile> key_tiles(std::span<const AttentionSpan> spans) {
  std::vector<AttentionTile> tiles;
  const auto queries = [](const AttentionSpan& span) { return span.query_end - span.query_begin; };
  for (const std::int32_t at : detail::by_falling_work("cuda::key_tiles", spans, queries)) {
    const AttentionSpan& span = spans[static_cast<std::size_t>(at)];
    const Index count = divide_up<Index>(span.key_end - span.key_begin, attention_tile);
    for (Index tile = 0; tile < count; ++tile) tiles.push_back({at, static_cast<std::int32_t>(tile * attention_tile)});
  }
  return tiles;
}

/// What every kernel of attention gets.
template <class T>
struct AttentionOperands {
  AttentionTables tables;
  Source<const T> q;  ///< (queries, heads · head_dim)
  Source<const T> k;  ///< (rows, kv_heads · head_dim)
  Source<const T> v;  ///< (rows, kv_heads · head_dim)
  int heads = 0;
  int kv_heads = 0;
  int group = 0;  ///< heads / kv_heads
  int head_dim = 0;
  bool causal = false;
  Index layer = 0;
  float scale = 1.0f;        ///< of scores, in the units of `exponential`
  float score_slope = 1.0f;  ///< of scores, as the gradient has it

  /// Rows [begin, end) of one head.
  template <class Element>
  FEDLORA_DEVICE Source<Element> head_rows(const Source<Element>& matrix, Index begin, Index end, int head) const {
    Source<Element> rows = matrix;
    rows.data += begin * matrix.stride + static_cast<Index>(head) * head_dim;
    rows.rows = end - begin;
    rows.cols = head_dim;
    return rows;
  }

  /// How many keys one query of the span sees. Beyond the span's queries it is none.
  FEDLORA_DEVICE int visible_keys(const AttentionSpan& span, int query) const {
    const int keys = static_cast<int>(span.key_end - span.key_begin);
    if (query >= static_cast<int>(span.query_end - span.query_begin)) return 0;
    if (!causal) return keys;
    const int seen = (tables.positions != nullptr ? tables.positions[span.query_begin + query] : query) + 1;
    return seen < keys ? seen : keys;
  }

  /// What dropout calls a query; 0 where there is no dropout, or no such query.
  FEDLORA_DEVICE std::int32_t number(const AttentionSpan& span, int query) const {
    const bool counts = span.dropout && query < static_cast<int>(span.query_end - span.query_begin);
    return counts ? tables.row_numbers[span.query_begin + query] : 0;
  }

  /// The most keys that a query of the tile at `first` sees. All lanes of a warp must ask.
  template <class Block>
  FEDLORA_DEVICE int visible_to_tile(Block& block, const AttentionSpan& span, int first) const {
    int most = 0;
    for (int query = block.lane(); query < attention_tile; query += 32) {
      const int seen = visible_keys(span, first + query);
      most = seen > most ? seen : most;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      const int other = block.shuffle_xor(most, distance);
      most = other > most ? other : most;
    }
    return most;
  }
};

/// The two queries of a lane whose warp has 16 queries as rows: `first` and `first` + 8.
struct QueryRows {
  int first;                ///< within the span
  int visible[2];           ///< keys they see; 0 for what is no query
  int visible_to_warp;      ///< the most that any of the 16 sees
  std::int32_t number = 0;  ///< as dropout counts them: of the first for an even lane, else of the second

  template <class T, class Block>
  FEDLORA_DEVICE QueryRows(Block& block, const AttentionOperands<T>& in, const AttentionSpan& span, int tile_first)
      : first(tile_first + block.warp() * 16 + block.lane() / 4) {
    visible[0] = in.visible_keys(span, first);
    visible[1] = in.visible_keys(span, first + 8);
    visible_to_warp = visible[0] > visible[1] ? visible[0] : visible[1];
    for (int distance = 4; distance < 32; distance *= 2) {
      const int other = block.shuffle_xor(visible_to_warp, distance);
      visible_to_warp = other > visible_to_warp ? other : visible_to_warp;
    }
    number = in.number(span, first + block.lane() % 2 * 8);
  }
};

/// The score of a key that is not seen.
inline constexpr float no_score = -std::numeric_limits<float>::infinity();

/// 16-bit types take powers of 2, of scores times log2(e): one instruction on a GPU, and as good as they can hold.
/// float takes powers of e, whose exponent it does not round again.
template <class T>
FEDLORA_DEVICE float exponential(float x) {
  if constexpr (sizeof(T) == 4)
    return ::expf(x);
  else
    return ::exp2f(x);
}

/// The inverse of `exponential`.
template <class T>
FEDLORA_DEVICE float logarithm(float x) {
  if constexpr (sizeof(T) == 4)
    return ::logf(x);
  else
    return ::log2f(x);
}

/// Begins to copy Rows rows of `from` from `row` on, padded with zeros to Dim columns, to shared memory. (What
/// `copy_tile` does, for sizes known in advance: a thread keeps its column and has few numbers to compute.)
template <class T, int Rows, int Dim, class Block, class Tile>
FEDLORA_DEVICE void copy_rows(Block& block, Tile tile, const Source<const T>& from, int row) {
  constexpr int length = vector_length<T>;
  constexpr int across = Dim / length;
  constexpr int at_once = attention_threads / across;
  constexpr int stride = tile_stride<T>(Dim);
  const int first = block.thread() / across;
  const int column = block.thread() % across * length;
  const int left = static_cast<int>(from.rows) - row - first;  // rows that exist, from this thread's first on
  const int count = from.cols - column < length ? static_cast<int>(from.cols) - column : length;
  const T* const source = from.data + (row + first) * from.stride + column;
  tile = tile + (first * stride + column);
  constexpr int rounds = (Rows + at_once - 1) / at_once;
  if (from.by_vectors) {
    unrolled<rounds>([&]<int N>() {
      constexpr int i = N * at_once;
      if (Rows % at_once != 0 && first >= Rows - i) return;
      const bool exists = i < left && count > 0;
      block.copy_async(tile + i * stride, exists ? source + i * from.stride : from.data,
                       exists ? count * static_cast<int>(sizeof(T)) : 0);
    });
  } else {
    for (int i = 0; i < Rows; i += at_once) {
      if (Rows % at_once != 0 && first >= Rows - i) return;
      for (int e = 0; e < length; ++e)
        tile[i * stride + e] = i < left && e < count ? source[i * from.stride + e] : T(0.0f);
    }
  }
}

/// What a block's vectors of shared memory are loaded from.
template <class Tile>
FEDLORA_DEVICE auto* vector_at(Tile tile) {
  if constexpr (std::is_pointer_v<Tile>)
    return tile;
  else
    return tile.vector();
}

/// 16 rows of a tile as a left operand: kept in registers from the first use on, or read for each use.
template <class T, int Dim, bool Kept>
struct LeftRows {
  static constexpr int steps = Dim / mma_depth<T>;
  FragmentA fragments[Kept ? steps : 1] = {};

  /// After the tile has arrived; `tile` is the first of the 16 rows.
  template <class Block, class Tile>
  FEDLORA_DEVICE void keep(Block& block, Tile tile) {
    if constexpr (Kept)
      unrolled<steps>([&]<int K>() { load_a<T>(block, fragments[K], tile + K * mma_depth<T>, tile_stride<T>(Dim)); });
  }
};

/// sums += left · rightᵀ for 16 rows `left` and the 8 · Tiles rows of a tile from `right` on, over Dim columns.
template <class T, FloatMath Math, int Dim, int Tiles, bool Kept, class Block, class Tile>
FEDLORA_DEVICE void multiply_rows(Block& block, Accumulator (&sums)[Tiles], const LeftRows<T, Dim, Kept>& left,
                                  Tile left_tile, Tile right) {
  constexpr int stride = tile_stride<T>(Dim);
  const auto step = [&](const FragmentA& a, Tile columns) {
    unrolled<Tiles / 2>([&]<int Pair>() {
      FragmentB b[2];
      load_b_pair<T>(block, b, columns + Pair * 16 * stride, stride);
      multiply<T, Math>(block, sums[2 * Pair], a, b[0]);
      multiply<T, Math>(block, sums[2 * Pair + 1], a, b[1]);
    });
  };
  if constexpr (Kept) {
    unrolled<Dim / mma_depth<T>>([&]<int K>() { step(left.fragments[K], right + K * mma_depth<T>); });
  } else {
    for (int k = 0; k < Dim; k += mma_depth<T>) {
      FragmentA a;
      load_a<T>(block, a, left_tile + k, stride);
      step(a, right + k);
    }
  }
}

/// sums += weights · right for (16, 8 · Tiles) weights, rounded to T, and as many rows of a tile from `right` on.
/// Sums lie in registers as a 16-bit left operand does, two tiles side by side. For tf32 columns 2t and 2t + 1 of the
/// weights stand where the operand has t and t + 4: the inner index may be renamed when rows of `right` are as well.
template <class T, FloatMath Math, int Dim, int Tiles, class Block, class Tile>
FEDLORA_DEVICE void multiply_weights(Block& block, Accumulator (&sums)[Dim / 8], const Accumulator (&weights)[Tiles],
                                     Tile right) {
  constexpr int stride = tile_stride<T>(Dim);
  unrolled<8 * Tiles / mma_depth<T>>([&]<int K>() {
    FragmentA a;
    if constexpr (sizeof(T) == 2) {
      const float(&first)[4] = weights[2 * K].sums;
      const float(&second)[4] = weights[2 * K + 1].sums;
      a = {{pack_pair<T>(first[0], first[1]), pack_pair<T>(first[2], first[3]), pack_pair<T>(second[0], second[1]),
            pack_pair<T>(second[2], second[3])}};
    } else {
      const float(&w)[4] = weights[K].sums;
      for (int i = 0; i < 4; ++i) a.words[i] = __builtin_bit_cast(std::uint32_t, w[i % 2 * 2 + i / 2]);
    }
    unrolled<Dim / 16>([&]<int Pair>() {
      FragmentB b[2];
      const auto tile = right + (K * mma_depth<T> * stride + Pair * 16);
      if constexpr (sizeof(T) == 2) {
        load_b_pair_transposed<T>(block, b, tile, stride);
      } else {
        const int at = block.lane() % 4 * 2 * stride + block.lane() / 4;  // each lane in a bank of its own
        b[0] = {{bits_at(tile, at), bits_at(tile, at + stride)}};
        b[1] = {{bits_at(tile, at + 8), bits_at(tile, at + stride + 8)}};
      }
      multiply<T, Math>(block, sums[2 * Pair], a, b[0]);
      multiply<T, Math>(block, sums[2 * Pair + 1], a, b[1]);
    });
  });
}

/// The softmax of rows that come a few columns at a time, for the two rows of a lane.
struct RunningSoftmax {
  float top[2] = {no_score, no_score};
  float sum[2] = {0.0f, 0.0f};  ///< the part of this lane's columns

  /// Turns products q · k of the keys from `first_key` on into exp(score - top), 0 where the key is not seen. What was
  /// added up with an older top is to be multiplied by `factor`.
  template <class T, int Tiles, class Block>
  FEDLORA_DEVICE void add(Block& block, Accumulator (&scores)[Tiles], const QueryRows& rows, int first_key, float scale,
                          float (&factor)[2]) {
    const int key = first_key + block.lane() % 4 * 2;
    float highest[2] = {top[0], top[1]};
    unrolled<Tiles>([&]<int N>() {
      for (int e = 0; e < 4; ++e) {
        float& score = scores[N].sums[e];
        score = key + 8 * N + e % 2 < rows.visible[e / 2] ? score * scale : no_score;
        highest[e / 2] = score > highest[e / 2] ? score : highest[e / 2];
      }
    });
    float base[2];
    for (int half = 0; half < 2; ++half) {
      for (int distance = 1; distance < 4; distance *= 2) {
        const float other = block.shuffle_xor(highest[half], distance);
        highest[half] = other > highest[half] ? other : highest[half];
      }
      base[half] = highest[half] == no_score ? 0.0f : highest[half];
      factor[half] = exponential<T>(top[half] - base[half]);
      top[half] = highest[half];
      sum[half] *= factor[half];
    }
    unrolled<Tiles>([&]<int N>() {
      for (int e = 0; e < 4; ++e) {
        float& score = scores[N].sums[e];
        score = exponential<T>(score - base[e / 2]);
        sum[e / 2] += score;
      }
    });
  }
};

/// The sum over the four lanes that share a row.
template <class Block>
FEDLORA_DEVICE float sum_of_row(Block& block, float part) {
  part += block.shuffle_xor(part, 1);
  return part + block.shuffle_xor(part, 2);
}

/// The dropout of a span with the key of its layer, which is kept; the rest is cheaper to load again.
FEDLORA_DEVICE Dropout dropout_with_key(const AttentionSpan& span, RandomKey key) {
  Dropout dropout = span.dropout;
  dropout.key = key;
  return dropout;
}

/// Four bits, one for each key of the quad (channels 4 · quad to 4 · quad + 3): whether dropout keeps its probability.
FEDLORA_DEVICE std::uint32_t kept_of_quad(const Dropout& dropout, int head, std::int32_t number, int quad) {
  const RandomWords words = philox<7>(
      {static_cast<std::uint32_t>(quad), static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(head), 0},
      dropout.key);
  std::uint32_t bits = 0;
  for (std::uint32_t e = 0; e < 4; ++e) bits |= (words[e] >= dropout.threshold ? 1u : 0u) << e;
  return bits;
}

/// Which of (16, 8 · Tiles) probabilities dropout keeps, at most eight tiles: bit 4 n + e for sums[e] of tile n, as one
/// lane holds them. Each quad is drawn once, by one of the lanes that hold some of it.
struct KeptProbabilities {
  std::uint32_t bits = ~0u;

  /// Rows are queries, columns the keys from `first_key` on. Two neighbouring lanes hold a quad of either row, and each
  /// draws one of them.
  template <int Tiles, class Block>
  FEDLORA_DEVICE void draw_by_queries(Block& block, const Dropout& dropout, int head, const QueryRows& rows,
                                      int first_key) {
    const int odd = block.lane() % 2;
    const int quad = first_key / 4 + block.lane() % 4 / 2;
    std::uint32_t mine = 0;
    unrolled<Tiles>([&]<int N>() { mine |= kept_of_quad(dropout, head, rows.number, quad + 2 * N) << (4 * N); });
    const std::uint32_t other = block.shuffle_xor(mine, 1);
    const std::uint32_t upper = (odd == 0 ? mine : other) >> (2 * odd);
    const std::uint32_t lower = (odd == 0 ? other : mine) >> (2 * odd);
    bits = (upper & 0x33333333u) | (lower & 0x33333333u) << 2;
  }

  /// Rows are the keys from `first_key` on, columns queries; `number_of(n)` is what dropout calls the query in column
  /// lane % 4 · 2 + lane / 4 % 2 of tile n. Four lanes hold a quad of either query and either half of the keys, and
  /// each draws one of them.
  template <int Tiles, class Block, class NumberOf>
  FEDLORA_DEVICE void draw_by_keys(Block& block, const Dropout& dropout, int head, int first_key,
                                   NumberOf&& number_of) {
    const int lane = block.lane();
    const int quad = first_key / 4 + lane / 16 + lane / 8 % 2 * 2;
    std::uint32_t mine = 0;
    unrolled<Tiles>([&]<int N>() { mine |= kept_of_quad(dropout, head, number_of(N), quad) << (4 * N); });
    bits = 0;
    for (int e = 0; e < 4; ++e) {
      const std::uint32_t quads = block.shuffle(mine, lane / 16 * 16 + 4 * e + lane % 4);
      bits |= (quads >> (lane / 4 % 4) & 0x11111111u) << e;
    }
  }

  template <int N>
  FEDLORA_DEVICE bool keeps(int e) const {
    return (bits >> (4 * N + e) & 1u) != 0;
  }
};

/// Writes a warp's (16, Dim) sums, row r times factor[r / 8], to rows of `to` from `row` on. `tile` is 16 rows of
/// shared memory that this warp alone still uses: a lane has two neighbours only, and memory wants 16 bytes.
template <class T, int Dim, class Block, class Tile>
FEDLORA_DEVICE void store_rows(Block& block, Tile tile, const Accumulator (&sums)[Dim / 8], const float (&factor)[2],
                               const Source<T>& to, Index row) {
  constexpr int stride = tile_stride<T>(Dim);
  const int begin = block.lane() / 4 * stride + block.lane() % 4 * 2;
  unrolled<Dim / 8>([&]<int N>() {
    for (int e = 0; e < 4; ++e) tile[begin + e / 2 * 8 * stride + N * 8 + e % 2] = T(sums[N].sums[e] * factor[e / 2]);
  });
  block.sync_warp();
  constexpr int across = Dim / vector_length<T>;
  for (int at = block.lane(); at < 16 * across; at += 32) {
    const int i = at / across;
    const int j = at % across * vector_length<T>;
    const int count = elements_at(to, row + i, j);
    if (count == 0) continue;
    const Vector<T> vector = block.load_vector(vector_at(tile + (i * stride + j)));
    T* const target = to.data + (row + i) * to.stride + j;
    if (to.by_vectors && count == vector_length<T>) {
      block.store_vector(target, vector);
    } else {
      for (int e = 0; e < vector_length<T>; ++e)
        if (e < count) target[e] = vector.elements[e];
    }
  }
}

namespace detail {

/// Calls body with the width that kernels pad heads to: 16, 32, 64 or 128.
template <class Body>
void with_padded_head_dim(Index head_dim, Body&& body) {
  if (head_dim <= 16)
    body(std::integral_constant<int, 16>{});
  else if (head_dim <= 32)
    body(std::integral_constant<int, 32>{});
  else if (head_dim <= 64)
    body(std::integral_constant<int, 64>{});
  else
    body(std::integral_constant<int, 128>{});
}

/// A matrix of heads side by side: 16 bytes of a head may be read at once when every head begins on a multiple of 16.
template <class T>
Source<T> source_of_heads(MatrixView<T> matrix, Index head_dim) {
  Source<T> source(matrix);
  source.by_vectors = source.by_vectors && head_dim % vector_length<T> == 0;
  return source;
}

template <class T>
AttentionOperands<T> checked_operands(const char* where, const AttentionShape& shape, const AttentionTables& tables,
                                      MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v) {
  if (shape.heads < 1 || shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0)
    fail<ShapeError>(where, "heads in groups of one size",
                     std::to_string(shape.heads) + " heads over " + std::to_string(shape.kv_heads) + " kv_heads");
  if (shape.head_dim < 1 || shape.head_dim > largest_head_dim)
    fail<ShapeError>(where, "a head_dim of 1 to 128", std::to_string(shape.head_dim));
  check_shape(where, "q", q.rows, shape.heads * shape.head_dim, q.rows, q.cols);
  check_shape(where, "k", k.rows, shape.kv_heads * shape.head_dim, k.rows, k.cols);
  check_shape(where, "v", k.rows, k.cols, v.rows, v.cols);
  AttentionOperands<T> in;
  in.tables = tables;
  in.q = source_of_heads(q, shape.head_dim);
  in.k = source_of_heads(k, shape.head_dim);
  in.v = source_of_heads(v, shape.head_dim);
  in.heads = static_cast<int>(shape.heads);
  in.kv_heads = static_cast<int>(shape.kv_heads);
  in.group = in.heads / in.kv_heads;
  in.head_dim = static_cast<int>(shape.head_dim);
  in.causal = shape.causal;
  in.layer = shape.layer;
  constexpr double log2_of_e = 1.4426950408889634;
  in.scale = static_cast<float>(sizeof(T) == 4 ? shape.scale : shape.scale * log2_of_e);
  in.score_slope = static_cast<float>(shape.scale);
  return in;
}

}  // namespace detail
}  // namespace fedlora::cuda

#endif
