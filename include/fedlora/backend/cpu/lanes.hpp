// SPDX-License-Identifier: Apache-2.0
// 64 bytes of scalars at a time, by the vector extension that g++ and clang share; the compiler lowers them to what the
// machine has. Functions take lanes by reference: passing them by value would depend on the machine's vector width.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// Scalars per vector.
template <class T>
inline constexpr Index lane_count = 64 / static_cast<Index>(sizeof(T));

template <class T>
struct LanesOf {
  typedef T type __attribute__((vector_size(64)));
};

/// 16 floats or 8 doubles.
template <class T>
using Lanes = typename LanesOf<T>::type;

template <class T>
[[gnu::always_inline]] inline void load(Lanes<T>& lanes, const T* from) {
  std::memcpy(&lanes, from, sizeof lanes);
}

template <class T>
[[gnu::always_inline]] inline void store(const Lanes<T>& lanes, T* to) {
  std::memcpy(to, &lanes, sizeof lanes);
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

/// x ← exp(x). In float a polynomial after range reduction (relative error below 2e-7); arguments are clamped to [-87,
/// 88].
[[gnu::always_inline]] inline void exp_lanes(Lanes<float>& x) {
  typedef std::int32_t Integers __attribute__((vector_size(64)));
  const Lanes<float> low = Lanes<float>{} - 87.0f;
  const Lanes<float> high = Lanes<float>{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Lanes<float> magic =
      Lanes<float>{} + 12582912.0f;  // 1.5 * 2^23: adding and taking it away rounds to an integer
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

/// (1 + erf(x / √2)) / 2, the standard normal distribution, given e = exp(-x²/2). In float by a rational Chebyshev form
/// of erfc (relative error below 2e-7), in double by the standard library.
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

/// Calls `body(offset, load, store)`-style kernels over a row: whole vectors first, then one padded vector for the
/// tail. `body(Lanes& values…)` sees the inputs in `inputs` and leaves results in them; `outputs` say where each goes
/// (nullptr: nowhere).
template <class T, int Count, class Body>
[[gnu::always_inline]] inline void for_lanes(Index size, const T* const (&inputs)[Count], T* const (&outputs)[Count],
                                             Body&& body) {
  constexpr Index width = lane_count<T>;
  Index offset = 0;
  Lanes<T> values[Count];
  for (; offset + width <= size; offset += width) {
    for (int i = 0; i < Count; ++i)
      if (inputs[i] != nullptr) load<T>(values[i], inputs[i] + offset);
    body(values, offset);
    for (int i = 0; i < Count; ++i)
      if (outputs[i] != nullptr) store<T>(values[i], outputs[i] + offset);
  }
  if (offset < size) {
    const auto bytes = static_cast<std::size_t>(size - offset) * sizeof(T);
    for (int i = 0; i < Count; ++i) {
      values[i] = Lanes<T>{};
      if (inputs[i] != nullptr) std::memcpy(&values[i], inputs[i] + offset, bytes);
    }
    body(values, offset);
    for (int i = 0; i < Count; ++i)
      if (outputs[i] != nullptr) std::memcpy(outputs[i] + offset, &values[i], bytes);
  }
}

}  // namespace fedlora::cpu
