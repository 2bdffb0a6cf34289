// SPDX-License-Identifier: Apache-2.0
// Dropout masks, drawn by address and never stored (core/random.hpp says which word belongs to which element).
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

typedef std::uint32_t DropoutWords __attribute__((vector_size(Level::vector_bytes)));
typedef std::uint64_t DropoutCounters __attribute__((vector_size(Level::vector_bytes)));

/// Elements whose words are drawn together: four of each counter, and so two vectors of them.
inline constexpr Index dropout_block = 4 * static_cast<Index>(sizeof(DropoutCounters) / sizeof(std::uint64_t));

/// The 64-bit products of the low halves of `a` and one factor.
template <class V>
[[gnu::always_inline]] inline void multiply_low_halves(const V& a, std::uint32_t factor, V& product) {
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 64)
    product = (V)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, _mm512_set1_epi64(factor));
  else if constexpr (sizeof(V) == 32)
    product = (V)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
  else
    product = (V)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(factor));
#else
  product = (a & 0xFFFFFFFFu) * std::uint64_t{factor};
#endif
}

/// Of two vectors of 64-bit pairs of words, the first or the second half in turn.
template <class V>
[[gnu::always_inline]] inline void draw_in_turn(const V& first, const V& second, DropoutWords& low,
                                                DropoutWords& high) {
  constexpr int count = static_cast<int>(sizeof(V) / sizeof(std::uint64_t));
  V mixed;
  shuffle<Interleaved<count, false>>(first, second, mixed);
  low = (DropoutWords)mixed;
  shuffle<Interleaved<count, true>>(first, second, mixed);
  high = (DropoutWords)mixed;
}

/// The words of elements [column, column + dropout_block) of one row; `column` is a multiple of 4. philox<7>, a vector of
/// counters at once, each word in the low half of 64 bits (high halves hold whatever is left over).
[[gnu::always_inline]] inline void dropout_words(const Dropout& dropout, std::uint32_t row, std::uint32_t plane,
                                                 Index column, DropoutWords& low, DropoutWords& high) {
  DropoutCounters c0;
  count_up(c0);
  c0 += static_cast<std::uint64_t>(column / 4);
  DropoutCounters c1 = DropoutCounters{} + std::uint64_t{row};
  DropoutCounters c2 = DropoutCounters{} + std::uint64_t{plane};
  DropoutCounters c3 = {};
  auto k0 = static_cast<std::uint32_t>(dropout.key.bits);
  auto k1 = static_cast<std::uint32_t>(dropout.key.bits >> 32);
  int rounds = 7;
  asm("" : "+r"(rounds));  // not known: unrolled, all rounds' keys would be kept, more than there are registers
  for (; rounds > 0; --rounds) {
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
  draw_in_turn(first, second, low, high);
}

/// mask[i] = 0 or the scale over one row of `size` elements.
template <class T>
void dropout_mask(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index size, T* mask) {
  const T scale = static_cast<T>(dropout.scale);
  constexpr Index half = dropout_block / 2;
  Index column = 0;
  if constexpr (std::is_same_v<T, float>) {
    const Lanes<float> zero{};
    const Lanes<float> kept = zero + scale;
    for (; column + dropout_block <= size; column += dropout_block) {
      DropoutWords low, high;
      dropout_words(dropout, row, plane, column, low, high);
      store(low >= dropout.threshold ? kept : zero, mask + column);
      store(high >= dropout.threshold ? kept : zero, mask + column + half);
    }
  }
  for (; column < size; column += dropout_block) {
    DropoutWords drawn[2];
    dropout_words(dropout, row, plane, column, drawn[0], drawn[1]);
    std::uint32_t words[dropout_block];
    std::memcpy(words, drawn, sizeof words);
    const Index count = std::min(size - column, dropout_block);
    for (Index i = 0; i < count; ++i) mask[column + i] = words[i] >= dropout.threshold ? scale : T(0);
  }
}

/// to[i] = mask_i * scale * from[i] over one row of `size` elements; `to` may be `from`.
template <class T>
void dropout_row(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index size, const T* from, T* to) {
  const T scale = static_cast<T>(dropout.scale);
  constexpr Index half = dropout_block / 2;
  Index column = 0;
  if constexpr (std::is_same_v<T, float>) {
    const Lanes<float> zero{};
    for (; column + dropout_block <= size; column += dropout_block) {
      DropoutWords low, high;
      Lanes<float> values;
      dropout_words(dropout, row, plane, column, low, high);
      load(values, from + column);
      store(low >= dropout.threshold ? values * scale : zero, to + column);
      load(values, from + column + half);
      store(high >= dropout.threshold ? values * scale : zero, to + column + half);
    }
  }
  for (; column < size; column += dropout_block) {
    DropoutWords drawn[2];
    dropout_words(dropout, row, plane, column, drawn[0], drawn[1]);
    std::uint32_t words[dropout_block];
    std::memcpy(words, drawn, sizeof words);
    const Index count = std::min(size - column, dropout_block);
    for (Index i = 0; i < count; ++i) to[column + i] = words[i] >= dropout.threshold ? from[column + i] * scale : T(0);
  }
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
