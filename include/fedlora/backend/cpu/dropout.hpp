// SPDX-License-Identifier: Apache-2.0
// Dropout masks, drawn by address and never stored (core/random.hpp says which word belongs to which element).
#pragma once

#include <cstdint>
#include <cstring>

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// Elements whose words are drawn together.
inline constexpr Index dropout_block = 64;

/// The words of elements [column, column + 64) of one row; `column` is a multiple of 4.
inline void dropout_words(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index column,
                          std::uint32_t (&words)[dropout_block]) {
  constexpr int quads = dropout_block / 4;
  std::uint32_t c0[quads], c1[quads], c2[quads], c3[quads];
  const auto first = static_cast<std::uint32_t>(column / 4);
  for (int q = 0; q < quads; ++q) {
    c0[q] = first + static_cast<std::uint32_t>(q);
    c1[q] = row;
    c2[q] = plane;
    c3[q] = 0;
  }
  auto k0 = static_cast<std::uint32_t>(dropout.key.bits);
  auto k1 = static_cast<std::uint32_t>(dropout.key.bits >> 32);
  for (int round = 0; round < 7; ++round) {  // philox<7>, sixteen counters at once
    for (int q = 0; q < quads; ++q) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0[q];
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2[q];
      c0[q] = static_cast<std::uint32_t>(p1 >> 32) ^ c1[q] ^ k0;
      c1[q] = static_cast<std::uint32_t>(p1);
      c2[q] = static_cast<std::uint32_t>(p0 >> 32) ^ c3[q] ^ k1;
      c3[q] = static_cast<std::uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int q = 0; q < quads; ++q) {
    words[4 * q] = c0[q];
    words[4 * q + 1] = c1[q];
    words[4 * q + 2] = c2[q];
    words[4 * q + 3] = c3[q];
  }
}

/// to[i] = mask_i * scale * from[i] over one row of `size` elements; `to` may be `from`.
template <class T>
void dropout_row(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index size, const T* from, T* to) {
  const T scale = static_cast<T>(dropout.scale);
  std::uint32_t words[dropout_block];
  for (Index column = 0; column < size; column += dropout_block) {
    dropout_words(dropout, row, plane, column, words);
    const Index count = size - column < dropout_block ? size - column : dropout_block;
    if (count == dropout_block) {
      for (Index i = 0; i < dropout_block; ++i)
        to[column + i] = words[i] >= dropout.threshold ? from[column + i] * scale : T(0);
    } else {
      for (Index i = 0; i < count; ++i)
        to[column + i] = words[i] >= dropout.threshold ? from[column + i] * scale : T(0);
    }
  }
}

/// to[i] += mask_i * scale * from[i] over one row.
template <class T>
void dropout_row_add(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index size, const T* from, T* to) {
  const T scale = static_cast<T>(dropout.scale);
  std::uint32_t words[dropout_block];
  for (Index column = 0; column < size; column += dropout_block) {
    dropout_words(dropout, row, plane, column, words);
    const Index count = size - column < dropout_block ? size - column : dropout_block;
    for (Index i = 0; i < count; ++i) to[column + i] += words[i] >= dropout.threshold ? from[column + i] * scale : T(0);
  }
}

}  // namespace fedlora::cpu
