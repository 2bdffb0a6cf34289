// SPDX-License-Identifier: Apache-2.0
// The forward pass of a low-rank term: S = dropout(X) Aᵀ ("shrink") and Y += scale · S Bᵀ ("expand"). Both are bound by
// memory, not by arithmetic: what counts is that X is read once and Y is read and written once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// The largest rank the kernels take.
inline constexpr Index largest_rank = 128;

/// Shared memory that a block may have on every architecture from sm_80 on (sm_86 and sm_89 have the least).
inline constexpr int shared_bytes_everywhere = 99 * 1024;

/// Blocks that a launch should have at least, so that every multiprocessor of a large GPU has two. A constant: where
/// work is split must depend on shapes alone, never on the device.
inline constexpr Index enough_blocks = 264;

/// S = scale · dropout(X) Aᵀ over one range of columns of X ("split").
///
/// A block takes 64 rows, 16 to a warp, and walks along its columns, 128 bytes of each row at a time, through a ring of
/// three tiles filled by cp.async: two are on their way while one is multiplied. X is read once from memory; A comes
/// from the L2 cache, r / 64 of the bytes of X. Few rows would leave most of the GPU idle, so columns are split over
/// blocks, and each split writes float32 partials, which `SumPartials` adds in order.
template <class T, FloatMath Math, int RankTiles>
struct ShrinkKernel {
  static constexpr int threads = 128;
  static constexpr int tile_rows = 64;
  static constexpr int tile_cols = 128 / static_cast<int>(sizeof(T));
  static constexpr int stages = 3;
  static constexpr int stride = tile_stride<T>(tile_cols);

  Source<const T> x;  ///< (rows, in)
  Source<const T> a;  ///< (rank, in)
  Dropout dropout;
  const std::int32_t* row_numbers = nullptr;
  Index tiles_per_split = 0;  ///< tiles of columns of one split
  T* s = nullptr;             ///< (rows, rank), written when there is one split
  Index s_stride = 0;
  float* partials = nullptr;  ///< (splits, rows, 8 · rank tiles in use), written otherwise

  FEDLORA_HOST_DEVICE int rank() const { return static_cast<int>(a.rows); }
  FEDLORA_HOST_DEVICE int rank_rows() const { return divide_up(rank(), 16) * 16; }
  int shared_bytes() const { return stages * (tile_rows + rank_rows()) * stride * static_cast<int>(sizeof(T)); }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto x_tiles = block.template shared<T>(stages * tile_rows * stride);
    const auto a_tiles = block.template shared<T>(stages * rank_rows() * stride);
    const int rank_tiles = divide_up(rank(), 8);
    const Index row = block.x() * tile_rows;
    const Index first_col = block.y() * tiles_per_split * tile_cols;
    const Index left = divide_up<Index>(x.cols - first_col, tile_cols);
    const int tiles = static_cast<int>(left < tiles_per_split ? left : tiles_per_split);

    const auto begin_copy = [&](int tile) {
      if (tile < tiles) {
        const Index col = first_col + static_cast<Index>(tile) * tile_cols;
        const int stage = tile % stages;
        copy_tile<T>(block, x_tiles + stage * tile_rows * stride, stride, x, row, col, tile_rows, tile_cols);
        copy_tile<T>(block, a_tiles + stage * rank_rows() * stride, stride, a, 0, col, rank_rows(), tile_cols);
      }
      block.commit_copies();  // an empty group too, so that the count of groups in flight stays the same
    };

    Accumulator sums[RankTiles] = {};
    for (int tile = 0; tile < stages - 1; ++tile) begin_copy(tile);
    for (int tile = 0; tile < tiles; ++tile) {
      block.template wait_copies<stages - 2>();
      const auto x_tile = x_tiles + tile % stages * tile_rows * stride;
      const auto a_tile = a_tiles + tile % stages * rank_rows() * stride;
      if (dropout)
        drop_tile<T>(block, x_tile, stride, x, dropout, row_numbers, row,
                     first_col + static_cast<Index>(tile) * tile_cols, tile_rows, tile_cols);
      block.sync();  // the tile is there for all, and nobody reads the one before any more
      begin_copy(tile + stages - 1);
      for (int k = 0; k < tile_cols; k += mma_depth<T>) {
        FragmentA left_part;
        load_a<T>(block, left_part, x_tile + (block.warp() * 16 * stride + k), stride);
        unrolled<RankTiles / 2>([&]<int Pair>() {
          constexpr int n = 2 * Pair;
          if (n >= rank_tiles) return;
          FragmentB right[2];
          load_b_pair<T>(block, right, a_tile + (n * 8 * stride + k), stride);
          multiply<T, Math>(block, sums[n], left_part, right[0]);
          if (n + 1 < rank_tiles) multiply<T, Math>(block, sums[n + 1], left_part, right[1]);
        });
      }
    }

    // Whoever keeps an element keeps it times `dropout.scale`: one factor for the whole sum.
    const bool whole = partials == nullptr;
    unrolled<RankTiles>([&]<int N>() {
      if (N >= rank_tiles) return;
      for (int e = 0; e < 4; ++e) {
        const Index i = row + block.warp() * 16 + block.lane() / 4 + e / 2 * 8;
        const int j = N * 8 + block.lane() % 4 * 2 + e % 2;
        if (i >= x.rows) continue;
        if (!whole)
          partials[(block.y() * x.rows + i) * (8 * rank_tiles) + j] = sums[N].sums[e];
        else if (j < rank())
          s[i * s_stride + j] = T(sums[N].sums[e] * dropout.scale);
      }
    });
  }
};

/// Y += scale · mask ∘ (S Fᵀ), or S F where `Transposed`: the factor F is (cols, rank), or (rank, cols).
///
/// A block takes (64, 128) of Y. S and F come whole over the rank, (64 + 128) r elements from the L2 cache against the
/// 2 · 8192 of Y that are read and written in memory. Sums pass through shared memory, because a lane holds two
/// neighbours only and memory wants 16 bytes of each. The mask, where there is one, is drawn again.
template <class T, FloatMath Math, bool Transposed>
struct ExpandKernel {
  static constexpr int threads = 128;
  static constexpr int tile_rows = 64;
  static constexpr int tile_cols = 128;
  static constexpr int sums_stride = tile_cols + 4;  // 16 bytes more: four rows of 16 bytes each in different banks

  Source<const T> s;       ///< (rows, rank)
  Source<const T> factor;  ///< (cols, rank) or (rank, cols)
  Source<T> y;             ///< (rows, cols)
  float scale = 1.0f;
  Dropout dropout;
  const std::int32_t* row_numbers = nullptr;

  FEDLORA_HOST_DEVICE int rank() const { return static_cast<int>(s.cols); }
  FEDLORA_HOST_DEVICE int depth() const { return divide_up(rank(), mma_depth<T>) * mma_depth<T>; }
  FEDLORA_HOST_DEVICE int s_stride() const { return tile_stride<T>(depth()); }
  FEDLORA_HOST_DEVICE int factor_stride() const { return Transposed ? tile_stride<T>(tile_cols) : s_stride(); }
  FEDLORA_HOST_DEVICE int factor_rows() const { return Transposed ? depth() : tile_cols; }
  int shared_bytes() const {
    return std::max((tile_rows * s_stride() + factor_rows() * factor_stride()) * static_cast<int>(sizeof(T)),
                    tile_rows * sums_stride * static_cast<int>(sizeof(float)));
  }
  Grid grid() const { return {divide_up<Index>(y.rows, tile_rows), divide_up<Index>(y.cols, tile_cols)}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto s_tile = block.template shared<T>(tile_rows * s_stride());
    const auto factor_tile = block.template shared<T>(factor_rows() * factor_stride());
    const Index row = block.x() * tile_rows;
    const Index col = block.y() * tile_cols;
    copy_tile<T>(block, s_tile, s_stride(), s, row, 0, tile_rows, depth());
    if constexpr (Transposed)
      copy_tile<T>(block, factor_tile, factor_stride(), factor, 0, col, depth(), tile_cols);
    else
      copy_tile<T>(block, factor_tile, factor_stride(), factor, col, 0, tile_cols, depth());
    block.commit_copies();
    block.template wait_copies<0>();
    block.sync();

    Accumulator sums[tile_cols / 8] = {};
    for (int k = 0; k < depth(); k += mma_depth<T>) {
      FragmentA left;
      load_a<T>(block, left, s_tile + (block.warp() * 16 * s_stride() + k), s_stride());
      unrolled<tile_cols / 16>([&]<int Pair>() {
        constexpr int n = 2 * Pair;
        FragmentB right[2];
        if constexpr (Transposed)
          load_b_pair_transposed<T>(block, right, factor_tile + (k * factor_stride() + n * 8), factor_stride());
        else
          load_b_pair<T>(block, right, factor_tile + (n * 8 * factor_stride() + k), factor_stride());
        multiply<T, Math>(block, sums[n], left, right[0]);
        multiply<T, Math>(block, sums[n + 1], left, right[1]);
      });
    }
    block.sync();  // nobody needs S and F any more: the sums take their place
    block.restart_shared();
    const auto sums_tile = block.template shared<float>(tile_rows * sums_stride);
    unrolled<tile_cols / 8>([&]<int N>() {
      for (int e = 0; e < 4; ++e)
        sums_tile[(block.warp() * 16 + block.lane() / 4 + e / 2 * 8) * sums_stride + N * 8 + block.lane() % 4 * 2 +
                  e % 2] = sums[N].sums[e];
    });
    block.sync();
    for_vectors<T>(block, tile_rows, tile_cols, [&](int i, int j) { add_vector(block, sums_tile, row, col, i, j); });
  }

 private:
  /// Y gets the sums (i, j), …, 16 bytes of Y, of the block's tile.
  template <class Block, class Tile>
  FEDLORA_DEVICE void add_vector(Block& block, Tile sums_tile, Index row, Index col, int i, int j) const {
    const int count = elements_at(y, row + i, col + j);
    if (count == 0) return;
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) values[e] = scale * sums_tile[i * sums_stride + j + e];
    if (dropout) {
      const std::int32_t number = row_numbers[row + i];
      for (int quad = 0; quad < vector_length<T>; quad += 4) {
        const RandomWords words = dropout_words(dropout, number, col + j + quad);
        for (int e = 0; e < 4; ++e)
          values[quad + e] *= words[static_cast<std::size_t>(e)] < dropout.threshold ? 0.0f : dropout.scale;
      }
    }
    T* const to = y.data + (row + i) * y.stride + col + j;
    if (y.by_vectors && count == vector_length<T>) {
      Vector<T> vector = block.load_vector(to);
      for (int e = 0; e < vector_length<T>; ++e)
        vector.elements[e] = T(static_cast<float>(vector.elements[e]) + values[e]);
      block.store_vector(to, vector);
    } else {
      for (int e = 0; e < vector_length<T>; ++e)
        if (e < count) to[e] = T(static_cast<float>(to[e]) + values[e]);
    }
  }
};

namespace detail {

/// Calls body with the number of rank tiles that a kernel is compiled for: 2, 8 or 16. Tiles beyond the rank are not
/// computed; more variants would only save registers.
template <class Body>
void with_rank_tiles(Index rank, Body&& body) {
  if (rank <= 16)
    body(std::integral_constant<int, 2>{});
  else if (rank <= 64)
    body(std::integral_constant<int, 8>{});
  else
    body(std::integral_constant<int, 16>{});
}

/// Calls body with the way to multiply, as a constant. There is one only for 16-bit types.
template <class T, class Body>
void with_math(FloatMath math, Body&& body) {
  if constexpr (sizeof(T) == 4) {
    if (math == FloatMath::float32) return body(std::integral_constant<FloatMath, FloatMath::float32>{});
  }
  body(std::integral_constant<FloatMath, FloatMath::tf32>{});
}

inline void check_rank(const char* where, Index rank) {
  if (rank < 1 || rank > largest_rank) fail<ShapeError>(where, "a rank of 1 to 128", std::to_string(rank));
}

inline void check_shape(const char* where, const char* name, Index rows, Index cols, Index got_rows, Index got_cols) {
  if (rows != got_rows || cols != got_cols)
    fail<ShapeError>(where, std::string(name) + " of shape " + shape_text(rows, cols), shape_text(got_rows, got_cols));
}

inline void check_rows(const char* where, Index begin, Index end, Index rows) {
  if (begin < 0 || end < begin || end > rows)
    fail<ShapeError>(where, "rows within [0, " + std::to_string(rows) + ")",
                     "[" + std::to_string(begin) + ", " + std::to_string(end) + ")");
}

inline float* workspace_floats(const char* where, std::span<std::byte> workspace, std::size_t needed) {
  if (workspace.size() < needed || reinterpret_cast<std::uintptr_t>(workspace.data()) % 16 != 0)
    fail<ShapeError>(where, std::to_string(needed) + " bytes of workspace on a multiple of 16",
                     std::to_string(workspace.size()));
  return reinterpret_cast<float*>(workspace.data());
}

/// How the columns of X are split for the shrink.
struct ShrinkSplits {
  Index count;
  Index tiles_per_split;

  ShrinkSplits(Index rows, Index in, Index element_bytes) {
    const Index tiles = divide_up<Index>(in * element_bytes, 128);
    const Index wanted = divide_up<Index>(enough_blocks, std::max<Index>(1, divide_up<Index>(rows, 64)));
    // Four tiles at least: what the ring costs to fill, and the partials, must stay small beside them.
    tiles_per_split = std::max<Index>(4, divide_up<Index>(tiles, wanted));
    count = std::max<Index>(1, divide_up<Index>(tiles, tiles_per_split));
  }
};

}  // namespace detail

/// Bytes of workspace that `low_rank_shrink` needs for `rows` rows.
template <class T>
std::size_t low_rank_shrink_workspace(Index rows, Index in, Index rank) {
  const detail::ShrinkSplits splits(rows, in, sizeof(T));
  if (splits.count == 1) return 0;
  return static_cast<std::size_t>(splits.count * rows * divide_up<Index>(rank, 8) * 8) * sizeof(float);
}

/// S = dropout(X) Aᵀ over the term's rows, sums in float32, rounded once to T.
/// Shapes:      x (rows, in), term.a (rank, in), s (rows, rank); all in device memory
/// Determinism: the same bits in every run; the order of sums depends on shapes alone
/// \throws ShapeError
template <class T>
void low_rank_shrink(MatrixView<const T> x, const LowRankTerm<T, float>& term, MatrixView<T> s,
                     std::span<std::byte> workspace, Stream stream, FloatMath math = FloatMath::tf32) {
  constexpr const char* where = "cuda::low_rank_shrink";
  detail::check_rank(where, term.rank());
  detail::check_rows(where, term.begin, term.end, x.rows);
  detail::check_shape(where, "A", term.rank(), x.cols, term.a.rows, term.a.cols);
  detail::check_shape(where, "S", x.rows, term.rank(), s.rows, s.cols);
  const Index rows = term.end - term.begin;
  if (rows == 0) return;
  const detail::ShrinkSplits splits(rows, x.cols, sizeof(T));
  float* const partials =
      detail::workspace_floats(where, workspace, low_rank_shrink_workspace<T>(rows, x.cols, term.rank()));
  T* const s_data = s.row(term.begin);
  detail::with_math<T>(math, [&](auto chosen) {
    detail::with_rank_tiles(term.rank(), [&](auto rank_tiles) {
      ShrinkKernel<T, chosen(), rank_tiles()> kernel;
      kernel.x = Source<const T>(x.rows_between(term.begin, term.end));
      kernel.a = Source<const T>(term.a);
      kernel.dropout = term.dropout;
      if (term.dropout) kernel.row_numbers = term.row_numbers + term.begin;
      kernel.tiles_per_split = splits.tiles_per_split;
      kernel.s = s_data;
      kernel.s_stride = s.stride;
      kernel.partials = splits.count > 1 ? partials : nullptr;
      launch(stream, {divide_up<Index>(rows, kernel.tile_rows), splits.count}, kernel);
    });
  });
  if (splits.count == 1) return;
  const SumPartials<T, false> sum{partials, splits.count,      divide_up<Index>(term.rank(), 8) * 8,
                                  rows,     term.rank(),       s_data,
                                  s.stride, term.dropout.scale};
  launch(stream, sum.grid(), sum);
}

/// Y += scale · S Bᵀ over the term's rows, sums in float32, rounded once to T.
/// Shapes:      s (rows, rank), term.b (out, rank), y (rows, out); all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void low_rank_expand(MatrixView<const T> s, const LowRankTerm<T, float>& term, MatrixView<T> y, Stream stream,
                     FloatMath math = FloatMath::tf32) {
  constexpr const char* where = "cuda::low_rank_expand";
  detail::check_rank(where, term.rank());
  detail::check_rows(where, term.begin, term.end, y.rows);
  detail::check_shape(where, "S", y.rows, term.rank(), s.rows, s.cols);
  detail::check_shape(where, "B", y.cols, term.rank(), term.b.rows, term.b.cols);
  if (term.end == term.begin) return;
  detail::with_math<T>(math, [&](auto chosen) {
    ExpandKernel<T, chosen(), false> kernel;
    kernel.s = Source<const T>(s.rows_between(term.begin, term.end));
    kernel.factor = Source<const T>(term.b);
    kernel.y = Source<T>(y.rows_between(term.begin, term.end));
    kernel.scale = term.scale;
    launch(stream, kernel.grid(), kernel);
  });
}

}  // namespace fedlora::cuda

#endif
