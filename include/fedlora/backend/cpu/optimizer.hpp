// SPDX-License-Identifier: Apache-2.0
// The loops of the optimizers' steps, over flat ranges. optim/ has the formulas and makes the factors.
#pragma once

#include <cstddef>

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/backend/optimizer_step.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// m ← m + (1 − β₁)(g − m), v ← β₂ v + (1 − β₂) g², w ← decay · w + step_size · m / (√v / correction + eps).
template <class T>
void adamw_step(const AdamWFactors<T>& by, std::size_t size, T* w, const T* g, T* m, T* v) {
  const T decay = by.decay, keep = by.keep, fresh = by.fresh;
  const T step_size = by.step_size, correction = by.correction, eps = by.eps;
  const T* const inputs[4] = {w, m, v, g};
  T* const outputs[3] = {w, m, v};
  const auto step = [&](auto&& blend_in) __attribute__((always_inline)) {
    for_lanes<T>(
        static_cast<Index>(size), inputs, outputs, [&](Lanes<T>(&x)[4]) __attribute__((always_inline)) {
          blend_in(x[1], x[3]);
          x[2] = x[2] * keep + fresh * x[3] * x[3];
          Lanes<T> root = x[2];
          sqrt_lanes<T>(root);
          x[0] = x[0] * decay + step_size * x[1] / (root / correction + eps);
        });
  };
  const T blend = by.blend, rest = T(1) - by.blend;
  if (blend < T(0.5))  // torch's lerp takes the form that is exact at the nearer end
    step([&](auto& mean, const Lanes<T>& gradient)
             __attribute__((always_inline)) { mean = mean + blend * (gradient - mean); });
  else
    step([&](auto& mean, const Lanes<T>& gradient)
             __attribute__((always_inline)) { mean = gradient - (gradient - mean) * rest; });
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
