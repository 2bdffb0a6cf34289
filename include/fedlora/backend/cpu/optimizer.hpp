// SPDX-License-Identifier: Apache-2.0
// The loops of the optimizers' steps, over flat ranges. optim/ has the formulas and makes the factors.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>

#include "fedlora/backend/cpu/level.hpp"
#include "fedlora/backend/optimizer_step.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// out ← √in. Square roots are rounded correctly by every instruction, so that all forms give the same bits; a plain
/// loop over std::sqrt is not vectorised unless a user's flags say that errno does not matter.
template <class T>
void square_roots(const T* in, T* out, std::size_t size) {
  std::size_t i = 0;
#if defined(__SSE2__)
  constexpr bool narrow = std::is_same_v<T, float>;
  constexpr std::size_t lanes = Level::vector_bytes / sizeof(T);
  for (; i + lanes <= size; i += lanes)
    if constexpr (lanes * sizeof(T) == 64 && narrow)
      _mm512_storeu_ps(out + i, _mm512_sqrt_ps(_mm512_loadu_ps(in + i)));
    else if constexpr (lanes * sizeof(T) == 64)
      _mm512_storeu_pd(out + i, _mm512_sqrt_pd(_mm512_loadu_pd(in + i)));
    else if constexpr (lanes * sizeof(T) == 32 && narrow)
      _mm256_storeu_ps(out + i, _mm256_sqrt_ps(_mm256_loadu_ps(in + i)));
    else if constexpr (lanes * sizeof(T) == 32)
      _mm256_storeu_pd(out + i, _mm256_sqrt_pd(_mm256_loadu_pd(in + i)));
    else if constexpr (narrow)
      _mm_storeu_ps(out + i, _mm_sqrt_ps(_mm_loadu_ps(in + i)));
    else
      _mm_storeu_pd(out + i, _mm_sqrt_pd(_mm_loadu_pd(in + i)));
#endif
  for (; i < size; ++i) out[i] = std::sqrt(in[i]);
}

/// m ← m + (1 − β₁)(g − m), v ← β₂ v + (1 − β₂) g², w ← decay · w + step_size · m / (√v / correction + eps).
template <class T>
void adamw_step(const AdamWFactors<T>& by, std::size_t size, T* w, const T* g, T* m, T* v) {
  // Blocks that stay in the first cache, and one kind of work per loop, so that each is vectorised.
  constexpr std::size_t block = 1024;
  T denominator[block];
  const T blend = by.blend, keep = by.keep, fresh = by.fresh;
  for (std::size_t begin = 0; begin < size; begin += block) {
    const std::size_t count = std::min(block, size - begin);
    T* const wb = w + begin;
    const T* const gb = g + begin;
    T* const mb = m + begin;
    T* const vb = v + begin;
    if (blend < T(0.5)) {  // torch's lerp takes the form that is exact at the nearer end
      for (std::size_t i = 0; i < count; ++i) mb[i] = mb[i] + blend * (gb[i] - mb[i]);
    } else {
      for (std::size_t i = 0; i < count; ++i) mb[i] = gb[i] - (gb[i] - mb[i]) * (T(1) - blend);
    }
    for (std::size_t i = 0; i < count; ++i) vb[i] = vb[i] * keep + fresh * gb[i] * gb[i];
    square_roots(vb, denominator, count);
    const T decay = by.decay, step_size = by.step_size, correction = by.correction, eps = by.eps;
    for (std::size_t i = 0; i < count; ++i)
      wb[i] = wb[i] * decay + step_size * mb[i] / (denominator[i] / correction + eps);
  }
}

/// w ← w + rate · (g + decay · w); with a momentum buffer u, u ← μ u + fresh · (g + decay · w) (u ← g + decay · w when
/// it is new), w ← w + rate · u, or w ← w + rate · (g + decay · w + μ u) after Nesterov.
template <class T>
void sgd_step(const SgdFactors<T>& by, std::size_t size, T* w, const T* g, T* u) {
  const T rate = by.rate, decay = by.decay, mu = by.mu, fresh = by.fresh;
  if (u == nullptr) {
    for (std::size_t i = 0; i < size; ++i) w[i] += rate * (g[i] + decay * w[i]);
    return;
  }
  if (by.first) {
    for (std::size_t i = 0; i < size; ++i) u[i] = g[i] + decay * w[i];
  } else {
    for (std::size_t i = 0; i < size; ++i) u[i] = u[i] * mu + fresh * (g[i] + decay * w[i]);
  }
  if (by.nesterov) {
    for (std::size_t i = 0; i < size; ++i) w[i] += rate * ((g[i] + decay * w[i]) + mu * u[i]);
  } else {
    for (std::size_t i = 0; i < size; ++i) w[i] += rate * u[i];
  }
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
