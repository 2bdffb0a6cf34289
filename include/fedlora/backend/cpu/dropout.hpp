// SPDX-License-Identifier: Apache-2.0
// Dropout masks, drawn by address and never stored (core/random.hpp says which word belongs to which element).
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// Elements whose words are drawn together: eight counters of four words.
inline constexpr Index dropout_block = 32;

typedef std::uint32_t DropoutWords __attribute__((vector_size(64)));
typedef std::uint64_t DropoutCounters __attribute__((vector_size(64)));

/// The 64-bit products of the low halves of `a` and one factor.
[[gnu::always_inline]] inline void multiply_low_halves(const DropoutCounters& a, std::uint32_t factor,
                                                       DropoutCounters& product) {
#if defined(__AVX512F__)
  product = (DropoutCounters)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, _mm512_set1_epi64(factor));
#else
  product = (a & 0xFFFFFFFFu) * std::uint64_t{factor};
#endif
}

/// The words of elements [column, column + 32) of one row; `column` is a multiple of 4. philox<7>, eight counters at
/// once, each word in the low half of 64 bits (high halves hold whatever is left over).
[[gnu::always_inline]] inline void dropout_words(const Dropout& dropout, std::uint32_t row, std::uint32_t plane,
                                                 Index column, DropoutWords& low, DropoutWords& high) {
  DropoutCounters c0 = DropoutCounters{0, 1, 2, 3, 4, 5, 6, 7} + static_cast<std::uint64_t>(column / 4);
  DropoutCounters c1 = DropoutCounters{} + std::uint64_t{row};
  DropoutCounters c2 = DropoutCounters{} + std::uint64_t{plane};
  DropoutCounters c3 = {};
  auto k0 = static_cast<std::uint32_t>(dropout.key.bits);
  auto k1 = static_cast<std::uint32_t>(dropout.key.bits >> 32);
  for (int round = 0; round < 7; ++round) {
    DropoutCounters p0, p1;
    multiply_low_halves(c0, 0xD2511F53u, p0);
    multiply_low_halves(c2, 0xCD9E8D57u, p1);
    c0 = (p1 >> 32) ^ c1 ^ std::uint64_t{k0};
    c1 = p1;
    c2 = (p0 >> 32) ^ c3 ^ std::uint64_t{k1};
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const DropoutCounters first = (c0 & 0xFFFFFFFFu) | (c1 << 32);
  const DropoutCounters second = (c2 & 0xFFFFFFFFu) | (c3 << 32);
  low = (DropoutWords)__builtin_shufflevector(first, second, 0, 8, 1, 9, 2, 10, 3, 11);
  high = (DropoutWords)__builtin_shufflevector(first, second, 4, 12, 5, 13, 6, 14, 7, 15);
}

/// mask[i] = 0 or the scale over one row of `size` elements.
template <class T>
void dropout_mask(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index size, T* mask) {
  const T scale = static_cast<T>(dropout.scale);
  for (Index column = 0; column < size; column += dropout_block) {
    DropoutWords low, high;
    dropout_words(dropout, row, plane, column, low, high);
    if constexpr (std::is_same_v<T, float>) {
      if (size - column >= dropout_block) {
        const Lanes<float> kept = Lanes<float>{} + scale;
        store<float>(low >= dropout.threshold ? kept : Lanes<float>{}, mask + column);
        store<float>(high >= dropout.threshold ? kept : Lanes<float>{}, mask + column + 16);
        continue;
      }
    }
    std::uint32_t words[dropout_block];
    std::memcpy(words, &low, sizeof low);
    std::memcpy(words + 16, &high, sizeof high);
    const Index count = size - column < dropout_block ? size - column : dropout_block;
    for (Index i = 0; i < count; ++i) mask[column + i] = words[i] >= dropout.threshold ? scale : T(0);
  }
}

/// to[i] = mask_i * scale * from[i] over one row of `size` elements; `to` may be `from`.
template <class T>
void dropout_row(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index size, const T* from, T* to) {
  const T scale = static_cast<T>(dropout.scale);
  for (Index column = 0; column < size; column += dropout_block) {
    DropoutWords low, high;
    dropout_words(dropout, row, plane, column, low, high);
    std::uint32_t words[dropout_block];
    std::memcpy(words, &low, sizeof low);
    std::memcpy(words + 16, &high, sizeof high);
    const Index count = size - column < dropout_block ? size - column : dropout_block;
    for (Index i = 0; i < count; ++i) to[column + i] = words[i] >= dropout.threshold ? from[column + i] * scale : T(0);
  }
}

}  // namespace fedlora::cpu
