// SPDX-License-Identifier: Apache-2.0
// Y += Σ scale · mask ∘ (S F) over a group of terms: the second half of the forward pass of one term, and what a group
// adds to the gradient of its input.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/low_rank_group.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Y += Σ_i scale_i · mask_i ∘ (S_i F_i), F_i = A_i of shape (rank, cols), where `Backward`; or Y += Σ_i scale_i S_i
/// F_iᵀ, F_i = B_i of shape (cols, rank).
///
/// A block takes (64, 128) of Y, whose copy to shared memory begins first and is needed last. S and F come from the L2
/// cache in steps of up to 128 bytes of each rank, one on its way while another is multiplied: (64 + 128) r elements
/// against the 2 · 8192 of Y that are read and written in memory. Masks are drawn again. Sums meet Y in shared memory,
/// because a lane holds two neighbours only and memory wants 16 bytes of each.
template <class T, FloatMath Math, bool Backward>
struct ExpandKernel {
  static constexpr int threads = 128;
  static constexpr int tile_rows = 64;
  static constexpr int tile_cols = 128;
  static constexpr int longest_step = 128 / static_cast<int>(sizeof(T));
  static constexpr int mask_words = tile_rows * tile_cols / mask_word;

  struct Term {
    Source<const T> s;  ///< (rows, rank)
    Source<const T> factor;
    float scale = 1.0f;
    Dropout dropout;  ///< where `Backward`
    const std::int32_t* row_numbers = nullptr;

    FEDLORA_HOST_DEVICE int rank() const { return static_cast<int>(s.cols); }
  };

  Term terms[largest_group];
  int count = 0;
  int depth = 0;  ///< of the longest step, a multiple of `mma_depth`
  bool drops = false;
  Source<T> y;  ///< (rows, cols)

  void add(const Term& term) {
    terms[count++] = term;
    depth = std::max(depth, std::min(longest_step, divide_up(term.rank(), mma_depth<T>) * mma_depth<T>));
    drops = drops || term.dropout;
  }
  FEDLORA_HOST_DEVICE int s_stride() const { return tile_stride<T>(depth); }
  FEDLORA_HOST_DEVICE int factor_stride() const { return Backward ? tile_stride<T>(tile_cols) : s_stride(); }
  FEDLORA_HOST_DEVICE int factor_rows() const { return Backward ? depth : tile_cols; }
  int shared_bytes() const {
    return (2 * (tile_rows * s_stride() + factor_rows() * factor_stride())) * static_cast<int>(sizeof(T)) +
           tile_rows * vector_stride * 16 + (drops ? 4 * mask_words : 0);
  }
  Grid grid() const { return {divide_up<Index>(y.rows, tile_rows), divide_up<Index>(y.cols, tile_cols)}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto y_tile = block.template shared<PairedVector>(tile_rows * vector_stride);
    const auto s_tiles = block.template shared<T>(2 * tile_rows * s_stride());
    const auto factor_tiles = block.template shared<T>(2 * factor_rows() * factor_stride());
    const auto masks = block.template shared<std::uint16_t>(drops ? 2 * mask_words : 0);
    const Index row = block.x() * tile_rows;
    const Index col = block.y() * tile_cols;
    const Source<T> rest = y.rest(row, col);

    Step next;  // the next to be copied
    const auto begin_copy = [&] {
      if (next.term < count) {
        const Term& term = terms[next.term];
        const int length = step_depth(next);
        const int buffer = next.number % 2;
        const auto factor_tile = factor_tiles + buffer * factor_rows() * factor_stride();
        copy_tile<T>(block, s_tiles + buffer * tile_rows * s_stride(), s_stride(), term.s, row, next.begin, tile_rows,
                     length);
        if constexpr (Backward)
          copy_tile<T, tile_cols>(block, factor_tile, factor_stride(), term.factor, next.begin, col, length);
        else
          copy_tile<T>(block, factor_tile, factor_stride(), term.factor, col, next.begin, tile_cols, length);
        advance(next);
      }
      block.commit_copies();
    };

    Accumulator sums[tile_cols / 8] = {};
    begin_copy();
    copy_y(block, y_tile, rest);
    block.commit_copies();
    for (Step step; step.term < count; advance(step)) {
      const Term& term = terms[step.term];
      const auto mask = masks + step.term % 2 * mask_words;
      if constexpr (Backward) {
        if (term.dropout && step.begin == 0)
          draw_mask(block, mask, term.dropout, term.row_numbers + row, rest.rows, 0, col, tile_rows, tile_cols);
      }
      if (step.number == 0)
        block.template wait_copies<1>();  // Y may still be on its way
      else
        block.template wait_copies<0>();
      block.sync();  // the step is there for all, and nobody reads the one before any more
      begin_copy();
      const int buffer = step.number % 2;
      add_step(block, sums, s_tiles + (buffer * tile_rows + block.warp() * 16) * s_stride(),
               factor_tiles + buffer * factor_rows() * factor_stride(), step_depth(step), term,
               mask + (block.warp() * 16 + block.lane() / 4) * (tile_cols / mask_word));
    }
    block.template wait_copies<0>();
    block.sync();  // all of Y is there
    unrolled<tile_cols / 8>([&]<int N>() {
      for (int half = 0; half < 2; ++half) {
        const int at = N * 8 + block.lane() % 4 * 2;
        Pair& pair = y_tile[(block.warp() * 16 + block.lane() / 4 + 8 * half) * vector_stride + at / vector_length<T>]
                         .pairs[at % vector_length<T> / 2];
        Pair sum = pair;
        for (int e = 0; e < 2; ++e)
          sum.elements[e] = T(static_cast<float>(sum.elements[e]) + sums[N].sums[2 * half + e]);
        pair = sum;
      }
    });
    block.sync();
    for_vectors<T>(block, tile_rows, tile_cols, [&](int i, int j) {
      const int length = elements_at(rest, i, j);
      if (length == 0) return;
      T* const to = rest.data + i * rest.stride + j;
      const auto vector = __builtin_bit_cast(Vector<T>, y_tile[i * vector_stride + j / vector_length<T>]);
      if (rest.by_vectors && length == vector_length<T>) return block.store_vector(to, vector);
      for (int e = 0; e < vector_length<T>; ++e)
        if (e < length) to[e] = vector.elements[e];
    });
  }

 private:
  /// What a lane has of one row of the sums of a tile.
  struct alignas(2 * sizeof(T)) Pair {
    T elements[2];
  };
  struct alignas(16) PairedVector {
    Pair pairs[vector_length<T> / 2];
  };
  static constexpr int vector_stride = tile_stride<T>(tile_cols) / vector_length<T>;

  /// Where the walk along the ranks of all terms is.
  struct Step {
    int term = 0;
    int begin = 0;
    int number = 0;
  };
  FEDLORA_DEVICE int step_depth(const Step& step) const {
    const int left = terms[step.term].rank() - step.begin;
    return left < depth ? divide_up(left, mma_depth<T>) * mma_depth<T> : depth;
  }
  FEDLORA_DEVICE void advance(Step& step) const {
    ++step.number;
    step.begin += depth;
    if (step.begin < terms[step.term].rank()) return;
    step.begin = 0;
    ++step.term;
  }

  template <class Block, class Tile>
  FEDLORA_DEVICE void copy_y(Block& block, Tile tile, const Source<T>& from) const {
    for_vectors<T>(block, tile_rows, tile_cols, [&](int i, int j) {
      const int length = elements_at(from, i, j);
      const T* const source = length > 0 ? from.data + i * from.stride + j : y.data;
      const auto to = tile + (i * vector_stride + j / vector_length<T>);
      if (from.by_vectors) {
        block.copy_async(to, reinterpret_cast<const PairedVector*>(source), length * static_cast<int>(sizeof(T)));
      } else {
        for (int e = 0; e < vector_length<T>; ++e)
          (*to).pairs[e / 2].elements[e % 2] = e < length ? source[e] : T(0.0f);
      }
    });
  }

  /// sums += scale · mask ∘ (S F) over one step, for this warp's 16 rows; 32 columns at a time, so that the product has
  /// registers beside the sums.
  template <class Block, class Tile, class Mask>
  FEDLORA_DEVICE void add_step(Block& block, Accumulator (&sums)[tile_cols / 8], Tile s_tile, Tile factor_tile,
                               int length, const Term& term, Mask mask) const {
    const float scale = term.scale;
    const bool drop = Backward && term.dropout;
    unrolled<tile_cols / 32>([&]<int Quarter>() {
      Accumulator product[4] = {};
      for (int k = 0; k < length; k += mma_depth<T>) {
        FragmentA left;
        load_a<T>(block, left, s_tile + k, s_stride());
        unrolled<2>([&]<int P>() {
          constexpr int n = Quarter * 32 + P * 16;
          FragmentB right[2];
          if constexpr (Backward)
            load_b_pair_transposed<T>(block, right, factor_tile + (k * factor_stride() + n), factor_stride());
          else
            load_b_pair<T>(block, right, factor_tile + (n * factor_stride() + k), factor_stride());
          multiply<T, Math>(block, product[2 * P], left, right[0]);
          multiply<T, Math>(block, product[2 * P + 1], left, right[1]);
        });
      }
      unrolled<4>([&]<int N>() {
        for (int half = 0; half < 2; ++half) {
          std::uint32_t kept = 3;
          if (drop)
            kept = static_cast<std::uint32_t>(mask[8 * half * (tile_cols / mask_word) + Quarter * 2 + N / 2]) >>
                   (N % 2 * 8 + block.lane() % 4 * 2);
          for (int e = 0; e < 2; ++e)
            if ((kept >> e & 1u) != 0)
              sums[Quarter * 4 + N].sums[2 * half + e] += scale * product[N].sums[2 * half + e];
        }
      });
    });
  }
};

}  // namespace fedlora::cuda

#endif
