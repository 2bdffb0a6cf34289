// SPDX-License-Identifier: Apache-2.0
// 64 bytes of scalars at a time, by the vector extension that g++ and clang share; the compiler lowers them to what the
// machine has. Functions take lanes by reference: passing them by value would depend on the machine's vector width.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// Scalars per vector.
template <class T>
inline constexpr Index lane_count = 64 / static_cast<Index>(sizeof(T));

template <class T>
struct LanesOf;

// Spelled out for each scalar: g++ loses attributes of vector types that depend on a template parameter.
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef float unaligned __attribute__((vector_size(64), aligned(4), may_alias));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(64)));
  typedef double unaligned __attribute__((vector_size(64), aligned(8), may_alias));
};

/// 16 floats or 8 doubles.
template <class T>
using Lanes = typename LanesOf<T>::type;

template <class T>
[[gnu::always_inline]] inline void load(Lanes<T>& lanes, const T* from) {
  lanes = *reinterpret_cast<const typename LanesOf<T>::unaligned*>(from);
}

template <class T>
[[gnu::always_inline]] inline void store(const Lanes<T>& lanes, T* to) {
  *reinterpret_cast<typename LanesOf<T>::unaligned*>(to) = lanes;
}

/// The sum of the lanes, pairwise, so that its order is fixed.
template <class T>
[[gnu::always_inline]] inline T sum_lanes(const Lanes<T>& lanes) {
  T values[lane_count<T>];
  store<T>(lanes, values);
  for (Index width = lane_count<T> / 2; width > 0; width /= 2)
    for (Index lane = 0; lane < width; ++lane) values[lane] += values[lane + width];
  return values[0];
}

/// The largest lane, pairwise and without branches.
template <class T>
[[gnu::always_inline]] inline T max_lanes(const Lanes<T>& lanes) {
  T values[lane_count<T>];
  store<T>(lanes, values);
  for (Index width = lane_count<T> / 2; width > 0; width /= 2)
    for (Index lane = 0; lane < width; ++lane)
      values[lane] = values[lane] > values[lane + width] ? values[lane] : values[lane + width];
  return values[0];
}

/// x ← exp(x). In float a polynomial after range reduction, with the coefficients of Cephes' expf (Moshier 1989;
/// relative error below 2e-7); arguments are clamped to [-87, 88].
[[gnu::always_inline]] inline void exp_lanes(Lanes<float>& x) {
  typedef std::int32_t Integers __attribute__((vector_size(64)));
  const Lanes<float> zero{};  // named, for the front end of nvcc crashes on operations with a nameless one
  const Lanes<float> low = zero - 87.0f;
  const Lanes<float> high = zero + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Lanes<float> magic = zero + 12582912.0f;  // 1.5 * 2^23: adding and taking it away rounds to an integer
  const Lanes<float> n = (x * 1.44269504088896341f + magic) - magic;
  x = x - n * 0.693359375f;  // ln 2 in two pieces, the first exact in few bits
  x = x - n * -2.12194440e-4f;
  Lanes<float> p = x * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * x + 8.3334519073e-3f;
  p = p * x + 4.1665795894e-2f;
  p = p * x + 1.6666665459e-1f;
  p = p * x + 5.0000001201e-1f;
  p = p * x * x + x + 1.0f;
  Integers bits = (__builtin_convertvector(n, Integers) + 127) << 23;
  Lanes<float> power;
  std::memcpy(&power, &bits, sizeof power);
  x = p * power;
}

[[gnu::always_inline]] inline void exp_lanes(Lanes<double>& x) {
  for (Index lane = 0; lane < lane_count<double>; ++lane) x[lane] = std::exp(x[lane]);
}

/// (1 + erf(x / √2)) / 2, the standard normal distribution, given e = exp(-x²/2). In float by the Chebyshev fit of erfc
/// in Press et al., Numerical Recipes, 2nd edition, section 6.2 (absolute error below 3e-7; relative below 1e-5 in the
/// lower tail), in double by the standard library.
[[gnu::always_inline]] inline void normal_cdf_lanes(const Lanes<float>& x, const Lanes<float>& e, Lanes<float>& cdf) {
  const Lanes<float> zero{};
  const Lanes<float> z = (x < zero ? -x : x) * 0.70710678118654752f;
  const Lanes<float> t = 1.0f / (z * 0.5f + 1.0f);
  Lanes<float> p = t * 0.17087277f - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  exp_lanes(p);
  const Lanes<float> half_erfc = t * p * e * 0.5f;
  cdf = x < zero ? half_erfc : 1.0f - half_erfc;
}

[[gnu::always_inline]] inline void normal_cdf_lanes(const Lanes<double>& x, const Lanes<double>&, Lanes<double>& cdf) {
  for (Index lane = 0; lane < lane_count<double>; ++lane)
    cdf[lane] = 0.5 * std::erfc(-x[lane] * 0.70710678118654752440);
}

/// Runs `body(values, offset)` over a row: whole vectors first, then one padded with zeros for the tail. `values[i]`
/// comes from `inputs[i]` and goes to `outputs[i]`, where these are not null.
template <class T, int Count, class Body>
[[gnu::always_inline]] inline void for_lanes(Index size, const T* const (&inputs)[Count], T* const (&outputs)[Count],
                                             Body&& body) {
  constexpr Index width = lane_count<T>;
  const auto each = [&]<std::size_t... I>(std::index_sequence<I...>) {  // written out, so that values stay in registers
    Index offset = 0;
    for (; offset + width <= size; offset += width) {
      Lanes<T> values[Count] = {};
      ((inputs[I] != nullptr ? load<T>(values[I], inputs[I] + offset) : void()), ...);
      body(values, offset);
      ((outputs[I] != nullptr ? store<T>(values[I], outputs[I] + offset) : void()), ...);
    }
    if (offset == size) return;
    Lanes<T> values[Count] = {};
    const Index rest = size - offset;
    T tail[Count][width] = {};
    for (int i = 0; i < Count; ++i)
      if (inputs[i] != nullptr)
        for (Index j = 0; j < rest; ++j) tail[i][j] = inputs[i][offset + j];
    (load<T>(values[I], tail[I]), ...);
    body(values, offset);
    (store<T>(values[I], tail[I]), ...);
    for (int i = 0; i < Count; ++i)
      if (outputs[i] != nullptr)
        for (Index j = 0; j < rest; ++j) outputs[i][offset + j] = tail[i][j];
  };
  each(std::make_index_sequence<Count>{});
}

}  // namespace fedlora::cpu
