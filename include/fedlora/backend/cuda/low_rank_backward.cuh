// SPDX-License-Identifier: Apache-2.0
// The backward pass of a group of low-rank terms: dS_i = scale_i · dY_i B_i, dB_i += scale_i · dY_iᵀ S_i,
// dA_i += dS_iᵀ dropout_i(X) and dX += Σ mask_i ∘ (dS_i A_i). Each dY_i is read once for dS_i and dB_i (above rank 32
// twice: two passes move fewer bytes then), X once for all dA_i, dX read and written once for all terms; nothing is
// stored that could be drawn or computed again.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/low_rank_expand.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "fedlora/backend/cuda/low_rank_group.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// One pass over tall matrices. Where `Apart`, it is over the dY_i, each term with a matrix of its own: G_i = dY_iᵀ S_i
/// (for dB_i) and, for ranks that are not too large, P_i = dY_i B_i (for dS_i). Otherwise it is over the one X of the
/// group: G_i = dropout_i(X)ᵀ dS_i (for dA_i) for all terms of a chunk.
///
/// A block takes one slab of columns of its matrix and one run of its rows, 64 rows at a time, through a ring of tiles
/// filled by cp.async. G of the slab stays in registers along the whole run, and B of the slab in shared memory; only P
/// leaves, a float32 partial for each slab, and G once for each run. A wide slab saves partials of P and reads of S but
/// costs registers for G, so the width falls with the ranks: 512, 256 or 128 bytes (float at least 64 columns) for 2, 8
/// and 16 rank tiles. Written partials over bytes read are then r / 128 and r / 64 for P, and at most 1 / 4 for G by
/// the length of runs. The ring has as many tiles as fit `shared_bytes_everywhere`: one for float where there are 16
/// rank tiles.
template <class T, FloatMath Math, int Tiles, bool Apart>
struct AdapterPassKernel {
  static constexpr int threads = 128;
  static constexpr int tile_rows = 64;
  static constexpr int stages = sizeof(T) == 2 ? (Tiles <= 2 ? 2 : 3) : (Tiles <= 8 ? 2 : 1);
  static constexpr int ahead = stages > 1 ? stages - 1 : 1;  ///< tiles on their way
  static constexpr int slab_bytes = Tiles <= 2 ? 512 : Tiles <= 8 ? 256 : 128;
  static constexpr int slab = std::max(64, slab_bytes / static_cast<int>(sizeof(T)));
  static constexpr int column_tiles = slab / 64;  ///< 16 columns each, of one warp
  static constexpr int stride = tile_stride<T>(slab);
  static constexpr int mask_words = tile_rows * slab / mask_word;
  static constexpr bool can_project = Apart && Tiles <= 8;

  struct Term {
    Source<const T> x;  ///< (rows, cols): dY_i, or X
    Source<const T> s;  ///< (rows, rank): S_i, or dS_i
    Source<const T> b;  ///< (cols, rank), where P is wanted
    Dropout dropout;    ///< its mask alone; not where `Apart`
    const std::int32_t* row_numbers = nullptr;
    float* g = nullptr;  ///< (runs, cols, padded rank) where `Apart`, else (runs, rank, cols); null: not wanted
    float* p = nullptr;  ///< (slabs, rows, padded rank)
  };

  Term terms[largest_group];
  RankTiles ranks;        ///< where `Apart`, each term is a chunk
  bool drops = false;     ///< whether any of the terms does; not where `Apart`
  bool projects = false;  ///< whether P is wanted; where `can_project`
  Index tiles_per_run = 0;

  int shared_bytes() const {
    return (stages * tile_rows * (stride + s_stride()) + b_elements()) * static_cast<int>(sizeof(T)) +
           2 * mask_elements();
  }
  /// All slabs of all chunks.
  Index slabs() const {
    Index sum = 0;
    for (int c = 0; c < ranks.chunks; ++c) sum += divide_up<Index>(terms[ranks.chunk_begins[c]].x.cols, slab);
    return sum;
  }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto x_tiles = block.template shared<T>(stages * tile_rows * stride);
    const auto s_tiles = block.template shared<T>(stages * tile_rows * s_stride());
    const auto b_tile = block.template shared<T>(b_elements());
    const auto masks = block.template shared<std::uint16_t>(mask_elements());
    int chunk = 0;
    Index slab_at = block.x();
    if constexpr (Apart) {
      for (; slab_at >= divide_up<Index>(terms[chunk].x.cols, slab); ++chunk)
        slab_at -= divide_up<Index>(terms[chunk].x.cols, slab);
    } else {
      chunk = static_cast<int>(slab_at % ranks.chunks);  // neighbours share a slab of X
      slab_at /= ranks.chunks;
    }
    const int first = ranks.chunk_begins[chunk];
    const int last = ranks.chunk_begins[chunk + 1];
    const int rank_tiles = ranks.tiles(first, last);
    const Term& head = terms[first];
    const Index col = slab_at * slab;
    const Index first_row = block.y() * tiles_per_run * tile_rows;
    const Source<const T> x = head.x.rest(first_row, col);
    const Index left = divide_up<Index>(x.rows, tile_rows);
    const int tiles = static_cast<int>(left < tiles_per_run ? left : tiles_per_run);

    const auto begin_copy = [&](int tile) {
      if (tile < tiles) {
        const int row = tile * tile_rows;
        const int stage = tile % stages;
        copy_tile<T, slab>(block, x_tiles + stage * tile_rows * stride, stride, x, row, 0, tile_rows);
        for (int i = first; i < last; ++i)
          copy_tile<T>(block, s_tiles + (stage * tile_rows * s_stride() + 8 * ranks.tiles(first, i)), s_stride(),
                       terms[i].s, first_row + row, 0, tile_rows, 8 * ranks.tiles(i, i + 1));
      }
      block.commit_copies();
    };

    Accumulator g_sums[column_tiles][Tiles] = {};
    if constexpr (can_project) {
      if (projects) copy_tile<T>(block, b_tile, s_stride(), head.b, col, 0, slab, 8 * rank_tiles);
    }
    for (int tile = 0; tile < ahead; ++tile) begin_copy(tile);
    for (int tile = 0; tile < tiles; ++tile) {
      const auto x_tile = x_tiles + tile % stages * tile_rows * stride;
      const auto s_tile = s_tiles + tile % stages * tile_rows * s_stride();
      const auto tile_masks = masks + tile % 2 * (mask_elements() / 2);
      if constexpr (!Apart) {
        for (int i = first; i < last; ++i)
          if (terms[i].dropout)
            draw_mask(block, tile_masks + (i - first) * mask_words, terms[i].dropout, terms[i].row_numbers + first_row,
                      x.rows, tile * tile_rows, col, tile_rows, slab);
      }
      block.template wait_copies<ahead - 1>();
      block.sync();  // the tile is there for all, and nobody reads the one before any more
      if constexpr (stages > 1) begin_copy(tile + ahead);
      if (!Apart || head.g != nullptr) add_columns(block, g_sums, x_tile, s_tile, tile_masks, first, last);
      if constexpr (can_project) {
        if (projects)
          project_rows(block, x_tile, b_tile, x.rows, tile * tile_rows, rank_tiles,
                       head.p + (slab_at * head.x.rows + first_row) * (8 * rank_tiles));
      }
      if constexpr (stages == 1) {
        block.sync();
        begin_copy(tile + 1);
      }
    }

    unrolled<column_tiles * Tiles>([&]<int At>() {
      constexpr int c = At / Tiles;
      constexpr int n = At % Tiles;
      if (n >= rank_tiles) return;
      const int i = ranks.term_of(first, n);
      const Term& term = terms[i];
      if (term.g == nullptr) return;
      for (int e = 0; e < 4; ++e) {
        const int j = (block.warp() * column_tiles + c) * 16 + block.lane() / 4 + e / 2 * 8;
        const int k = (n - ranks.tiles(first, i)) * 8 + block.lane() % 4 * 2 + e % 2;
        if (j >= x.cols || k >= term.s.cols) continue;
        if constexpr (Apart)
          term.g[(block.y() * head.x.cols + col + j) * (8 * rank_tiles) + k] = g_sums[c][n].sums[e];
        else
          term.g[(block.y() * term.s.cols + k) * head.x.cols + col + j] = g_sums[c][n].sums[e];
      }
    });
  }

 private:
  FEDLORA_HOST_DEVICE int s_stride() const { return tile_stride<T>(divide_up(ranks.largest_chunk, 2) * 16); }
  FEDLORA_HOST_DEVICE int b_elements() const { return can_project && projects ? slab * s_stride() : 0; }
  /// Two masks for each term of a chunk, that one may be drawn while another is read.
  FEDLORA_HOST_DEVICE int mask_elements() const { return drops ? 2 * ranks.most_terms * mask_words : 0; }

  /// G of this warp's columns += dropout(x_tile)ᵀ s_tile.
  template <class Block, class Tile, class Masks>
  FEDLORA_DEVICE void add_columns(Block& block, Accumulator (&sums)[column_tiles][Tiles], Tile x_tile, Tile s_tile,
                                  Masks masks, int first, int last) const {
    const int rank_tiles = ranks.tiles(first, last);
    unrolled<tile_rows / mma_depth<T>>([&]<int Step>() {
      constexpr int k = Step * mma_depth<T>;
      FragmentA columns[column_tiles];
      const auto load = [&]<int C>() {
        load_a_transposed<T>(block, columns[C], x_tile + (k * stride + (block.warp() * column_tiles + C) * 16), stride);
      };
      unrolled<column_tiles>(load);
      int term = first;
      int term_begin = drops ? 0 : -1;
      const auto begin_rank_tile = [&](int n) {
        if (Apart || n != term_begin) return;
        unrolled<column_tiles>(load);  // again, for want of registers
        if (terms[term].dropout)
          unrolled<column_tiles>([&]<int C>() {
            keep_a_transposed<T>(
                block, columns[C],
                masks + ((term - first) * mask_words + k * (slab / mask_word) + block.warp() * column_tiles + C),
                slab / mask_word);
          });
        ++term;
        term_begin = term < last ? ranks.tiles(first, term) : -1;
      };
      unrolled<Tiles / 2>([&]<int PairOfTiles>() {
        constexpr int n = 2 * PairOfTiles;
        if (n >= rank_tiles) return;
        FragmentB right[2];
        load_b_pair_transposed<T>(block, right, s_tile + (k * s_stride() + n * 8), s_stride());
        begin_rank_tile(n);
        unrolled<column_tiles>([&]<int C>() { multiply<T, Math>(block, sums[C][n], columns[C], right[0]); });
        if (n + 1 >= rank_tiles) return;
        begin_rank_tile(n + 1);
        unrolled<column_tiles>([&]<int C>() { multiply<T, Math>(block, sums[C][n + 1], columns[C], right[1]); });
      });
    });
  }

  /// P of this warp's 16 rows, over the slab's columns: x_tile b_tile.
  template <class Block, class Tile>
  FEDLORA_DEVICE void project_rows(Block& block, Tile x_tile, Tile b_tile, Index rows, int row, int rank_tiles,
                                   float* p) const {
    Accumulator sums[Tiles] = {};
    for (int k = 0; k < slab; k += mma_depth<T>) {
      FragmentA left;
      load_a<T>(block, left, x_tile + (block.warp() * 16 * stride + k), stride);
      unrolled<Tiles / 2>([&]<int PairOfTiles>() {
        constexpr int n = 2 * PairOfTiles;
        if (n >= rank_tiles) return;
        FragmentB right[2];
        load_b_pair_transposed<T>(block, right, b_tile + (k * s_stride() + n * 8), s_stride());
        multiply<T, Math>(block, sums[n], left, right[0]);
        if (n + 1 < rank_tiles) multiply<T, Math>(block, sums[n + 1], left, right[1]);
      });
    }
    unrolled<Tiles>([&]<int N>() {
      if (N >= rank_tiles) return;
      for (int e = 0; e < 4; ++e) {
        const int i = row + block.warp() * 16 + block.lane() / 4 + e / 2 * 8;
        const int k = N * 8 + block.lane() % 4 * 2 + e % 2;
        if (i < rows) p[i * (8 * rank_tiles) + k] = sums[N].sums[e];
      }
    });
  }
};

/// One term of a group on its way backward.
template <class T>
struct BackwardTerm {
  LowRankTerm<T, float> term;
  MatrixView<const T> dy;  ///< (rows, out)
  MatrixView<const T> s;   ///< (rows, rank), or (rows, padded rank)
  MatrixView<T> ds;        ///< receives dS, of either shape; columns beyond the rank become zero. Or empty
};

namespace detail {

/// How the matrices of one pass are cut into slabs of columns and runs of rows.
struct PassCuts {
  Index tiles_per_run = 0;
  Index runs = 0;
  Index most_runs = 0;  ///< for as many rows or fewer

  /// `slabs` are those of all matrices, `tiles` the rank tiles that a block keeps sums of: a run must be long beside
  /// what it leaves.
  PassCuts(Index rows, Index slabs, Index tiles) {
    const Index row_tiles = divide_up<Index>(rows, 64);
    const Index wanted = divide_up<Index>(enough_blocks, std::max<Index>(1, slabs));
    tiles_per_run = std::max({Index{1}, divide_up(row_tiles, wanted), tiles});
    runs = std::max<Index>(1, divide_up(row_tiles, tiles_per_run));
    most_runs = std::max<Index>(1, std::min(wanted, divide_up(row_tiles, tiles)));
  }
};

/// The passes of a group, and the parts of its workspace, in bytes from its beginning. The partials of the second pass
/// take the place of those of dS, which are summed by then.
template <class T>
struct BackwardPlan {
  /// Rank tiles up to which dS comes out of the pass over dY. At four, writing and reading the partials of P costs as
  /// much as reading dY again, and beyond that a shrink of its own is cheaper.
  static constexpr int most_projected = 4;

  RankTiles terms;                  ///< each a chunk, for the first pass
  RankTiles ranks;                  ///< chunks that share X, for the second pass
  bool projects = false;            ///< whether dS comes out of the first pass
  Index slabs[largest_group] = {};  ///< of dY_i
  std::size_t ds[largest_group] = {}, g[largest_group] = {}, p[largest_group] = {}, a[largest_group] = {};
  std::size_t shrink = 0;  ///< partials of dS, where it has a pass of its own
  std::size_t bytes = 0;
  PassCuts first{0, 0, 1}, second{0, 0, 1};

  /// With `at_most`, the bytes are enough for fewer rows too, whose runs may be more.
  BackwardPlan(Index rows, Index in, std::span<const TermShape> shapes, bool at_most = false)
      : terms(shapes, 0), ranks(shapes), projects(terms.largest_chunk <= most_projected) {
    Index all_slabs = 0, widest = 0;
    for (const TermShape& shape : shapes) widest = std::max(widest, shape.out);
    with_rank_tiles(terms.largest_chunk, [&](auto tiles) {
      constexpr Index slab = AdapterPassKernel<T, FloatMath::tf32, tiles(), true>::slab;
      for (std::size_t i = 0; i < shapes.size(); ++i) all_slabs += slabs[i] = divide_up<Index>(shapes[i].out, slab);
    });
    first = PassCuts(rows, all_slabs, terms.largest_chunk);
    with_rank_tiles(ranks.largest_chunk, [&](auto tiles) {
      constexpr Index slab = AdapterPassKernel<T, FloatMath::tf32, tiles(), false>::slab;
      second = PassCuts(rows, divide_up<Index>(in, slab) * ranks.chunks, ranks.largest_chunk);
    });
    const auto take = [&](Index size) {
      const std::size_t begin = bytes;
      bytes += static_cast<std::size_t>(divide_up<Index>(size, 128) * 128);
      return begin;
    };
    const Index first_runs = at_most ? first.most_runs : first.runs;
    const Index second_runs = at_most ? second.most_runs : second.runs;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      ds[i] = take(rows * padded_rank(shapes[i].rank) * static_cast<Index>(sizeof(T)));
      g[i] = take(first_runs * shapes[i].out * padded_rank(shapes[i].rank) * 4);
    }
    shrink = bytes;
    if (projects)
      for (std::size_t i = 0; i < shapes.size(); ++i) p[i] = take(slabs[i] * rows * padded_rank(shapes[i].rank) * 4);
    else
      take(static_cast<Index>(at_most ? most_shrink_bytes<T>(rows, widest, terms)
                                      : shrink_bytes<T>(rows, widest, terms)));
    const std::size_t end = bytes;
    bytes = shrink;
    for (std::size_t i = 0; i < shapes.size(); ++i) a[i] = take(second_runs * shapes[i].rank * in * 4);
    bytes = std::max(bytes, end);
  }
};

template <class T>
void check_backward(const char* where, MatrixView<const T> x, std::span<const BackwardTerm<T>> terms,
                    MatrixView<T> dx) {
  check_group(where, terms.size());
  const Index begin = terms[0].term.begin;
  const Index end = terms[0].term.end;
  check_rows(where, begin, end, x.rows);
  for (const auto& [term, dy, s, ds] : terms) {
    const Index rank = term.rank();
    check_rank(where, rank);
    check_same_rows(where, begin, end, term.begin, term.end);
    check_shape(where, "dY", x.rows, term.b.rows, dy.rows, dy.cols);
    check_rank_columns(where, "S", x.rows, rank, s.rows, s.cols);
    if (!ds.empty()) check_rank_columns(where, "dS", x.rows, rank, ds.rows, ds.cols);
    check_shape(where, "A", rank, x.cols, term.a.rows, term.a.cols);
    check_shape(where, "B", term.b.rows, rank, term.b.rows, term.b.cols);
    if (!term.grad_a.empty()) check_shape(where, "grad_a", rank, x.cols, term.grad_a.rows, term.grad_a.cols);
    if (!term.grad_b.empty()) check_shape(where, "grad_b", term.b.rows, rank, term.grad_b.rows, term.grad_b.cols);
  }
  if (!dx.empty()) check_shape(where, "dX", x.rows, x.cols, dx.rows, dx.cols);
}

}  // namespace detail

/// Bytes of workspace that `low_rank_backward_group` needs for `rows` rows, or fewer.
template <class T>
std::size_t low_rank_backward_group_workspace(Index rows, Index in, std::span<const TermShape> shapes) {
  detail::check_group("cuda::low_rank_backward_group_workspace", shapes.size());
  return detail::BackwardPlan<T>(rows, in, shapes, true).bytes;
}

/// For a group of 1 to 4 terms over the same rows of X: grad_b += scale · dYᵀ S and grad_a += dSᵀ dropout(X) of each,
/// with dS = scale · dY B, and dX += Σ mask ∘ (dS A) unless dX is empty. An empty gradient is not computed. Sums are
/// float32; dS is rounded to T before it is multiplied, and dX once.
///
/// A term leaves dS in its `ds`, unless that is empty. Without dropout, and with the dS in columns behind those of dY,
/// the product of [dY | dS] and [W ; A] is all of dX (low_rank_augmented.cuh): then dX is left empty here.
/// Shapes:      x, dx (rows, in), dy (rows, out), s and ds (rows, rank) or (rows, padded_rank(rank)); all in device
///              memory. `out` and the rank may differ from term to term
/// Gradient:    accumulated
/// Aliasing:    s may be columns of X's rows behind its own, ds of dY's
/// Determinism: the same bits in every run; the order of sums depends on shapes alone
/// \throws ShapeError
template <class T>
void low_rank_backward_group(MatrixView<const T> x, std::span<const BackwardTerm<T>> terms, MatrixView<T> dx,
                             std::span<std::byte> workspace, Stream stream, FloatMath math = FloatMath::tf32) {
  constexpr const char* where = "cuda::low_rank_backward";
  detail::check_backward(where, x, terms, dx);
  const Index begin = terms[0].term.begin;
  const Index end = terms[0].term.end;
  const Index rows = end - begin;
  const Index in = x.cols;
  if (rows == 0) return;

  TermShape shapes[largest_group];
  for (std::size_t i = 0; i < terms.size(); ++i) shapes[i] = {terms[i].dy.cols, terms[i].term.rank()};
  const detail::BackwardPlan<T> plan(rows, in, {shapes, terms.size()});
  auto* const memory = reinterpret_cast<std::byte*>(detail::workspace_floats(where, workspace, plan.bytes));
  const auto floats_at = [&](std::size_t byte) { return reinterpret_cast<float*>(memory + byte); };
  MatrixView<T> ds[largest_group];  // the rows of the group alone
  bool any_grad_a = false;
  bool any_ds = !dx.empty();
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const BackwardTerm<T>& given = terms[i];
    ds[i] = given.ds.empty() ? MatrixView<T>(reinterpret_cast<T*>(memory + plan.ds[i]), rows, shapes[i].rank,
                                             padded_rank(shapes[i].rank))
                             : given.ds.rows_between(begin, end);
    any_grad_a = any_grad_a || !given.term.grad_a.empty();
    any_ds = any_ds || any_grad_a || !given.ds.empty();
  }
  const auto ds_source = [&](std::size_t i) {
    return Source<const T>(MatrixView<const T>(ds[i].left(shapes[i].rank)));
  };

  SumGroup<T, false> sum_ds;
  SumGroup<float, true> sum_gradients;
  detail::with_math<T>(math, [&](auto chosen) {
    detail::with_rank_tiles(plan.terms.largest_chunk, [&](auto tiles) {
      AdapterPassKernel<T, chosen(), tiles(), true> pass;
      for (std::size_t i = 0; i < terms.size(); ++i) {
        const LowRankTerm<T, float>& term = terms[i].term;
        const Index padded = padded_rank(shapes[i].rank);
        auto& to = pass.terms[i];
        to.x = Source<const T>(terms[i].dy.rows_between(begin, end));
        to.s = Source<const T>(terms[i].s.rows_between(begin, end).left(shapes[i].rank));
        to.b = Source<const T>(term.b);
        if (any_ds && plan.projects) {
          to.p = floats_at(plan.p[i]);
          sum_ds.add(SumPartials<T, false>{to.p, plan.slabs[i], padded, rows, ds[i].cols, ds[i].data, ds[i].stride,
                                           term.scale});
        }
        if (term.grad_b.empty()) continue;
        to.g = floats_at(plan.g[i]);
        sum_gradients.add(SumPartials<float, true>{to.g, plan.first.runs, padded, shapes[i].out, shapes[i].rank,
                                                   term.grad_b.data, term.grad_b.stride, term.scale});
      }
      pass.ranks = plan.terms;
      pass.projects = sum_ds.count > 0;
      pass.tiles_per_run = plan.first.tiles_per_run;
      if (pass.projects || sum_gradients.count > 0) launch(stream, {pass.slabs(), plan.first.runs}, pass);
    });
    launch(stream, sum_ds.grid(), sum_ds);
    if (any_ds && !plan.projects) {
      ShrinkOperand<T> operands[largest_group];
      for (std::size_t i = 0; i < terms.size(); ++i)
        operands[i] = ShrinkOperand<T>{Source<const T>(terms[i].dy.rows_between(begin, end)),
                                       Source<const T>(terms[i].term.b),
                                       {},
                                       nullptr,
                                       terms[i].term.scale,
                                       ds[i]};
      detail::launch_shrink<T, chosen(), true>(std::span<const ShrinkOperand<T>>(operands, terms.size()), plan.terms,
                                               floats_at(plan.shrink), stream);
    }

    if (any_grad_a) {
      detail::with_rank_tiles(plan.ranks.largest_chunk, [&](auto tiles) {
        AdapterPassKernel<T, chosen(), tiles(), false> pass;
        for (std::size_t i = 0; i < terms.size(); ++i) {
          const LowRankTerm<T, float>& term = terms[i].term;
          auto& to = pass.terms[i];
          to.x = Source<const T>(x.rows_between(begin, end));
          to.s = ds_source(i);
          if (term.grad_a.empty()) continue;
          to.dropout = term.dropout;
          to.row_numbers = term.dropout ? term.row_numbers + begin : nullptr;
          to.g = floats_at(plan.a[i]);
          pass.drops = pass.drops || term.dropout;
          sum_gradients.add(SumPartials<float, true>{to.g, plan.second.runs, in, shapes[i].rank, in, term.grad_a.data,
                                                     term.grad_a.stride, term.dropout.scale});
        }
        pass.ranks = plan.ranks;
        pass.tiles_per_run = plan.second.tiles_per_run;
        launch(stream, {pass.slabs(), plan.second.runs}, pass);
      });
    }
    launch(stream, sum_gradients.grid(), sum_gradients);

    if (dx.empty()) return;
    ExpandKernel<T, chosen(), true> expand;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      const LowRankTerm<T, float>& term = terms[i].term;
      using Term = typename ExpandKernel<T, chosen(), true>::Term;
      expand.add(Term{ds_source(i), Source<const T>(term.a), term.dropout.scale, term.dropout,
                      term.dropout ? term.row_numbers + begin : nullptr});
    }
    expand.y = Source<T>(dx.rows_between(begin, end));
    launch(stream, expand.grid(), expand);
  });
}

/// Bytes of workspace that `low_rank_backward` needs for `rows` rows, or fewer.
template <class T>
std::size_t low_rank_backward_workspace(Index rows, Index in, Index out, Index rank) {
  const TermShape shape{out, rank};
  return low_rank_backward_group_workspace<T>(rows, in, {&shape, 1});
}

/// `low_rank_backward_group` for one term, whose dS is not kept; likewise the same bits in every run.
template <class T>
void low_rank_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> s,
                       const LowRankTerm<T, float>& term, MatrixView<T> dx, std::span<std::byte> workspace,
                       Stream stream, FloatMath math = FloatMath::tf32) {
  const BackwardTerm<T> alone{term, dy, s, {}};
  low_rank_backward_group<T>(x, {&alone, 1}, dx, workspace, stream, math);
}

}  // namespace fedlora::cuda

#endif
