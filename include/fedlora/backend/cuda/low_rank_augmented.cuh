// SPDX-License-Identifier: Apache-2.0
// A low-rank term as part of the base product: with S in columns behind X's own, Y = X Wᵀ + scale · S Bᵀ is one product
// of [X | S] and [W | scale · B], a little longer and with nothing to be read and written again. So is, without
// dropout, dX = dY W + dS A of [dY | dS] and [W ; A]. Here are the matrices on the right, written into a slot: memory
// that one runner or stream lends to one frozen matrix after another, or to one for good.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/low_rank_group.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// One term's factor and its place in the part of a slot that is not W: element (i, j) stands at (row + i, col + j) of
/// that part, times `scale`.
template <class T>
struct AugmentedPiece {
  MatrixView<const T> factor;  ///< B (out, rank), or A (rank, in)
  float scale = 1.0f;          ///< the term's with B; 1 with A, because dS has it already
  Index row = 0;
  Index col = 0;
};

/// What W is followed by.
enum class Augmented {
  by_columns,  ///< [W | pieces], for the forward pass
  by_rows,     ///< [W ; pieces], for the backward pass
};

/// Writes the part of a slot from (row, col) on: W where it reaches, then pieces, zeros where there is none. A thread
/// has 16 bytes, a warp 512 of one row.
template <class T>
struct FillAugmentedKernel {
  static constexpr int threads = 256;
  static constexpr int tile_rows = threads / 32;
  static constexpr int tile_cols = 32 * vector_length<T>;

  Source<const T> w;  ///< empty where W is in the slot already
  Source<T> slot;
  Index row = 0, col = 0;                ///< where to begin
  Index pieces_row = 0, pieces_col = 0;  ///< where the other part begins
  AugmentedPiece<T> pieces[largest_group];
  int count = 0;
  bool by_vectors = false;  ///< whether 16 bytes of the slot may be written at once from `col` on

  int shared_bytes() const { return 0; }
  Grid grid() const {
    return {divide_up<Index>(slot.rows - row, tile_rows), divide_up<Index>(slot.cols - col, tile_cols)};
  }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index j = col + block.y() * tile_cols + block.lane() * vector_length<T>;
    const Index i = row + block.x() * tile_rows + block.warp();
    const int length = elements_at(slot, i, j);
    if (length == 0) return;
    T* const to = slot.data + i * slot.stride + j;
    const bool whole = by_vectors && length == vector_length<T>;
    if (whole && w.by_vectors && elements_at(w, i, j) == length)
      return block.store_vector(to, block.load_vector(w.data + i * w.stride + j));
    Vector<T> vector;
    for (int e = 0; e < vector_length<T>; ++e)
      if (e < length) vector.elements[e] = element(i, j + e);
    if (whole) return block.store_vector(to, vector);
    for (int e = 0; e < vector_length<T>; ++e)
      if (e < length) to[e] = vector.elements[e];
  }

 private:
  FEDLORA_DEVICE T element(Index i, Index j) const {
    if (i < w.rows && j < w.cols) return w.data[i * w.stride + j];
    for (int at = 0; at < count; ++at) {
      const AugmentedPiece<T>& piece = pieces[at];
      const Index k = i - pieces_row - piece.row;
      const Index l = j - pieces_col - piece.col;
      if (k < 0 || l < 0 || k >= piece.factor.rows || l >= piece.factor.cols) continue;
      const T value = piece.factor.data[k * piece.factor.stride + l];
      return piece.scale == 1.0f ? value : T(static_cast<float>(value) * piece.scale);
    }
    return T(0.0f);
  }
};

namespace detail {

/// Fills a slot whose other part begins behind (w_rows, w_cols), and W as well where `w` is not empty.
template <class T>
void launch_augmented(const char* where, Augmented by, MatrixView<const T> w, Index w_rows, Index w_cols,
                      std::span<const AugmentedPiece<T>> pieces, MatrixView<T> slot, Stream stream) {
  const bool columns = by == Augmented::by_columns;
  if (pieces.size() > largest_group) fail<ShapeError>(where, "at most 4 pieces", std::to_string(pieces.size()));
  if (columns ? slot.rows != w_rows || slot.cols < w_cols : slot.cols != w_cols || slot.rows < w_rows)
    fail<ShapeError>(where, "a slot of shape " + shape_text(w_rows, w_cols) + (columns ? " or wider" : " or higher"),
                     shape_text(slot.rows, slot.cols));
  FillAugmentedKernel<T> kernel;
  (columns ? kernel.pieces_col : kernel.pieces_row) = columns ? w_cols : w_rows;
  for (const AugmentedPiece<T>& piece : pieces) {
    const Index rows = slot.rows - kernel.pieces_row;
    const Index cols = slot.cols - kernel.pieces_col;
    if (piece.row < 0 || piece.col < 0 || piece.row + piece.factor.rows > rows || piece.col + piece.factor.cols > cols)
      fail<ShapeError>(where, "pieces within " + shape_text(rows, cols),
                       shape_text(piece.factor.rows, piece.factor.cols) + " at " + shape_text(piece.row, piece.col));
    kernel.pieces[kernel.count++] = piece;
  }
  if (w.empty()) {
    kernel.row = kernel.pieces_row;
    kernel.col = kernel.pieces_col;
  } else {
    kernel.w = Source<const T>(w);
  }
  kernel.slot = Source<T>(slot);
  kernel.by_vectors = kernel.slot.by_vectors && kernel.col % vector_length<T> == 0;
  launch(stream, kernel.grid(), kernel);
}

}  // namespace detail

/// slot = [W | D], or [W ; D], where D holds the pieces and is zero elsewhere.
///
///   by_columns   W (out, in), slot (out, in + R): D's row i is W's row i, and column j of D is what column in + j of
///                [X | S] is multiplied with. One linear layer: B at (0, 0) with the term's scale. Layers whose W stand
///                one below the other, as q, k and v do: each B at (first row of its W, column of its S), so that D is
///                block-diagonal.
///   by_rows      W (out, in), slot (out + R, in): row i of D is what column out + i of [dY | dS] is multiplied with. A
///                at (column of its dS, 0), scale 1, as dS has the scale.
///
/// R is any number of columns, or rows, that the pieces fit in; `padded_rank` of each rank is enough. X and dY need as
/// many, in which S and dS do not stand must be finite. Where the W of a group are separate, fill the rows of each
/// (`slot.rows_between`); then the pieces at the bottom with `refresh_augmented`. One buffer of (out + R, in + R) is
/// both slots: its first `out` rows, and its first `in` columns.
///
/// scale · B is rounded to T: exact for a scale that is a power of two, else one rounding more than `low_rank_expand`.
/// Shapes:      w (out, in), slot as above; 0 to 4 pieces within D, none over another; all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void fill_augmented(Augmented by, MatrixView<const T> w, std::span<const AugmentedPiece<T>> pieces, MatrixView<T> slot,
                    Stream stream) {
  detail::launch_augmented<T>("cuda::fill_augmented", by, w, w.rows, w.cols, pieces, slot, stream);
}

/// The same for a slot that holds its W already: D alone is written. `w_rows` and `w_cols` are the shape of W.
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void refresh_augmented(Augmented by, Index w_rows, Index w_cols, std::span<const AugmentedPiece<T>> pieces,
                       MatrixView<T> slot, Stream stream) {
  detail::launch_augmented<T>("cuda::refresh_augmented", by, {}, w_rows, w_cols, pieces, slot, stream);
}

/// The padded rank of all terms together at which a longer product takes as long as adding to its result, for 16-bit
/// types: 2 · 790e12 FLOP/s / 4.3e12 B/s, a model of an H200 and no measurement. TF32 has half the operations and twice
/// the bytes.
inline constexpr Index augmented_rank_limit = 367;

/// The same for float multiplied without tensor cores: 4 · 60e12 / 4.3e12.
inline constexpr Index augmented_rank_limit_float32 = 55;

/// What a slot holds before it is used.
enum class Slot { nothing, holds_w };

/// Whether the terms of a group should be part of the base product, rather than be added to its result.
///
/// Adding S Bᵀ to Y reads and writes Y once more: 4 M N bytes in 16-bit types, for M rows, N = out. A product longer by
/// R takes 2 M N R operations, as long as 4 M N R / `rank_limit` bytes; and where the slot does not hold W, copying it
/// costs 4 N K bytes, K = in. So the longer product is right while R / rank_limit + (K / M, if W must be copied) < 1:
/// for any size of layer up to a rank of 367 in a slot of its own, and never for fewer rows than W has columns in a
/// slot that is filled anew each time. On the way back N and K change places, and dropout rules it out: its mask comes
/// between dS A and dX, and the product knows no masks. (On the way forward the mask is in S.) Launches and the
/// granularity of a product's tiles are not in the model.
inline bool augmented_is_right(Augmented by, Index rows, Index in, Index out, Index total_rank, bool dropout, Slot slot,
                               Index rank_limit = augmented_rank_limit) {
  const bool forward = by == Augmented::by_columns;
  if (dropout && !forward) return false;
  const Index copied = slot == Slot::holds_w ? 0 : forward ? in : out;
  return total_rank * rows + copied * rank_limit < rank_limit * rows;
}

}  // namespace fedlora::cuda

#endif
