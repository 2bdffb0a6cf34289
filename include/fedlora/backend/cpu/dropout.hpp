// SPDX-License-Identifier: Apache-2.0
// Dropout masks, drawn by address and never stored (core/random.hpp says which word belongs to which element).
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

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

/// The words of elements [column, column + dropout_block) of one row; `column` is a multiple of 4. philox<7>, a vector
/// of counters at once, each word in the low half of 64 bits (high halves hold whatever is left over).
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

/// Vectors of T that hold a block's elements.
template <class T>
inline constexpr int dropout_vectors = static_cast<int>(dropout_block / lane_count<T>);

/// 0 or the scale for the elements [column, column + dropout_block). No template: the front end of nvcc chooses between
/// vectors only where it knows what they are of.
[[gnu::always_inline]] inline void draw_mask(const Dropout& dropout, std::uint32_t row, std::uint32_t plane,
                                             Index column, Lanes<float> (&mask)[dropout_vectors<float>]) {
  DropoutWords words[2];
  dropout_words(dropout, row, plane, column, words[0], words[1]);
  const Lanes<float> zero{};
  const Lanes<float> kept = zero + static_cast<float>(dropout.scale);
  mask[0] = words[0] >= dropout.threshold ? kept : zero;
  mask[1] = words[1] >= dropout.threshold ? kept : zero;
}

[[gnu::always_inline]] inline void draw_mask(const Dropout& dropout, std::uint32_t row, std::uint32_t plane,
                                             Index column, Lanes<double> (&mask)[dropout_vectors<double>]) {
  constexpr int count = static_cast<int>(sizeof(DropoutWords) / sizeof(std::uint32_t));
  DropoutWords words[2];
  dropout_words(dropout, row, plane, column, words[0], words[1]);
  const Lanes<double> zero{};
  const Lanes<double> kept = zero + dropout.scale;
  const DropoutCounters threshold = DropoutCounters{} + std::uint64_t{dropout.threshold};
  const DropoutWords none{};
  each<2>([&](auto i) __attribute__((always_inline)) {  // each word becomes 64 bits wide
    DropoutWords first, second;
    shuffle<Interleaved<count, false>>(words[i], none, first);
    shuffle<Interleaved<count, true>>(words[i], none, second);
    const DropoutCounters first_wide = (DropoutCounters)first, second_wide = (DropoutCounters)second;
    mask[2 * i] = first_wide >= threshold ? kept : zero;
    mask[2 * i + 1] = second_wide >= threshold ? kept : zero;
  });
}

/// mask[i] = 0 or the scale over one row of `size` elements.
template <class T>
void dropout_mask(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index size, T* mask) {
  constexpr Index lanes = lane_count<T>;
  Lanes<T> drawn[dropout_vectors<T>];
  Index column = 0;
  for (; column + dropout_block <= size; column += dropout_block) {
    draw_mask(dropout, row, plane, column, drawn);
    each<dropout_vectors<T>>([&](auto i)
                                 __attribute__((always_inline)) { store(drawn[i], mask + column + i * lanes); });
  }
  if (column == size) return;
  draw_mask(dropout, row, plane, column, drawn);
  each<dropout_vectors<T>>([&](auto i) __attribute__((always_inline)) {
    const Index at = column + i * lanes;
    if (at + lanes <= size)
      store(drawn[i], mask + at);
    else if (at < size)
      store_first<T>(drawn[i], mask + at, size - at);
  });
}

/// to[i] = mask_i * scale * from[i] over one row of `size` elements; `to` may be `from`.
template <class T>
void dropout_row(const Dropout& dropout, std::uint32_t row, std::uint32_t plane, Index size, const T* from, T* to) {
  constexpr Index lanes = lane_count<T>;
  const Lanes<T> zero{};
  Lanes<T> drawn[dropout_vectors<T>];
  Lanes<T> values;
  // What is dropped becomes zero whatever it was.
  const auto drop = [&](const Lanes<T>& mask) __attribute__((always_inline)) {
    values = mask > zero ? values * mask : zero;
  };
  Index column = 0;
  for (; column + dropout_block <= size; column += dropout_block) {
    draw_mask(dropout, row, plane, column, drawn);
    each<dropout_vectors<T>>([&](auto i) __attribute__((always_inline)) {
      load(values, from + column + i * lanes);
      drop(drawn[i]);
      store(values, to + column + i * lanes);
    });
  }
  if (column == size) return;
  draw_mask(dropout, row, plane, column, drawn);
  each<dropout_vectors<T>>([&](auto i) __attribute__((always_inline)) {
    const Index at = column + i * lanes;
    if (at + lanes <= size) {
      load(values, from + at);
      drop(drawn[i]);
      store(values, to + at);
    } else if (at < size) {
      load_first<T>(values, from + at, size - at);
      drop(drawn[i]);
      store_first<T>(values, to + at, size - at);
    }
  });
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
