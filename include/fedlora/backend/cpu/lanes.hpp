// SPDX-License-Identifier: Apache-2.0
// Vectors as wide as this level's registers, by the vector extension that g++ and clang share. Functions take them by
// reference: passing them by value would depend on the machine's vector width.
//
// Highway 1.0.3 was measured beside them (a low-rank product, a softmax; g++ 12, clang 14): as fast for AVX2 and AVX-512, but
// two to six times slower without -march, as it has no SSE2 there; 0.3 to 0.8 s more to compile every unit; and users would
// have to define macros for -march=x86-64-v3 to be more than SSSE3.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "fedlora/backend/cpu/level.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

// Spelled out for each: g++ loses attributes of vector types that depend on a template parameter.
template <class T, std::size_t Bytes>
struct LanesOf;
template <>
struct LanesOf<float, 16> {
  typedef float type __attribute__((vector_size(16)));
};
template <>
struct LanesOf<float, 32> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct LanesOf<float, 64> {
  typedef float type __attribute__((vector_size(64)));
};
template <>
struct LanesOf<double, 16> {
  typedef double type __attribute__((vector_size(16)));
};
template <>
struct LanesOf<double, 32> {
  typedef double type __attribute__((vector_size(32)));
};
template <>
struct LanesOf<double, 64> {
  typedef double type __attribute__((vector_size(64)));
};

/// A register full of scalars.
template <class T>
using Lanes = typename LanesOf<T, Level::vector_bytes>::type;

/// Half of one where registers are widest, for heads and tails that would leave the rest empty.
template <class T>
using NarrowLanes = typename LanesOf<T, (Level::vector_bytes < 32 ? Level::vector_bytes : 32)>::type;

template <class V>
using ElementOf = std::remove_cvref_t<decltype(std::declval<V&>()[0])>;

/// Scalars in a vector.
template <class V>
inline constexpr Index count_of = static_cast<Index>(sizeof(V) / sizeof(ElementOf<V>));
template <class T>
inline constexpr Index lane_count = count_of<Lanes<T>>;
template <class T>
inline constexpr Index narrow_count = count_of<NarrowLanes<T>>;

template <class V>
[[gnu::always_inline]]
#if defined(__clang__)
__attribute__((min_vector_width(512)))  // else clang halves the widest, and with them the number of registers
#endif
inline void
load(V& lanes, const ElementOf<V>* from) {
  __builtin_memcpy(&lanes, from, sizeof lanes);
}

template <class V>
[[gnu::always_inline]] inline void store(const V& lanes, ElementOf<V>* to) {
  __builtin_memcpy(to, &lanes, sizeof lanes);
}

/// body(0), …, body(Count - 1) with constants, so that arrays of vectors are registers from the start.
template <int Count, class Body>
[[gnu::always_inline]] inline void each(Body&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, Count>{});
}

/// The lanes of a and b, one after another, that `Place` chooses: Place::at(lane) counts b's behind a's. Lane by lane:
/// nvcc expands no pack here.
template <class Place, class V>
[[gnu::always_inline]] inline void shuffle(const V& a, const V& b, V& result) {
  constexpr auto at = [](int lane) { return Place::at(lane); };
  if constexpr (count_of<V> == 2)
    result = __builtin_shufflevector(a, b, at(0), at(1));
  else if constexpr (count_of<V> == 4)
    result = __builtin_shufflevector(a, b, at(0), at(1), at(2), at(3));
  else if constexpr (count_of<V> == 8)
    result = __builtin_shufflevector(a, b, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
  else
    result = __builtin_shufflevector(a, b, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10),
                                     at(11), at(12), at(13), at(14), at(15));
}

/// The first or the second halves of a's and b's segments of `Length` lanes.
template <int Count, int Length, bool Second>
struct HalvesOf {
  static constexpr int at(int lane) {
    constexpr int half = Length / 2;
    return lane / half * Length + lane % half + (Second ? half : 0);
  }
};

/// Of two vectors of segments of `Length` lanes, one vector of segments half as long: each segment's halves combined.
template <int Length, class V, class Combine>
[[gnu::always_inline]] inline void fold(const V& a, const V& b, V& result, Combine&& combine) {
  V first, second;
  shuffle<HalvesOf<static_cast<int>(count_of<V>), Length, false>>(a, b, first);
  shuffle<HalvesOf<static_cast<int>(count_of<V>), Length, true>>(a, b, second);
  combine(first, second);
  result = first;
}

/// values[r] = the lanes of vectors[r] combined, by halves, so that the order is fixed. `Count` is a power of two.
template <int Count, class V, class Combine>
[[gnu::always_inline]] inline void reduce_each(const V (&vectors)[Count], ElementOf<V>* values, Combine&& combine) {
  constexpr int lanes = static_cast<int>(count_of<V>);
  if constexpr (Count > lanes) {
    V half[Count / 2];
    each<2>([&](auto part) __attribute__((always_inline)) {
      each<Count / 2>([&](auto i) __attribute__((always_inline)) { half[i] = vectors[part * (Count / 2) + i]; });
      reduce_each<Count / 2>(half, values + part * (Count / 2), combine);
    });
  } else {
    V level[Count];
    each<Count>([&](auto i) __attribute__((always_inline)) { level[i] = vectors[i]; });
    const auto pairs = [&]<int Left, int Length>(auto&& self) __attribute__((always_inline))->void {
      if constexpr (Left > 1) {
        each<Left / 2>([&](auto i) __attribute__((always_inline)) {
          fold<Length>(level[2 * i], level[2 * i + 1], level[i], combine);
        });
        self.template operator()<Left / 2, Length / 2>(self);
      } else if constexpr (Length > 1) {
        fold<Length>(level[0], level[0], level[0], combine);
        self.template operator()<1, Length / 2>(self);
      }
    };
    pairs.template operator()<Count, lanes>(pairs);
    ElementOf<V> stored[lanes];
    store(level[0], stored);
    each<Count>([&](auto i) __attribute__((always_inline)) { values[i] = stored[i]; });
  }
}

/// values[r] = the sum of the lanes of vectors[r].
template <int Count, class V>
[[gnu::always_inline]] inline void sum_each(const V (&vectors)[Count], ElementOf<V>* values) {
  reduce_each(
      vectors, values, [](auto& a, const auto& b) __attribute__((always_inline)) { a += b; });
}

/// values[r] = the largest lane of vectors[r].
template <int Count, class V>
[[gnu::always_inline]] inline void max_each(const V (&vectors)[Count], ElementOf<V>* values) {
  reduce_each(
      vectors, values, [](auto& a, const auto& b) __attribute__((always_inline)) { a = a > b ? a : b; });
}

template <class V>
[[gnu::always_inline]] inline ElementOf<V> sum_lanes(const V& lanes) {
  ElementOf<V> sum;
  const V one[1] = {lanes};
  sum_each(one, &sum);
  return sum;
}

/// Lane i of the two: a's and b's lanes in turn, of their first or their second halves.
template <int Count, bool Second>
struct Interleaved {
  static constexpr int at(int lane) { return lane / 2 + lane % 2 * Count + (Second ? Count / 2 : 0); }
};

/// As many vectors as each has lanes, rows ↔ columns.
template <class V, int Count>
[[gnu::always_inline]] inline void transpose(V (&rows)[Count]) {
  static_assert(Count == count_of<V>);
  const auto stage = [&](auto&& self, auto left) __attribute__((always_inline))->void {
    if constexpr (left() > 1) {
      V mixed[Count];
      each<Count / 2>([&](auto i) __attribute__((always_inline)) {
        shuffle<Interleaved<Count, false>>(rows[i], rows[i + Count / 2], mixed[2 * i]);
        shuffle<Interleaved<Count, true>>(rows[i], rows[i + Count / 2], mixed[2 * i + 1]);
      });
      each<Count>([&](auto i) __attribute__((always_inline)) { rows[i] = mixed[i]; });
      self(self, std::integral_constant<int, left() / 2>{});
    }
  };
  stage(stage, std::integral_constant<int, Count>{});
}

/// 0, 1, 2, … for the widest vector.
template <class T>
struct Counting {
  alignas(64) T values[64 / sizeof(T)];

  constexpr Counting() : values() {
    T next = 0;
    for (T& value : values) value = next++;
  }
};
template <class T>
inline constexpr Counting<T> counting;

/// 0, 1, 2, … Integers g++ knows as a constant when it has set them all; floats it would set one by one each time.
template <class V>
[[gnu::always_inline]] inline void count_up(V& lanes) {
  using T = ElementOf<V>;
  static_assert(sizeof(V) <= sizeof counting<T>);
  if constexpr (std::is_floating_point_v<T>)
    load(lanes, counting<T>.values);
  else
    each<static_cast<int>(count_of<V>)>([&](auto lane)
                                            __attribute__((always_inline)) { lanes[lane()] = static_cast<T>(lane()); });
}

/// A polynomial's coefficients, the highest power first, each as a vector.
template <int Count>
struct Coefficients {
  alignas(64) float values[Count][lane_count<float>];

  constexpr explicit Coefficients(const float (&coefficients)[Count]) : values() {
    for (int i = 0; i < Count; ++i)
      for (Index lane = 0; lane < lane_count<float>; ++lane) values[i][lane] = coefficients[i];
  }
};

/// Where coefficients stand. Where registers are few they stay there, operands in memory: in registers, where the
/// compiler would keep them, they drive other values out of theirs.
template <int Count>
[[gnu::always_inline]] inline const float* in_memory(const Coefficients<Count>& coefficients) {
  const float* at = coefficients.values[0];
  if constexpr (Level::registers < 32) asm("" : "+r"(at));  // what it points to is not known
  return at;
}

/// sum ← the polynomial at x.
template <int Count>
[[gnu::always_inline]] inline void polynomial(const Coefficients<Count>& coefficients, const Lanes<float>& x,
                                              Lanes<float>& sum) {
  const float* const at = in_memory(coefficients);
  load(sum, at);
  each<Count - 1>([&](auto i) __attribute__((always_inline)) {
    Lanes<float> next;
    load(next, at + (i + 1) * lane_count<float>);
    sum = sum * x + next;
  });
}

/// Zeros that the compiler does not know to be zeros: it would call memset to fill a few vectors.
template <class T>
[[gnu::always_inline]] inline const T* unknown_zeros() {
  alignas(64) static constexpr T zeros[lane_count<T>] = {};
  const T* at = zeros;
  asm("" : "+r"(at));
  return at;
}

/// 1 / ln 2, and ln 2 in two pieces, the first exact in few bits.
inline constexpr Coefficients<3> exp_reduction({1.44269504088896341f, 0.693359375f, -2.12194440e-4f});
inline constexpr Coefficients<6> exp_coefficients({1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                                   4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
inline constexpr Coefficients<1> normal_cdf_slope({0.26516504f});
inline constexpr Coefficients<9> normal_cdf_coefficients({3.084832349e-2f, -1.440377670e-1f, 2.169470450e-1f,
                                                          -1.155383854e-1f, 1.374221775e-1f, 6.051943278e-2f,
                                                          1.027152233e-1f, 1.053167482e-1f, 1.058072077e-1f});

/// x ← exp(x). In float a polynomial after range reduction, with the coefficients of Cephes' expf (Moshier 1989;
/// relative error below 2e-7); arguments are clamped to [-87, 88], so that no result is below 1.6e-38.
[[gnu::always_inline]] inline void exp_lanes(Lanes<float>& x) {
  typedef std::int32_t Integers __attribute__((vector_size(Level::vector_bytes)));
  const Lanes<float> zero{};  // named, for the front end of nvcc crashes on operations with a nameless one
  const Lanes<float> low = zero - 87.0f;
  const Lanes<float> high = zero + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  // 1.5 · 2²³ + 127: adding it rounds to an integer n, and leaves n + 127, the exponent of 2ⁿ, in the lowest bits.
  const Lanes<float> magic = zero + 12583039.0f;
  const float* const reduction = in_memory(exp_reduction);
  Lanes<float> factor;
  load(factor, reduction);
  const Lanes<float> sum = x * factor + magic;
  const Lanes<float> n = sum - magic;
  load(factor, reduction + lane_count<float>);
  x = x - n * factor;
  load(factor, reduction + 2 * lane_count<float>);
  x = x - n * factor;
  Lanes<float> p;
  polynomial(exp_coefficients, x, p);
  p = p * x * x + x + 1.0f;
  Integers bits;
  std::memcpy(&bits, &sum, sizeof bits);
  bits <<= 23;
  Lanes<float> power;
  std::memcpy(&power, &bits, sizeof power);
  x = p * power;
}

[[gnu::always_inline]] inline void exp_lanes(Lanes<double>& x) {
  for (Index lane = 0; lane < lane_count<double>; ++lane) x[lane] = std::exp(x[lane]);
}

/// (1 + erf(x / √2)) / 2, the standard normal distribution, given e = exp(-x²/2). In float t P(t) e for -|x|, with
/// t = 1 / (1 + 0.375 |x| / √2) and P of degree 8, fitted to erfc(z) exp(z²) / (2 t) by weighted least squares until
/// the largest relative error was 1.3e-8, 6e-8 with its coefficients as floats (absolute error of all below 3e-7;
/// relative in the lower tail below 1e-6 given e, 5e-6 with an e of a rounded x²); in double by the standard library.
[[gnu::always_inline]] inline void normal_cdf_lanes(const Lanes<float>& x, const Lanes<float>& e, Lanes<float>& cdf) {
  const Lanes<float> zero{};
  Lanes<float> slope;
  load(slope, in_memory(normal_cdf_slope));
  const Lanes<float> t = 1.0f / ((x < zero ? -x : x) * slope + 1.0f);
  Lanes<float> p;
  polynomial(normal_cdf_coefficients, t, p);
  const Lanes<float> tail = t * p * e;
  cdf = x < zero ? tail : 1.0f - tail;
}

[[gnu::always_inline]] inline void normal_cdf_lanes(const Lanes<double>& x, const Lanes<double>&, Lanes<double>& cdf) {
  for (Index lane = 0; lane < lane_count<double>; ++lane)
    cdf[lane] = 0.5 * std::erfc(-x[lane] * 0.70710678118654752440);
}

/// The first `count` lanes from memory, fewer than all; the others are zero. The sanitizers of g++ do not see what masked
/// moves touch, so that they get none.
template <class T>
[[gnu::always_inline]] inline void load_first(Lanes<T>& lanes, const T* from, Index count) {
#if defined(__SSE2__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  if constexpr (sizeof(Lanes<T>) == 64) {
    if constexpr (std::is_same_v<T, float>)
      lanes = (Lanes<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
    else
      lanes = (Lanes<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
    return;
  } else if constexpr (sizeof(Lanes<T>) == 32 && std::is_same_v<T, float>) {
    Lanes<T> place;
    count_up(place);
    lanes = (Lanes<T>)_mm256_maskload_ps(from, (__m256i)(place < static_cast<T>(count)));
    return;
  }
#endif
  T values[lane_count<T>] = {};
  std::memcpy(values, from, static_cast<std::size_t>(count) * sizeof(T));
  load(lanes, values);
}

/// The first `count` lanes to memory, fewer than all.
template <class T>
[[gnu::always_inline]] inline void store_first(const Lanes<T>& lanes, T* to, Index count) {
#if defined(__SSE2__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  if constexpr (sizeof(Lanes<T>) == 64) {
    if constexpr (std::is_same_v<T, float>)
      _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)lanes);
    else
      _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), (__m512d)lanes);
    return;
  } else if constexpr (sizeof(Lanes<T>) == 32 && std::is_same_v<T, float>) {
    Lanes<T> place;
    count_up(place);
    _mm256_maskstore_ps(to, (__m256i)(place < static_cast<T>(count)), (__m256)lanes);
    return;
  }
#endif
  T values[lane_count<T>];
  store(lanes, values);
  std::memcpy(to, values, static_cast<std::size_t>(count) * sizeof(T));
}

/// x ← √x, rounded correctly.
template <class T>
[[gnu::always_inline]] inline void sqrt_lanes(Lanes<T>& x) {
#if defined(__SSE2__)
  constexpr bool single = std::is_same_v<T, float>;
  if constexpr (sizeof x == 64 && single)
    x = (Lanes<T>)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)x);
  else if constexpr (sizeof x == 64)
    x = (Lanes<T>)_mm512_maskz_sqrt_pd(0xFF, (__m512d)x);
  else if constexpr (sizeof x == 32 && single)
    x = (Lanes<T>)_mm256_sqrt_ps((__m256)x);
  else if constexpr (sizeof x == 32)
    x = (Lanes<T>)_mm256_sqrt_pd((__m256d)x);
  else if constexpr (single)
    x = (Lanes<T>)_mm_sqrt_ps((__m128)x);
  else
    x = (Lanes<T>)_mm_sqrt_pd((__m128d)x);
#elif defined(__aarch64__)
  if constexpr (std::is_same_v<T, float>)
    x = (Lanes<T>)vsqrtq_f32((float32x4_t)x);
  else
    x = (Lanes<T>)vsqrtq_f64((float64x2_t)x);
#else
  for (Index lane = 0; lane < lane_count<T>; ++lane) x[lane] = std::sqrt(x[lane]);
#endif
}

/// Runs `body(values)` over a row: whole vectors first, then one padded with zeros for the tail. `values[i]` comes from
/// `inputs[i]`, and the first of them go to the outputs, which may be inputs too.
template <class T, int Inputs, int Outputs, class Body>
[[gnu::always_inline]] inline void for_lanes(Index size, const T* const (&inputs)[Inputs], T* const (&outputs)[Outputs],
                                             Body&& body) {
  static_assert(Outputs <= Inputs);
  constexpr Index width = lane_count<T>;
  Lanes<T> values[Inputs];
  Index offset = 0;
  for (; offset + width <= size; offset += width) {
    each<Inputs>([&](auto i) __attribute__((always_inline)) { load(values[i], inputs[i] + offset); });
    body(values);
    each<Outputs>([&](auto i) __attribute__((always_inline)) { store(values[i], outputs[i] + offset); });
  }
  if (offset == size) return;
  const Index rest = size - offset;
  each<Inputs>([&](auto i) __attribute__((always_inline)) { load_first<T>(values[i], inputs[i] + offset, rest); });
  body(values);
  each<Outputs>([&](auto i) __attribute__((always_inline)) { store_first<T>(values[i], outputs[i] + offset, rest); });
}

/// The same without outputs.
template <class T, int Inputs, class Body>
[[gnu::always_inline]] inline void visit_lanes(Index size, const T* const (&inputs)[Inputs], Body&& body) {
  constexpr Index width = lane_count<T>;
  Lanes<T> values[Inputs];
  Index offset = 0;
  for (; offset + width <= size; offset += width) {
    each<Inputs>([&](auto i) __attribute__((always_inline)) { load(values[i], inputs[i] + offset); });
    body(values);
  }
  if (offset == size) return;
  each<Inputs>([&](auto i)
                   __attribute__((always_inline)) { load_first<T>(values[i], inputs[i] + offset, size - offset); });
  body(values);
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
