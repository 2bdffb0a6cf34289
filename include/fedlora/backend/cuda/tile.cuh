// SPDX-License-Identifier: Apache-2.0
// Tiles in shared memory and the warp's products of them. A tile is row-major; its stride is an odd number of 16-byte
// units, so that the eight rows of one ldmatrix lie in different banks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// How float operands are multiplied on tensor cores. 16-bit operands need no choice: their products are exact.
enum class FloatMath {
  tf32,  ///< operands rounded to 10 fraction bits
  /// Each operand as the sum of two tf32 numbers: three products, an error of about 2^-21 per product. A tensor core's
  /// own sums may lose more.
  float32,
};

/// The smallest stride of a tile with `cols` columns.
template <class T>
FEDLORA_HOST_DEVICE constexpr int tile_stride(int cols) {
  return ((cols + vector_length<T> - 1) / vector_length<T> | 1) * vector_length<T>;
}

/// a / b, rounded up.
template <class I>
FEDLORA_HOST_DEVICE constexpr I divide_up(I a, I b) {
  return (a + b - 1) / b;
}

/// Calls body<0>(), …, body<Count - 1>(). For loops over sums that must stay in registers: a compiler may leave a plain
/// loop a loop, and index memory in it.
template <int Count, int From = 0, class Body>
FEDLORA_DEVICE void unrolled(Body&& body) {
  if constexpr (From < Count) {
    body.template operator()<From>();
    unrolled<Count, From + 1>(body);
  }
}

/// A matrix in global memory, and whether 16 bytes of a row may be read at once.
template <class T>
struct Source {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;
  bool by_vectors = false;

  Source() = default;
  explicit Source(MatrixView<T> view)
      : data(view.data),
        rows(view.rows),
        cols(view.cols),
        stride(view.stride),
        by_vectors(reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && view.stride % vector_length<T> == 0) {}

  /// What is left of it from (row, col) on; `col` is a multiple of `vector_length`.
  FEDLORA_HOST_DEVICE Source rest(Index row, Index col) const {
    Source part = *this;
    part.data += row * stride + col;
    part.rows -= row;
    part.cols -= col;
    return part;
  }
};

/// How many of the elements (i, j), …, (i, j + vector_length - 1) exist.
template <class T>
FEDLORA_DEVICE int elements_at(const Source<T>& matrix, Index i, Index j) {
  const Index left = matrix.cols - j;
  return i >= matrix.rows || left <= 0 ? 0 : static_cast<int>(left < vector_length<T> ? left : vector_length<T>);
}

/// Calls body(i, j) for the first column of every 16 bytes of a (rows, cols) tile that this thread looks after. The
/// same thread has the same ones each time, so it may go on with what it copied itself without a barrier.
template <class T, class Block, class Body>
FEDLORA_DEVICE void for_vectors(const Block& block, int rows, int cols, Body&& body) {
  const int across = cols / vector_length<T>;
  for (int at = block.thread(); at < rows * across; at += block.threads())
    body(at / across, at % across * vector_length<T>);
}

/// `count`, but none below zero and no more than `most`.
FEDLORA_DEVICE int at_most(Index count, int most) {
  return count <= 0 ? 0 : count < most ? static_cast<int>(count) : most;
}

/// Begins to copy the (rows, cols) tile of `from` at (row, col) to shared memory, zeros where the matrix has ended.
/// `cols` and `col` are multiples of `vector_length`. Matrices that cannot be read by vectors arrive at once.
template <class T, class Block, class Tile>
FEDLORA_DEVICE void copy_tile(Block& block, Tile tile, int stride, const Source<const T>& from, Index row, Index col,
                              int rows, int cols) {
  const int across = cols / vector_length<T>;
  const int last_row = at_most(from.rows - row, rows);
  const int last_col = at_most(from.cols - col, cols);
  FEDLORA_ROLLED
  for (int at = block.thread(); at < rows * across; at += block.threads()) {
    const int i = at / across;
    const int j = at % across * vector_length<T>;
    const int count = i < last_row ? at_most(last_col - j, vector_length<T>) : 0;
    const T* const source = count > 0 ? from.data + (row + i) * from.stride + col + j : from.data;
    const auto to = tile + (i * stride + j);
    if (from.by_vectors) {
      block.copy_async(to, source, count * static_cast<int>(sizeof(T)));
    } else {
      for (int e = 0; e < vector_length<T>; ++e) to[e] = e < count ? source[e] : T(0.0f);
    }
  }
}

/// The same for a width known in advance, so many vectors that whole rows of them are one step of the block: a thread
/// keeps its column, and has few numbers to compute.
template <class T, int Cols, class Block, class Tile>
FEDLORA_DEVICE void copy_tile(Block& block, Tile tile, int stride, const Source<const T>& from, Index row, Index col,
                              int rows) {
  const int cols_left = at_most(from.cols - col, Cols);
  if (!from.by_vectors || cols_left % vector_length<T> != 0)
    return copy_tile<T>(block, tile, stride, from, row, col, rows, Cols);
  constexpr int across = Cols / vector_length<T>;
  const int at_once = block.threads() / across;
  const int first = block.thread() / across;
  const int j = block.thread() % across * vector_length<T>;
  const int left = j < cols_left ? at_most(from.rows - row, rows) - first : 0;  // rows that exist, from `first` on
  const T* const source = from.data + (row + first) * from.stride + col + j;
  tile = tile + (first * stride + j);
  for (int i = 0; i < rows; i += at_once) {
    if (rows % at_once != 0 && first >= rows - i) return;
    block.copy_async_if(i < left, tile + i * stride, source + i * from.stride);
  }
}

/// The four words of dropout for the elements (row, channel) to (row, channel + 3); `channel` is a multiple of 4.
FEDLORA_HOST_DEVICE inline RandomWords dropout_words(const Dropout& dropout, std::int32_t row, Index channel) {
  return philox<7>({static_cast<std::uint32_t>(channel) / 4, static_cast<std::uint32_t>(row), 0, 0}, dropout.key);
}

/// How many elements of a row of a mask one word of it holds, a bit for each.
inline constexpr int mask_word = 16;

/// Draws the mask of the (rows, cols) tile at (row, col) of a matrix with `matrix_rows` rows into shared memory, each
/// word once: bit c % 16 of mask[r * cols / 16 + c / 16] is set where (row + r, col + c) is kept. `cols` is a multiple
/// of 16, `col` of 4. Rows that the matrix does not have are left alone.
template <class Block, class Mask>
FEDLORA_DEVICE void draw_mask(const Block& block, Mask mask, const Dropout& dropout, const std::int32_t* row_numbers,
                              Index matrix_rows, Index row, Index col, int rows, int cols) {
  const int across = cols / mask_word;
  for (int at = block.thread(); at < rows * across; at += block.threads()) {
    const Index i = row + at / across;
    if (i >= matrix_rows) continue;
    const std::int32_t number = row_numbers[i];
    std::uint32_t word = 0;
    for (int quad = 0; quad < mask_word; quad += 4) {
      const RandomWords draws = dropout_words(dropout, number, col + at % across * mask_word + quad);
      for (int e = 0; e < 4; ++e)
        if (draws[static_cast<std::size_t>(e)] >= dropout.threshold) word |= 1u << (quad + e);
    }
    mask[at] = static_cast<std::uint16_t>(word);
  }
}

template <class Tile>
FEDLORA_DEVICE std::uint32_t bits_at(Tile tile, int at) {
  return __builtin_bit_cast(std::uint32_t, tile[at]);
}

/// The A operand whose rows are rows of the tile: element (i, k) is tile[i * stride + k].
template <class T, class Block, class Tile>
FEDLORA_DEVICE void load_a(Block& block, FragmentA& a, Tile tile, int stride) {
  block.load_matrices(a.words, tile + (block.lane() % 16 * stride + block.lane() / 16 * (mma_depth<T> / 2)));
}

/// The A operand whose rows are columns of the tile: element (i, k) is tile[k * stride + i]. (ldmatrix transposes
/// 16-bit elements only; tf32 reads element by element, at most two lanes to a bank.)
template <class T, class Block, class Tile>
FEDLORA_DEVICE void load_a_transposed(Block& block, FragmentA& a, Tile tile, int stride) {
  const int lane = block.lane();
  if constexpr (sizeof(T) == 2) {
    block.load_matrices_transposed(a.words, tile + ((lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8));
  } else {
    const int at = lane % 4 * stride + lane / 4;
    a = {
        {bits_at(tile, at), bits_at(tile, at + 8), bits_at(tile, at + 4 * stride), bits_at(tile, at + 4 * stride + 8)}};
  }
}

/// Two B operands side by side whose columns are rows of the tile: element (k, j) is tile[j * stride + k], j < 16.
template <class T, class Block, class Tile>
FEDLORA_DEVICE void load_b_pair(Block& block, FragmentB (&b)[2], Tile tile, int stride) {
  const int lane = block.lane();
  std::uint32_t words[4];
  block.load_matrices(words, tile + ((lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * (mma_depth<T> / 2)));
  b[0] = {{words[0], words[1]}};
  b[1] = {{words[2], words[3]}};
}

/// Two B operands side by side whose rows are rows of the tile: element (k, j) is tile[k * stride + j], j < 16.
template <class T, class Block, class Tile>
FEDLORA_DEVICE void load_b_pair_transposed(Block& block, FragmentB (&b)[2], Tile tile, int stride) {
  const int lane = block.lane();
  if constexpr (sizeof(T) == 2) {
    std::uint32_t words[4];
    block.load_matrices_transposed(words, tile + (lane % 16 * stride + lane / 16 * 8));
    b[0] = {{words[0], words[1]}};
    b[1] = {{words[2], words[3]}};
  } else {
    const int at = lane % 4 * stride + lane / 4;
    b[0] = {{bits_at(tile, at), bits_at(tile, at + 4 * stride)}};
    b[1] = {{bits_at(tile, at + 8), bits_at(tile, at + 4 * stride + 8)}};
  }
}

/// Sets what dropout drops of an operand that `load_a` loaded to zero; what is kept stays as it is. Row i of the
/// operand has its bits in mask[i * across], from bit `bit` on.
template <class T, class Block, class Mask>
FEDLORA_DEVICE void keep_a(const Block& block, FragmentA& a, Mask mask, int across, int bit) {
  const int pair = block.lane() % 4;
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(mask[(block.lane() / 4 + 8 * half) * across]) >> bit;
    for (int k = 0; k < 2; ++k) {
      std::uint32_t& word = a.words[half + 2 * k];
      if constexpr (sizeof(T) == 2) {
        const std::uint32_t two = bits >> (2 * pair + 8 * k);
        word &= ((two & 1u) | ((two << 15) & 0x10000u)) * 0xffffu;
      } else {
        if ((bits >> (pair + 4 * k) & 1u) == 0) word = 0;
      }
    }
  }
}

/// The same of an operand that `load_a_transposed` loaded: row k of the tile has its bits in mask[k * across].
template <class T, class Block, class Mask>
FEDLORA_DEVICE void keep_a_transposed(const Block& block, FragmentA& a, Mask mask, int across) {
  const int column = block.lane() / 4;
  const int row = block.lane() % 4;
  for (int k = 0; k < 2; ++k) {
    std::uint32_t bits;
    if constexpr (sizeof(T) == 2) {
      const int first = (2 * row + 8 * k) * across;
      bits = static_cast<std::uint32_t>(mask[first]) | static_cast<std::uint32_t>(mask[first + across]) << 16;
    } else {
      bits = mask[(row + 4 * k) * across];
    }
    for (int half = 0; half < 2; ++half) {
      std::uint32_t& word = a.words[2 * k + half];
      if constexpr (sizeof(T) == 2) {
        word &= (bits >> (column + 8 * half) & 0x00010001u) * 0xffffu;
      } else {
        if ((bits >> (column + 8 * half) & 1u) == 0) word = 0;
      }
    }
  }
}

/// What is left of a float when its tf32 part is taken away.
FEDLORA_DEVICE std::uint32_t tf32_rest(std::uint32_t bits) {
  const float rest = __builtin_bit_cast(float, bits) - __builtin_bit_cast(float, round_to_tf32(bits));
  return round_to_tf32(__builtin_bit_cast(std::uint32_t, rest));
}

/// c += a b over the warp, for operands as they were loaded from tiles of T.
template <class T, FloatMath Math, class Block>
FEDLORA_DEVICE void multiply(Block& block, Accumulator& c, const FragmentA& a, const FragmentB& b) {
  if constexpr (sizeof(T) == 2) {
    block.template mma<T>(c, a, b);
  } else {
    FragmentA high_a, low_a;
    FragmentB high_b, low_b;
    for (int i = 0; i < 4; ++i) high_a.words[i] = round_to_tf32(a.words[i]);
    for (int i = 0; i < 2; ++i) high_b.words[i] = round_to_tf32(b.words[i]);
    if constexpr (Math == FloatMath::float32) {
      for (int i = 0; i < 4; ++i) low_a.words[i] = tf32_rest(a.words[i]);
      for (int i = 0; i < 2; ++i) low_b.words[i] = tf32_rest(b.words[i]);
      block.template mma<T>(c, low_a, high_b);  // the smallest first
      block.template mma<T>(c, high_a, low_b);
    }
    block.template mma<T>(c, high_a, high_b);
  }
}

/// Adds up partial sums: to(i, j) = scale · Σ_p partials[p](i, j), in the order of p, plus what was there if `Add`.
/// Partials lie one after another, each (rows, stride). Reads each once, eight of them on their way at a time; a thread
/// has one element, so that a warp reads and writes whole lines.
template <class To, bool Add>
struct SumPartials {
  static constexpr int threads = 256;
  static constexpr int at_once = 8;

  const float* partials;
  Index count;   ///< partials
  Index stride;  ///< floats from one row of a partial to the next
  Index rows;
  Index cols;
  To* to;
  Index to_stride;
  float scale;

  int shared_bytes() const { return 0; }
  Grid grid() const { return {divide_up<Index>(rows * cols, threads), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index at = block.x() * threads + block.thread();
    if (at >= rows * cols) return;
    // A division of 64 bits costs more than all the rest.
    const Index i = at <= 0xffffffff ? static_cast<std::uint32_t>(at) / static_cast<std::uint32_t>(cols) : at / cols;
    const Index j = at - i * cols;
    const float* next = partials + i * stride + j;
    float sum = 0.0f;
    Index left = count;
    for (; left >= at_once; left -= at_once) {
      float values[at_once];
      unrolled<at_once>([&]<int P>() { values[P] = next[P * rows * stride]; });
      for (const float value : values) sum += value;
      next += at_once * rows * stride;
    }
    for (; left > 0; --left, next += rows * stride) sum += *next;
    To& result = to[i * to_stride + j];
    sum *= scale;
    if constexpr (Add) sum += static_cast<float>(result);
    result = To(sum);
  }
};

}  // namespace fedlora::cuda

#endif
