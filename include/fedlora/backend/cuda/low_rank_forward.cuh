// SPDX-License-Identifier: Apache-2.0
// The forward pass of low-rank terms: S = dropout(X) Aᵀ ("shrink") and Y += scale · S Bᵀ ("expand"). Both are bound by
// memory, not by arithmetic: what counts is that X is read once for all terms of a group, and Y read and written once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/low_rank_expand.cuh"
#include "fedlora/backend/cuda/low_rank_group.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// What the shrink reads and writes of one term.
template <class T>
struct ShrinkOperand {
  Source<const T> x;       ///< (rows, in); the same for all terms of a chunk
  Source<const T> factor;  ///< (rank, in), or (in, rank) where `Transposed`
  Dropout dropout;         ///< its mask alone
  const std::int32_t* row_numbers = nullptr;
  float scale = 1.0f;
  MatrixView<T> s;  ///< (rows, rank or padded rank)
};

/// S_i = scale_i · dropout_i(X) F_iᵀ, or scale_i · X_i F_i where `Transposed`, over one range of columns of X
/// ("split"). The first is the forward pass, with F = A. The second is dS of large ranks in the backward pass, with X =
/// dY and F = B.
///
/// A block takes 64 rows, 16 to a warp, and walks along its columns, 128 bytes of each row at a time, through a ring of
/// four tiles (three where the ranks leave no room for more) filled by cp.async: all but one are on their way while one
/// is multiplied. X is read once from memory; the F_i come from the L2 cache, their ranks / 64 of the bytes of X. Masks
/// are drawn while tiles are on their way, and put to X in registers, as each term has one of its own. Few rows would
/// leave most of the GPU idle, so columns are split over blocks, and each split writes float32 partials, which
/// `SumPartials` adds in order.
template <class T, FloatMath Math, int Tiles, bool Transposed>
struct ShrinkKernel {
  static constexpr int threads = 128;
  static constexpr int tile_rows = 64;
  static constexpr int tile_cols = 128 / static_cast<int>(sizeof(T));
  static constexpr int stages = Tiles > 8 ? 3 : 4;
  static constexpr int stride = tile_stride<T>(tile_cols);
  static constexpr int mask_words = tile_rows * tile_cols / mask_word;

  ShrinkOperand<T> terms[largest_group];
  RankTiles ranks;
  bool drops = false;         ///< whether any of the terms does; not where `Transposed`
  Index tiles_per_split = 0;  ///< tiles of columns of one split
  float* partials = nullptr;  ///< (splits, rows, 8 · all rank tiles), written instead of S where there are several

  int shared_bytes() const {
    return stages * (tile_rows * stride + factor_elements()) * static_cast<int>(sizeof(T)) + 2 * mask_elements();
  }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto x_tiles = block.template shared<T>(stages * tile_rows * stride);
    const auto factor_tiles = block.template shared<T>(stages * factor_elements());
    const auto masks = block.template shared<std::uint16_t>(mask_elements());
    const int chunk = static_cast<int>(block.x() % ranks.chunks);
    const int first = ranks.chunk_begins[chunk];
    const int last = ranks.chunk_begins[chunk + 1];
    const int rank_tiles = ranks.tiles(first, last);
    const Index row = block.x() / ranks.chunks * tile_rows;
    const Index first_col = block.y() * tiles_per_split * tile_cols;
    const Source<const T> x = terms[first].x.rest(row, first_col);
    const Index left = divide_up<Index>(x.cols, tile_cols);  // none, or fewer, where another X has more columns
    const int tiles = static_cast<int>(left < tiles_per_split ? left : tiles_per_split);

    const auto begin_copy = [&](int tile) {
      if (tile < tiles) {
        const int col = tile * tile_cols;
        const int stage = tile % stages;
        copy_tile<T, tile_cols>(block, x_tiles + stage * tile_rows * stride, stride, x, 0, col, tile_rows);
        const auto factor_tile = factor_tiles + stage * factor_elements();
        for (int i = first; i < last; ++i) {
          if constexpr (Transposed)
            copy_tile<T>(block, factor_tile + 8 * ranks.tiles(first, i), factor_stride(), terms[i].factor,
                         first_col + col, 0, tile_cols, 8 * ranks.tiles(i, i + 1));
          else
            copy_tile<T, tile_cols>(block, factor_tile + 8 * ranks.tiles(first, i) * factor_stride(), factor_stride(),
                                    terms[i].factor, 0, first_col + col, 8 * ranks.tiles(i, i + 1));
        }
      }
      block.commit_copies();  // an empty group too, so that the count of groups in flight stays the same
    };

    Accumulator sums[Tiles] = {};
    for (int tile = 0; tile < stages - 1; ++tile) begin_copy(tile);
    for (int tile = 0; tile < tiles; ++tile) {
      const auto tile_masks = masks + tile % 2 * (mask_elements() / 2);
      if constexpr (!Transposed) {
        for (int i = first; i < last; ++i)
          if (terms[i].dropout)
            draw_mask(block, tile_masks + (i - first) * mask_words, terms[i].dropout, terms[i].row_numbers + row,
                      x.rows, 0, first_col + tile * tile_cols, tile_rows, tile_cols);
      }
      block.template wait_copies<stages - 2>();
      block.sync();  // the tile is there for all, and nobody reads the one before any more
      begin_copy(tile + stages - 1);
      const auto x_tile = x_tiles + (tile % stages * tile_rows + block.warp() * 16) * stride;
      const auto factor_tile = factor_tiles + tile % stages * factor_elements();
      const auto multiply_step = [&](int k) {
        FragmentA x_part;
        load_a<T>(block, x_part, x_tile + k, stride);
        int term = first;
        int term_begin = drops ? 0 : -1;
        const auto begin_rank_tile = [&](int n) {
          if (Transposed || n != term_begin) return;
          load_a<T>(block, x_part, x_tile + k, stride);  // again, for want of registers
          if (terms[term].dropout)
            keep_a<T>(block, x_part,
                      tile_masks + ((term - first) * mask_words + (block.warp() * 16 * tile_cols + k) / mask_word),
                      tile_cols / mask_word, k % mask_word);
          ++term;
          term_begin = term < last ? ranks.tiles(first, term) : -1;
        };
        unrolled<Tiles / 2>([&]<int PairOfTiles>() {
          constexpr int n = 2 * PairOfTiles;
          if (n >= rank_tiles) return;
          FragmentB right[2];
          if constexpr (Transposed)
            load_b_pair_transposed<T>(block, right, factor_tile + (k * factor_stride() + n * 8), factor_stride());
          else
            load_b_pair<T>(block, right, factor_tile + (n * 8 * factor_stride() + k), factor_stride());
          begin_rank_tile(n);
          multiply<T, Math>(block, sums[n], x_part, right[0]);
          if (n + 1 >= rank_tiles) return;
          begin_rank_tile(n + 1);
          multiply<T, Math>(block, sums[n + 1], x_part, right[1]);
        });
      };
      if constexpr (Tiles <= (sizeof(T) == 2 ? 8 : 2)) {
        unrolled<tile_cols / mma_depth<T>>([&]<int Step>() { multiply_step(Step * mma_depth<T>); });
      } else {  // all of them would not leave registers enough
        FEDLORA_ROLLED
        for (int k = 0; k < tile_cols; k += mma_depth<T>) multiply_step(k);
      }
    }

    unrolled<Tiles>([&]<int N>() {
      if (N >= rank_tiles) return;
      const int i = ranks.term_of(first, N);
      const ShrinkOperand<T>& term = terms[i];
      for (int e = 0; e < 4; ++e) {
        const int at = block.warp() * 16 + block.lane() / 4 + e / 2 * 8;
        const int k = (N - ranks.tiles(first, i)) * 8 + block.lane() % 4 * 2 + e % 2;
        if (at >= x.rows) continue;
        if (partials != nullptr)
          partials[(block.y() * term.x.rows + row + at) * (8 * ranks.all()) + 8 * ranks.begins[i] + k] =
              sums[N].sums[e];
        else if (k < term.s.cols)
          term.s.data[(row + at) * term.s.stride + k] = T(sums[N].sums[e] * term.scale);
      }
    });
  }

 private:
  /// All ranks of a chunk: two rank tiles are loaded at once.
  FEDLORA_HOST_DEVICE int rank_columns() const { return divide_up(ranks.largest_chunk, 2) * 16; }
  FEDLORA_HOST_DEVICE int factor_stride() const { return Transposed ? tile_stride<T>(rank_columns()) : stride; }
  FEDLORA_HOST_DEVICE int factor_elements() const {
    return (Transposed ? tile_cols : rank_columns()) * factor_stride();
  }
  /// Two masks for each term of a chunk, that one may be drawn while another is read.
  FEDLORA_HOST_DEVICE int mask_elements() const { return drops ? 2 * ranks.most_terms * mask_words : 0; }
};

/// One term of a group on its way forward.
template <class T>
struct ShrinkTerm {
  LowRankTerm<T, float> term;
  MatrixView<T> s;  ///< (rows, rank), or (rows, padded rank), whose last columns become zero
};

namespace detail {

/// How the columns of X are split for the shrink: so that every multiprocessor of a large GPU has a block. Three tiles
/// on their way in each are about what it takes to keep its memory busy, and more splits would cost more in partials
/// than they win: with in = 768 and three terms of rank 16, a second split is 1 / 2 of the bytes of X.
struct ShrinkSplits {
  static constexpr Index multiprocessors = enough_blocks / 2;
  /// What the ring costs to fill, and the partials, must stay small beside the tiles of a split.
  static constexpr Index fewest_tiles = 4;

  Index count;
  Index tiles_per_split;

  ShrinkSplits(Index rows, Index in, Index element_bytes, Index chunks = 1) {
    const Index tiles = divide_up<Index>(in * element_bytes, 128);
    const Index row_blocks = std::max<Index>(1, divide_up<Index>(rows, 64) * chunks);
    const Index wanted = std::max<Index>(1, multiprocessors / row_blocks);
    tiles_per_split = std::max(fewest_tiles, divide_up<Index>(tiles, wanted));
    count = std::max<Index>(1, divide_up<Index>(tiles, tiles_per_split));
  }
};

/// Bytes of partials of a shrink.
template <class T>
std::size_t shrink_bytes(Index rows, Index in, const RankTiles& ranks) {
  const ShrinkSplits splits(rows, in, sizeof(T), ranks.chunks);
  return splits.count == 1 ? 0 : static_cast<std::size_t>(splits.count * rows * 8 * ranks.all()) * sizeof(float);
}

/// The most of them for `rows` rows or fewer.
template <class T>
std::size_t most_shrink_bytes(Index rows, Index in, const RankTiles& ranks) {
  const Index split_blocks = ShrinkSplits::multiprocessors / (2 * ranks.chunks);
  std::size_t most = 0;
  for (Index block = 1; block <= std::min(divide_up<Index>(rows, 64), split_blocks); ++block)
    most = std::max(most, shrink_bytes<T>(std::min(rows, 64 * block), in, ranks));
  return most;
}

/// Launches the shrink of terms whose X have as many rows, and the sum of its partials.
template <class T, FloatMath Math, bool Transposed>
void launch_shrink(std::span<const ShrinkOperand<T>> terms, const RankTiles& ranks, float* partials, Stream stream) {
  const Index rows = terms[0].x.rows;
  Index in = 0;
  for (const ShrinkOperand<T>& term : terms) in = std::max(in, term.x.cols);
  const ShrinkSplits splits(rows, in, sizeof(T), ranks.chunks);
  SumGroup<T, false> sum;
  with_rank_tiles(ranks.largest_chunk, [&](auto tiles) {
    ShrinkKernel<T, Math, tiles(), Transposed> kernel;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      const ShrinkOperand<T>& term = terms[i];
      kernel.terms[i] = term;
      kernel.drops = kernel.drops || term.dropout;
      sum.add(SumPartials<T, false>{partials + 8 * ranks.begins[i], splits.count, 8 * ranks.all(), rows, term.s.cols,
                                    term.s.data, term.s.stride, term.scale});
    }
    kernel.ranks = ranks;
    kernel.tiles_per_split = splits.tiles_per_split;
    kernel.partials = splits.count > 1 ? partials : nullptr;
    launch(stream, {divide_up<Index>(rows, kernel.tile_rows) * ranks.chunks, splits.count}, kernel);
  });
  if (splits.count > 1) launch(stream, sum.grid(), sum);
}

}  // namespace detail

/// Bytes of workspace that `low_rank_shrink_group` needs for `rows` rows, or fewer. Only the ranks of the shapes count.
template <class T>
std::size_t low_rank_shrink_group_workspace(Index rows, Index in, std::span<const TermShape> shapes) {
  detail::check_group("cuda::low_rank_shrink_group_workspace", shapes.size());
  return detail::most_shrink_bytes<T>(rows, in, RankTiles(shapes));
}

/// S_i = dropout_i(X) A_iᵀ for a group of 1 to 4 terms over the same rows of X, sums in float32, rounded once to T. X
/// is read once from memory for all of them. Rows of S_i that the terms do not cover are left alone.
/// Shapes:      x (rows, in), term.a (rank, in), s (rows, rank) or (rows, padded_rank(rank)), in which case the columns
///              beyond the rank become zero; all in device memory. S may be neighbouring columns of one matrix, or
///              columns of X's rows behind `in`
/// Determinism: the same bits in every run; the order of sums depends on shapes alone
/// \throws ShapeError
template <class T>
void low_rank_shrink_group(MatrixView<const T> x, std::span<const ShrinkTerm<T>> terms, std::span<std::byte> workspace,
                           Stream stream, FloatMath math = FloatMath::tf32) {
  constexpr const char* where = "cuda::low_rank_shrink";
  detail::check_group(where, terms.size());
  const Index begin = terms[0].term.begin;
  const Index end = terms[0].term.end;
  detail::check_rows(where, begin, end, x.rows);
  for (const auto& [term, s] : terms) {
    detail::check_rank(where, term.rank());
    detail::check_same_rows(where, begin, end, term.begin, term.end);
    detail::check_shape(where, "A", term.rank(), x.cols, term.a.rows, term.a.cols);
    detail::check_rank_columns(where, "S", x.rows, term.rank(), s.rows, s.cols);
  }
  const Index rows = end - begin;
  if (rows == 0) return;
  TermShape shapes[largest_group];
  ShrinkOperand<T> operands[largest_group];
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const auto& [term, s] = terms[i];
    shapes[i].rank = term.rank();
    // Whoever keeps an element keeps it times the dropout's scale: one factor for the whole sum.
    operands[i] = {
        Source<const T>(x.rows_between(begin, end)),       Source<const T>(term.a), term.dropout,
        term.dropout ? term.row_numbers + begin : nullptr, term.dropout.scale,      s.rows_between(begin, end)};
  }
  const RankTiles ranks(std::span<const TermShape>(shapes, terms.size()));
  float* const partials = detail::workspace_floats(where, workspace, detail::shrink_bytes<T>(rows, x.cols, ranks));
  detail::with_math<T>(math, [&](auto chosen) {
    detail::launch_shrink<T, chosen(), false>(std::span<const ShrinkOperand<T>>(operands, terms.size()), ranks,
                                              partials, stream);
  });
}

/// Bytes of workspace that `low_rank_shrink` needs for `rows` rows, or fewer.
template <class T>
std::size_t low_rank_shrink_workspace(Index rows, Index in, Index rank) {
  const TermShape shape{0, rank};
  return low_rank_shrink_group_workspace<T>(rows, in, {&shape, 1});
}

/// `low_rank_shrink_group` for one term, with the same bits as in a group.
template <class T>
void low_rank_shrink(MatrixView<const T> x, const LowRankTerm<T, float>& term, MatrixView<T> s,
                     std::span<std::byte> workspace, Stream stream, FloatMath math = FloatMath::tf32) {
  const ShrinkTerm<T> alone{term, s};
  low_rank_shrink_group<T>(x, {&alone, 1}, workspace, stream, math);
}

/// Y += scale · S Bᵀ over the term's rows, sums in float32, rounded once to T.
/// Shapes:      s (rows, rank) or (rows, padded_rank(rank)), term.b (out, rank), y (rows, out); all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void low_rank_expand(MatrixView<const T> s, const LowRankTerm<T, float>& term, MatrixView<T> y, Stream stream,
                     FloatMath math = FloatMath::tf32) {
  constexpr const char* where = "cuda::low_rank_expand";
  detail::check_rank(where, term.rank());
  detail::check_rows(where, term.begin, term.end, y.rows);
  detail::check_rank_columns(where, "S", y.rows, term.rank(), s.rows, s.cols);
  detail::check_shape(where, "B", y.cols, term.rank(), term.b.rows, term.b.cols);
  if (term.end == term.begin) return;
  detail::with_math<T>(math, [&](auto chosen) {
    ExpandKernel<T, chosen(), false> kernel;
    kernel.add({Source<const T>(s.rows_between(term.begin, term.end).left(term.rank())),
                Source<const T>(term.b),
                term.scale,
                {},
                nullptr});
    kernel.y = Source<T>(y.rows_between(term.begin, term.end));
    launch(stream, kernel.grid(), kernel);
  });
}

}  // namespace fedlora::cuda

#endif
