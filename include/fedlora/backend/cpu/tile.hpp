// SPDX-License-Identifier: Apache-2.0
// Products of small matrices, tile by tile, each tile's sums in as many registers as this level has. For what a general
// GEMM spends more time on packing than on computing: a few ranks, a few keys. Sums depend on the shapes alone.
//
// For attention over 25 tokens these take 0.35 to 0.85 of the time of the same products by Eigen, dnnl_sgemm or oneDNN's batched
// matmul, which costs 20 µs more for every new length; over 128 tokens all are within a fifth of each other.
#pragma once

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// Whether a product's left factor is stored by its rows or by its columns.
enum class Left { rows, columns };

/// What becomes of a product.
enum class Into {
  overwrite,  ///< out = product
  add,        ///< out += product
  add_masked  ///< out += mask ∘ product
};

/// out (rows, width) from left (rows, inner) · right (inner, width), each row times its scale.
template <class T>
struct SmallProduct {
  const T* left = nullptr;
  Index left_stride = 0;  ///< from one row (Left::columns: column) to the next
  const T* right = nullptr;
  Index right_stride = 0;
  Index inner = 0;
  T* out = nullptr;
  Index out_stride = 0;
  Into into = Into::overwrite;
  T scale = T(1);
  const T* row_scales = nullptr;  ///< in place of `scale`, one for each row, unless null
  const T* mask = nullptr;        ///< of the result (Into::add_masked), or of the right factor (a masked product)
  Index mask_stride = 0;
};

namespace tile {

/// Vectors of a tile's row: four rows of them, what they are multiplied by and a row's factor fit sixteen registers. Of 32
/// they take 21, enough sums to hide how long an addition takes.
inline constexpr int vectors = Level::registers >= 32 ? 4 : Level::fused ? 3 : 2;

/// Rows [row, row + Rows) of columns [column, column + Vectors vectors). The first `known` of these columns are there
/// already: they are not added to.
template <int Rows, int Vectors, class V, Left Stored, bool MaskedRight, class T>
void compute(const SmallProduct<T>& p, Index row, Index column, [[maybe_unused]] Index known) {
  V sums[Rows][Vectors] = {};
  const Index left_stride = p.left_stride;
  const Index right_stride = p.right_stride;
  const T* left = Stored == Left::rows ? p.left + row * left_stride : p.left + row;
  const T* right = p.right + column;
  [[maybe_unused]] const T* mask = p.mask + (MaskedRight ? column : 0);
  for (Index k = 0; k < p.inner; ++k) {
    V values[Vectors];
    each<Vectors>([&](auto c) __attribute__((always_inline)) {
      load(values[c], right + c * count_of<V>);
      if constexpr (MaskedRight) {
        V factor;
        load(factor, mask + c * count_of<V>);
        values[c] *= factor;
      }
    });
    each<Rows>([&](auto r) __attribute__((always_inline)) {
      const T factor = Stored == Left::rows ? left[r * left_stride] : left[r];
      each<Vectors>([&](auto c) __attribute__((always_inline)) { sums[r][c] += values[c] * factor; });
    });
    left += Stored == Left::rows ? 1 : left_stride;
    right += right_stride;
    if constexpr (MaskedRight) mask += p.mask_stride;
  }
  [[maybe_unused]] V place;
  count_up(place);
  const auto finish = [&](auto&& combine) __attribute__((always_inline)) {
    each<Rows>([&](auto r) __attribute__((always_inline)) {
      const T scale = p.row_scales != nullptr ? p.row_scales[row + r] : p.scale;
      T* const out = p.out + (row + r) * p.out_stride + column;
      each<Vectors>([&](auto c) __attribute__((always_inline)) {
        V result = sums[r][c] * scale;
        if constexpr (Vectors == 1) result = place < static_cast<T>(known) ? V{} : result;
        combine(result, out + c * count_of<V>, (row + r) * p.mask_stride + column + c * count_of<V>);
        store(result, out + c * count_of<V>);
      });
    });
  };
  if (p.into == Into::overwrite)
    finish([](V&, const T*, Index) __attribute__((always_inline)){});
  else if (MaskedRight || p.into == Into::add)
    finish([](auto& result, const T* out, Index) __attribute__((always_inline)) {
      V before;
      load(before, out);
      result += before;
    });
  else
    finish([&](auto& result, const T* out, Index mask_place) __attribute__((always_inline)) {
      V before, factor;
      load(before, out);
      load(factor, p.mask + mask_place);
      result = before + result * factor;
    });
}

/// Rows [begin, end) of columns [column, column + Vectors vectors).
template <int Vectors, class V, Left Stored, bool MaskedRight, class T>
void compute_rows(const SmallProduct<T>& p, Index begin, Index end, Index column, Index known = 0) {
  Index row = begin;
  if constexpr (8 * Vectors + Vectors + 2 <= Level::registers)
    for (; row + 8 <= end; row += 8) compute<8, Vectors, V, Stored, MaskedRight>(p, row, column, known);
  for (; row + 4 <= end; row += 4) compute<4, Vectors, V, Stored, MaskedRight>(p, row, column, known);
  if (row + 2 <= end) {
    compute<2, Vectors, V, Stored, MaskedRight>(p, row, column, known);
    row += 2;
  }
  if (row < end) compute<1, Vectors, V, Stored, MaskedRight>(p, row, column, known);
}

template <Left Stored, bool MaskedRight, class T>
void compute_columns(const SmallProduct<T>& p, Index rows, Index width) {
  using V = Lanes<T>;
  constexpr Index lanes = lane_count<T>;
  Index column = 0;
  for (; column + vectors * lanes <= width; column += vectors * lanes)
    compute_rows<vectors, V, Stored, MaskedRight>(p, 0, rows, column);
  if constexpr (vectors > 2)
    for (; column + 2 * lanes <= width; column += 2 * lanes)
      compute_rows<2, V, Stored, MaskedRight>(p, 0, rows, column);
  for (; column + lanes <= width; column += lanes) compute_rows<1, V, Stored, MaskedRight>(p, 0, rows, column);
  if constexpr (narrow_count<T> < lanes)
    if (column + narrow_count<T> <= width) {
      compute_rows<1, NarrowLanes<T>, Stored, MaskedRight>(p, 0, rows, column);
      column += narrow_count<T>;
    }
  if (const Index last = width - narrow_count<T>; column < width)  // a vector that begins early enough to be whole
    compute_rows<1, NarrowLanes<T>, Stored, MaskedRight>(p, 0, rows, last,
                                                         p.into == Into::overwrite ? 0 : column - last);
}

}  // namespace tile

/// The smallest multiple of the narrow vectors that holds `size`.
template <class T>
constexpr Index padded(Index size) {
  return (size + narrow_count<T> - 1) / narrow_count<T> * narrow_count<T>;
}

/// `width` is at least a narrow vector. With MaskedRight the right factor is mask ∘ right.
template <Left Stored, bool MaskedRight = false, class T>
void multiply_small(const SmallProduct<T>& product, Index rows, Index width) {
  tile::compute_columns<Stored, MaskedRight>(product, rows, width);
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
