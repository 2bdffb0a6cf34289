// SPDX-License-Identifier: Apache-2.0
// Groups of low-rank terms: up to four terms over the same rows of the same X, as those of q, k and v or of gate and up
// are, so that X is read once for all of them. A term alone is a group of one.
//
// Ranks are computed in tiles of 8 columns. The tiles of all terms stand side by side, none of them empty, and as many
// neighbouring terms as have 16 tiles together form a chunk: what one block keeps sums for. A group of more ranks has
// several chunks; their blocks are neighbours in the grid, so that the second reads X from the L2 cache.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <type_traits>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// The largest rank the kernels take.
inline constexpr Index largest_rank = 128;

/// The most terms of a group.
inline constexpr int largest_group = 4;

/// The columns a rank takes where terms stand side by side: a multiple of 8, so that each term begins on 16 bytes.
FEDLORA_HOST_DEVICE constexpr Index padded_rank(Index rank) { return divide_up<Index>(rank, 8) * 8; }

/// The sizes of one term: its B is (out, rank).
struct TermShape {
  Index out = 0;
  Index rank = 0;
};

/// The tiles of a group's ranks, and the chunks they are computed in.
struct RankTiles {
  static constexpr int most = static_cast<int>(largest_rank) / 8;  ///< tiles of a chunk

  int terms = 0;
  int begins[largest_group + 1] = {};  ///< the first tile of each term, and the number of tiles
  int chunks = 0;
  int chunk_begins[largest_group + 1] = {};  ///< the first term of each chunk, and the number of terms
  int largest_chunk = 0;                     ///< the most tiles of a chunk
  int most_terms = 0;                        ///< the most terms of a chunk

  RankTiles() = default;
  /// A chunk has one term at least, and at most `tiles_per_chunk` tiles if it has more.
  explicit RankTiles(std::span<const TermShape> shapes, int tiles_per_chunk = most) {
    for (const TermShape& shape : shapes) {
      begins[terms + 1] = begins[terms] + static_cast<int>(divide_up<Index>(shape.rank, 8));
      if (chunks == 0 || tiles(chunk_begins[chunks - 1], terms + 1) > tiles_per_chunk) chunk_begins[chunks++] = terms;
      chunk_begins[chunks] = ++terms;
      largest_chunk = std::max(largest_chunk, tiles(chunk_begins[chunks - 1], terms));
      most_terms = std::max(most_terms, terms - chunk_begins[chunks - 1]);
    }
  }

  /// The number of tiles of the terms [first, last).
  FEDLORA_HOST_DEVICE int tiles(int first, int last) const { return begins[last] - begins[first]; }

  /// The term, from `first` on, that has tile number `tile` of theirs.
  FEDLORA_HOST_DEVICE int term_of(int first, int tile) const {
    int term = first;
    while (tiles(first, term + 1) <= tile) ++term;
    return term;
  }

  FEDLORA_HOST_DEVICE int all() const { return begins[terms]; }
};

/// Several sums of partials in one launch, side by side in y.
template <class To, bool Add>
struct SumGroup {
  static constexpr int threads = SumPartials<To, Add>::threads;

  SumPartials<To, Add> sums[2 * largest_group] = {};
  int count = 0;

  void add(const SumPartials<To, Add>& sum) { sums[count++] = sum; }
  int shared_bytes() const { return 0; }
  Grid grid() const {
    Grid grid{0, count};
    for (int i = 0; i < count; ++i) grid.x = std::max(grid.x, sums[i].grid().x);
    return grid;
  }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    sums[block.y()](block);
  }
};

namespace detail {

/// Calls body with the number of rank tiles that a kernel is compiled for: 2, 8 or 16. Tiles beyond those in use are
/// not computed; more variants would only save registers.
template <class Body>
void with_rank_tiles(int tiles, Body&& body) {
  if (tiles <= 2)
    body(std::integral_constant<int, 2>{});
  else if (tiles <= 8)
    body(std::integral_constant<int, 8>{});
  else
    body(std::integral_constant<int, RankTiles::most>{});
}

inline void check_rank(const char* where, Index rank) {
  if (rank < 1 || rank > largest_rank) fail<ShapeError>(where, "a rank of 1 to 128", std::to_string(rank));
}

inline void check_group(const char* where, std::size_t terms) {
  if (terms < 1 || terms > largest_group) fail<ShapeError>(where, "a group of 1 to 4 terms", std::to_string(terms));
}

inline void check_same_rows(const char* where, Index begin, Index end, Index got_begin, Index got_end) {
  if (begin != got_begin || end != got_end)
    fail<ShapeError>(where, "all terms over the rows [" + std::to_string(begin) + ", " + std::to_string(end) + ")",
                     "[" + std::to_string(got_begin) + ", " + std::to_string(got_end) + ")");
}

/// What S, or dS, may be: as many columns as the rank, or as the padded rank.
inline void check_rank_columns(const char* where, const char* name, Index rows, Index rank, Index got_rows,
                               Index got_cols) {
  if (got_cols != padded_rank(rank)) check_shape(where, name, rows, rank, got_rows, got_cols);
  check_shape(where, name, rows, got_cols, got_rows, got_cols);
}

}  // namespace detail

}  // namespace fedlora::cuda

#endif
