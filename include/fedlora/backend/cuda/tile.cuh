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
  tf32,     ///< operands rounded to 10 fraction bits
  float32,  ///< each operand as the sum of two tf32 numbers: three products, an error of about 2^-21 per product
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

/// Begins to copy the (rows, cols) tile of `from` at (row, col) to shared memory, zeros where the matrix has ended.
/// `cols` and `col` are multiples of `vector_length`. Matrices that cannot be read by vectors arrive at once.
template <class T, class Block, class Tile>
FEDLORA_DEVICE void copy_tile(Block& block, Tile tile, int stride, const Source<const T>& from, Index row, Index col,
                              int rows, int cols) {
  for_vectors<T>(block, rows, cols, [&](int i, int j) {
    const int count = elements_at(from, row + i, col + j);
    const T* const source = count > 0 ? from.data + (row + i) * from.stride + col + j : from.data;
    const int to = i * stride + j;
    if (from.by_vectors) {
      block.copy_async(tile + to, source, count * static_cast<int>(sizeof(T)));
    } else {
      for (int e = 0; e < vector_length<T>; ++e) tile[to + e] = e < count ? source[e] : T(0.0f);
    }
  });
}

/// The four words of dropout for the elements (row, channel) to (row, channel + 3); `channel` is a multiple of 4.
FEDLORA_DEVICE RandomWords dropout_words(const Dropout& dropout, std::int32_t row, Index channel) {
  return philox<7>({static_cast<std::uint32_t>(channel / 4), static_cast<std::uint32_t>(row), 0, 0}, dropout.key);
}

/// Sets what dropout drops of a tile to zero; the kept are not scaled here. Each thread works on what it copied itself
/// and has waited for.
template <class T, class Block, class Tile>
FEDLORA_DEVICE void drop_tile(const Block& block, Tile tile, int stride, const Source<const T>& from,
                              const Dropout& dropout, const std::int32_t* row_numbers, Index row, Index col, int rows,
                              int cols) {
  for_vectors<T>(block, rows, cols, [&](int i, int j) {
    if (elements_at(from, row + i, col + j) == 0) return;
    const std::int32_t number = row_numbers[row + i];
    for (int quad = 0; quad < vector_length<T>; quad += 4) {
      const RandomWords words = dropout_words(dropout, number, col + j + quad);
      for (int e = 0; e < 4; ++e)
        if (words[static_cast<std::size_t>(e)] < dropout.threshold) tile[i * stride + j + quad + e] = T(0.0f);
    }
  });
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
/// Partials lie one after another, each (rows, stride). Reads each once; a thread has one element, so that a warp reads
/// and writes whole lines.
template <class To, bool Add>
struct SumPartials {
  static constexpr int threads = 256;

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
    const Index i = at / cols;
    const Index j = at % cols;
    float sum = 0.0f;
    for (Index p = 0; p < count; ++p) sum += partials[(p * rows + i) * stride + j];
    To& result = to[i * to_stride + j];
    sum *= scale;
    if constexpr (Add) sum += static_cast<float>(result);
    result = To(sum);
  }
};

}  // namespace fedlora::cuda

#endif
