// SPDX-License-Identifier: Apache-2.0
// The backward pass of a low-rank term: dS = scale · dY B, dB += scale · dYᵀ S, dA += dSᵀ dropout(X) and
// dX += mask ∘ (dS A). dY is read once for dS and dB, X once for dA, dX read and written once; nothing is stored that
// could be drawn or computed again.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// One pass over a tall matrix: G = dropout(X)ᵀ S and, where `Project`, P = X B as well. In the backward pass of a term
/// it is once X = dY (G = dB, P = dS) and once X = X (S = dS, G = dA).
///
/// A block takes one slab of columns of X and one run of its rows, 64 rows at a time, double-buffered by cp.async (but
/// for float at ranks above 64, which would not fit `shared_bytes_everywhere`). G of
/// the slab stays in registers along the whole run, and B of the slab in shared memory; only P leaves, a float32
/// partial for each slab, and G once for each run. A wide slab saves partials of P and costs registers for G, so the
/// width falls with the rank: 512, 256 or 128 bytes (float at least 64 columns) for ranks to 16, 64, 128. Written
/// partials over bytes read are then r / 128, r / 64 and r / 32 for P, and at most 1 / 4 for G by the length of runs.
template <class T, FloatMath Math, int RankTiles, bool Project>
struct AdapterPassKernel {
  static constexpr int threads = 128;
  static constexpr int tile_rows = 64;
  static constexpr int stages = RankTiles > 8 && sizeof(T) == 4 ? 1 : 2;
  static constexpr int slab_bytes = RankTiles <= 2 ? 512 : RankTiles <= 8 ? 256 : 128;
  static constexpr int slab = std::max(64, slab_bytes / static_cast<int>(sizeof(T)));
  static constexpr int column_tiles = slab / 64;  ///< 16 columns each, of one warp
  static constexpr int stride = tile_stride<T>(slab);

  Source<const T> x;  ///< (rows, cols)
  Source<const T> s;  ///< (rows, rank)
  Source<const T> b;  ///< (cols, rank), where `Project`
  Dropout dropout;    ///< its mask alone; without `Project`
  const std::int32_t* row_numbers = nullptr;
  Index tiles_per_run = 0;
  float* g = nullptr;  ///< (runs, cols, g_stride), or (runs, rank, cols) where `g_by_rank`
  bool g_by_rank = false;
  float* p = nullptr;  ///< (slabs, rows, 8 · rank tiles in use)

  FEDLORA_HOST_DEVICE int rank() const { return static_cast<int>(s.cols); }
  FEDLORA_HOST_DEVICE int rank_cols() const { return divide_up(rank(), 16) * 16; }
  FEDLORA_HOST_DEVICE int s_stride() const { return tile_stride<T>(rank_cols()); }
  int shared_bytes() const {
    return (stages * tile_rows * (stride + s_stride()) + (Project ? slab * s_stride() : 0)) *
           static_cast<int>(sizeof(T));
  }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto x_tiles = block.template shared<T>(stages * tile_rows * stride);
    const auto s_tiles = block.template shared<T>(stages * tile_rows * s_stride());
    const auto b_tile = block.template shared<T>(Project ? slab * s_stride() : 0);
    const int rank_tiles = divide_up(rank(), 8);
    const Index col = block.x() * slab;
    const Index first_row = block.y() * tiles_per_run * tile_rows;
    const Index left = divide_up<Index>(x.rows - first_row, tile_rows);
    const int tiles = static_cast<int>(left < tiles_per_run ? left : tiles_per_run);

    const auto begin_copy = [&](int tile) {
      if (tile < tiles) {
        const Index row = first_row + static_cast<Index>(tile) * tile_rows;
        const int stage = tile % stages;
        copy_tile<T>(block, x_tiles + stage * tile_rows * stride, stride, x, row, col, tile_rows, slab);
        copy_tile<T>(block, s_tiles + stage * tile_rows * s_stride(), s_stride(), s, row, 0, tile_rows, rank_cols());
      }
      block.commit_copies();
    };

    Accumulator g_sums[column_tiles][RankTiles] = {};
    if constexpr (Project) copy_tile<T>(block, b_tile, s_stride(), b, col, 0, slab, rank_cols());
    begin_copy(0);
    for (int tile = 0; tile < tiles; ++tile) {
      const Index row = first_row + static_cast<Index>(tile) * tile_rows;
      const auto x_tile = x_tiles + tile % stages * tile_rows * stride;
      const auto s_tile = s_tiles + tile % stages * tile_rows * s_stride();
      block.template wait_copies<0>();
      if constexpr (!Project) {
        if (dropout) drop_tile<T>(block, x_tile, stride, x, dropout, row_numbers, row, col, tile_rows, slab);
      }
      block.sync();  // the tile is there for all, and nobody reads the one before any more
      if constexpr (stages > 1) begin_copy(tile + 1);
      add_columns(block, g_sums, x_tile, s_tile, rank_tiles);
      if constexpr (Project) project_rows(block, x_tile, b_tile, row, rank_tiles);
      if constexpr (stages == 1) {
        block.sync();
        begin_copy(tile + 1);
      }
    }

    unrolled<column_tiles * RankTiles>([&]<int At>() {
      constexpr int c = At / RankTiles;
      constexpr int n = At % RankTiles;
      if (n >= rank_tiles) return;
      for (int e = 0; e < 4; ++e) {
        const Index j = col + (block.warp() * column_tiles + c) * 16 + block.lane() / 4 + e / 2 * 8;
        const int k = n * 8 + block.lane() % 4 * 2 + e % 2;
        if (j >= x.cols || k >= rank()) continue;
        if (g_by_rank)
          g[(block.y() * rank() + k) * x.cols + j] = g_sums[c][n].sums[e];
        else
          g[(block.y() * x.cols + j) * (8 * rank_tiles) + k] = g_sums[c][n].sums[e];
      }
    });
  }

 private:
  /// G of this warp's columns += x_tileᵀ s_tile.
  template <class Block, class Tile>
  FEDLORA_DEVICE void add_columns(Block& block, Accumulator (&sums)[column_tiles][RankTiles], Tile x_tile, Tile s_tile,
                                  int rank_tiles) const {
    for (int k = 0; k < tile_rows; k += mma_depth<T>) {
      FragmentA columns[column_tiles];
      unrolled<column_tiles>([&]<int C>() {
        load_a_transposed<T>(block, columns[C], x_tile + (k * stride + (block.warp() * column_tiles + C) * 16), stride);
      });
      unrolled<RankTiles / 2>([&]<int Pair>() {
        constexpr int n = 2 * Pair;
        if (n >= rank_tiles) return;
        FragmentB right[2];
        load_b_pair_transposed<T>(block, right, s_tile + (k * s_stride() + n * 8), s_stride());
        unrolled<column_tiles>([&]<int C>() {
          multiply<T, Math>(block, sums[C][n], columns[C], right[0]);
          if (n + 1 < rank_tiles) multiply<T, Math>(block, sums[C][n + 1], columns[C], right[1]);
        });
      });
    }
  }

  /// P of this warp's 16 rows, over the slab's columns: x_tile b_tile.
  template <class Block, class Tile>
  FEDLORA_DEVICE void project_rows(Block& block, Tile x_tile, Tile b_tile, Index row, int rank_tiles) const {
    Accumulator sums[RankTiles] = {};
    for (int k = 0; k < slab; k += mma_depth<T>) {
      FragmentA rows;
      load_a<T>(block, rows, x_tile + (block.warp() * 16 * stride + k), stride);
      unrolled<RankTiles / 2>([&]<int Pair>() {
        constexpr int n = 2 * Pair;
        if (n >= rank_tiles) return;
        FragmentB right[2];
        load_b_pair_transposed<T>(block, right, b_tile + (k * s_stride() + n * 8), s_stride());
        multiply<T, Math>(block, sums[n], rows, right[0]);
        if (n + 1 < rank_tiles) multiply<T, Math>(block, sums[n + 1], rows, right[1]);
      });
    }
    unrolled<RankTiles>([&]<int N>() {
      if (N >= rank_tiles) return;
      for (int e = 0; e < 4; ++e) {
        const Index i = row + block.warp() * 16 + block.lane() / 4 + e / 2 * 8;
        const int k = N * 8 + block.lane() % 4 * 2 + e % 2;
        if (i < x.rows) p[(block.x() * x.rows + i) * (8 * rank_tiles) + k] = sums[N].sums[e];
      }
    });
  }
};

namespace detail {

/// How the matrix of one pass is cut into slabs of columns and runs of rows, and what the partials need.
struct PassCuts {
  Index slabs = 0;
  Index tiles_per_run = 0;
  Index runs = 0;

  PassCuts(Index rows, Index cols, Index slab, Index rank) : slabs(divide_up(cols, slab)) {
    const Index tiles = divide_up<Index>(rows, 64);
    const Index wanted = divide_up<Index>(enough_blocks, std::max<Index>(1, slabs));
    tiles_per_run = std::max({Index{1}, divide_up(tiles, wanted), divide_up<Index>(rank, 8)});
    runs = std::max<Index>(1, divide_up(tiles, tiles_per_run));
  }
};

/// The parts of the workspace of `low_rank_backward`, in bytes from its beginning. The partials of the second pass take
/// the place of those of the first, which are summed by then.
template <class T>
struct BackwardLayout {
  Index ds_stride = 0;
  std::size_t p_begin = 0, g_begin = 0, bytes = 0;

  BackwardLayout(Index rows, Index in, Index out, Index rank) {
    with_rank_tiles(rank, [&](auto tiles) {
      constexpr Index slab = AdapterPassKernel<T, FloatMath::tf32, tiles(), true>::slab;
      const PassCuts first(rows, out, slab, rank);
      const PassCuts second(rows, in, slab, rank);
      const Index padded = divide_up<Index>(rank, 8) * 8;
      ds_stride = divide_up<Index>(rank, 8) * 8;
      const auto rounded = [](Index size) { return static_cast<std::size_t>((size + 127) / 128 * 128); };
      p_begin = rounded(rows * ds_stride * static_cast<Index>(sizeof(T)));
      g_begin = p_begin + rounded(first.slabs * rows * padded * 4);
      const std::size_t first_end = g_begin + rounded(first.runs * out * padded * 4);
      const std::size_t second_end = p_begin + rounded(second.runs * rank * in * 4);
      bytes = std::max(first_end, second_end);
    });
  }
};

}  // namespace detail

/// Bytes of workspace that `low_rank_backward` needs for `rows` rows.
template <class T>
std::size_t low_rank_backward_workspace(Index rows, Index in, Index out, Index rank) {
  return detail::BackwardLayout<T>(rows, in, out, rank).bytes;
}

/// Given dY and S over the term's rows: grad_b += scale · dYᵀ S, grad_a += dSᵀ dropout(X) with dS = scale · dY B, and
/// dX += mask ∘ (dS A) unless dX is empty. An empty gradient is not computed. Sums are float32; dS is rounded to T
/// before it is multiplied, and dX once.
/// Shapes:      dy (rows, out), x (rows, in), s (rows, rank), dx (rows, in); all in device memory
/// Gradient:    accumulated
/// Determinism: the same bits in every run; the order of sums depends on shapes alone
/// \throws ShapeError
template <class T>
void low_rank_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> s,
                       const LowRankTerm<T, float>& term, MatrixView<T> dx, std::span<std::byte> workspace,
                       Stream stream, FloatMath math = FloatMath::tf32) {
  constexpr const char* where = "cuda::low_rank_backward";
  const Index rank = term.rank();
  const Index in = x.cols;
  const Index out = dy.cols;
  detail::check_rank(where, rank);
  detail::check_rows(where, term.begin, term.end, dy.rows);
  detail::check_shape(where, "X", dy.rows, in, x.rows, x.cols);
  detail::check_shape(where, "S", dy.rows, rank, s.rows, s.cols);
  detail::check_shape(where, "A", rank, in, term.a.rows, term.a.cols);
  detail::check_shape(where, "B", out, rank, term.b.rows, term.b.cols);
  if (!term.grad_a.empty()) detail::check_shape(where, "grad_a", rank, in, term.grad_a.rows, term.grad_a.cols);
  if (!term.grad_b.empty()) detail::check_shape(where, "grad_b", out, rank, term.grad_b.rows, term.grad_b.cols);
  if (!dx.empty()) detail::check_shape(where, "dX", dy.rows, in, dx.rows, dx.cols);
  const Index rows = term.end - term.begin;
  if (rows == 0) return;

  const detail::BackwardLayout<T> layout(rows, in, out, rank);
  auto* const memory = reinterpret_cast<std::byte*>(detail::workspace_floats(where, workspace, layout.bytes));
  const MatrixView<T> ds(reinterpret_cast<T*>(memory), rows, rank, layout.ds_stride);
  auto* const p = reinterpret_cast<float*>(memory + layout.p_begin);
  auto* const g = reinterpret_cast<float*>(memory + layout.g_begin);
  const Index padded = divide_up<Index>(rank, 8) * 8;
  const std::int32_t* const numbers = term.dropout ? term.row_numbers + term.begin : nullptr;
  detail::with_math<T>(math, [&](auto chosen) {
    detail::with_rank_tiles(rank, [&](auto rank_tiles) {
      AdapterPassKernel<T, chosen(), rank_tiles(), true> first;
      const detail::PassCuts cuts(rows, out, first.slab, rank);
      first.x = Source<const T>(dy.rows_between(term.begin, term.end));
      first.s = Source<const T>(s.rows_between(term.begin, term.end));
      first.b = Source<const T>(term.b);
      first.tiles_per_run = cuts.tiles_per_run;
      first.g = g;
      first.p = p;
      launch(stream, {cuts.slabs, cuts.runs}, first);
      const SumPartials<T, false> sum_ds{p, cuts.slabs, padded, rows, rank, ds.data, ds.stride, term.scale};
      launch(stream, sum_ds.grid(), sum_ds);
      if (!term.grad_b.empty()) {
        const SumPartials<float, true> sum{
            g, cuts.runs, padded, out, rank, term.grad_b.data, term.grad_b.stride, term.scale};
        launch(stream, sum.grid(), sum);
      }

      if (!term.grad_a.empty()) {
        AdapterPassKernel<T, chosen(), rank_tiles(), false> second;
        const detail::PassCuts x_cuts(rows, in, second.slab, rank);
        second.x = Source<const T>(x.rows_between(term.begin, term.end));
        second.s = Source<const T>(MatrixView<const T>(ds));
        second.dropout = term.dropout;
        second.row_numbers = numbers;
        second.tiles_per_run = x_cuts.tiles_per_run;
        second.g = p;
        second.g_by_rank = true;
        launch(stream, {x_cuts.slabs, x_cuts.runs}, second);
        const SumPartials<float, true> sum{
            p, x_cuts.runs, in, rank, in, term.grad_a.data, term.grad_a.stride, term.dropout.scale};
        launch(stream, sum.grid(), sum);
      }
    });

    if (dx.empty()) return;
    ExpandKernel<T, chosen(), true> expand;
    expand.s = Source<const T>(MatrixView<const T>(ds));
    expand.factor = Source<const T>(term.a);
    expand.y = Source<T>(dx.rows_between(term.begin, term.end));
    expand.dropout = term.dropout;
    expand.row_numbers = numbers;
    launch(stream, expand.grid(), expand);
  });
}

}  // namespace fedlora::cuda

#endif
