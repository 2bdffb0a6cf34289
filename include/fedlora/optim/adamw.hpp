// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), with the defaults and the order of operations of
// torch.optim.AdamW.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "fedlora/backend/optimizer_step.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

namespace detail {

/// out ← √in. Square roots are rounded correctly by every instruction, so that all forms give the same bits; a plain
/// loop over std::sqrt is not vectorised unless a user's flags say that errno does not matter.
template <class T>
void square_roots(const T* in, T* out, std::size_t size) {
  std::size_t i = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    for (; i + 16 <= size; i += 16) _mm512_storeu_ps(out + i, _mm512_sqrt_ps(_mm512_loadu_ps(in + i)));
  else
    for (; i + 8 <= size; i += 8) _mm512_storeu_pd(out + i, _mm512_sqrt_pd(_mm512_loadu_pd(in + i)));
#elif defined(__AVX__)
  if constexpr (std::is_same_v<T, float>)
    for (; i + 8 <= size; i += 8) _mm256_storeu_ps(out + i, _mm256_sqrt_ps(_mm256_loadu_ps(in + i)));
  else
    for (; i + 4 <= size; i += 4) _mm256_storeu_pd(out + i, _mm256_sqrt_pd(_mm256_loadu_pd(in + i)));
#elif defined(__SSE2__)
  if constexpr (std::is_same_v<T, float>)
    for (; i + 4 <= size; i += 4) _mm_storeu_ps(out + i, _mm_sqrt_ps(_mm_loadu_ps(in + i)));
  else
    for (; i + 2 <= size; i += 2) _mm_storeu_pd(out + i, _mm_sqrt_pd(_mm_loadu_pd(in + i)));
#endif
  for (; i < size; ++i) out[i] = std::sqrt(in[i]);
}

}  // namespace detail

/// Adam with decoupled weight decay. At step t, with gradient g:
///
///   w ← w (1 − lr·λ);  m ← m + (1 − β₁)(g − m);  v ← β₂ v + (1 − β₂) g²;
///   w ← w − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε).
struct AdamW {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;

  /// First and second moments, empty before the first step.
  template <class T>
  struct State {
    Index steps = 0;
    std::vector<T> exp_avg;
    std::vector<T> exp_avg_sq;

    template <class F>
    void for_each(F&& f) {
      f("exp_avg", exp_avg);
      f("exp_avg_sq", exp_avg_sq);
    }
    friend bool operator==(const State&, const State&) = default;
  };

  /// ConfigError for values torch refuses, too.
  void check() const {
    const auto refuse = [](const char* field, const char* expected, double got) {
      fail<ConfigError>(std::string("AdamW, ") + field, expected, std::to_string(got));
    };
    if (!(lr >= 0) || !std::isfinite(lr)) refuse("lr", "a number of at least 0", lr);
    if (!(beta1 >= 0 && beta1 < 1)) refuse("beta1", "a number in [0, 1)", beta1);
    if (!(beta2 >= 0 && beta2 < 1)) refuse("beta2", "a number in [0, 1)", beta2);
    if (!(eps >= 0) || !std::isfinite(eps)) refuse("eps", "a number of at least 0", eps);
    if (!(weight_decay >= 0) || !std::isfinite(weight_decay))
      refuse("weight_decay", "a number of at least 0", weight_decay);
  }

  /// A step for backends that take it in one pass.
  AdamWStep fused(double learning_rate) const { return {learning_rate, beta1, beta2, eps, weight_decay}; }

  /// One step in place. ShapeError when the three lengths differ.
  template <class T>
  void step(State<T>& state, std::type_identity_t<std::span<T>> parameters,
            std::type_identity_t<std::span<const T>> gradient, double learning_rate) const {
    const std::size_t size = parameters.size();
    if (state.steps == 0) {
      state.exp_avg.assign(size, T(0));
      state.exp_avg_sq.assign(size, T(0));
    }
    if (gradient.size() != size || state.exp_avg.size() != size || state.exp_avg_sq.size() != size)
      fail<ShapeError>("AdamW::step", "gradient and moments of " + std::to_string(size) + " values",
                       std::to_string(gradient.size()) + " and " + std::to_string(state.exp_avg.size()) + ", " +
                           std::to_string(state.exp_avg_sq.size()));
    ++state.steps;
    const auto t = static_cast<double>(state.steps);
    // Scalars are rounded to T once, as torch's kernels do with Python numbers.
    const T decay = static_cast<T>(1.0 - learning_rate * weight_decay);
    const T blend = static_cast<T>(1.0 - beta1);
    const T keep = static_cast<T>(beta2);
    const T fresh = static_cast<T>(1.0 - beta2);
    const T step_size = static_cast<T>(-(learning_rate / (1.0 - std::pow(beta1, t))));
    const T correction = static_cast<T>(std::sqrt(1.0 - std::pow(beta2, t)));
    const T tiny = static_cast<T>(eps);

    T* const w = parameters.data();
    const T* const g = gradient.data();
    T* const m = state.exp_avg.data();
    T* const v = state.exp_avg_sq.data();
    // Blocks that stay in the first cache, and one kind of work per loop, so that each is vectorised.
    constexpr std::size_t block = 1024;
    T denominator[block];
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
      detail::square_roots(vb, denominator, count);
      for (std::size_t i = 0; i < count; ++i)
        wb[i] = wb[i] * decay + step_size * mb[i] / (denominator[i] / correction + tiny);
    }
  }
};

}  // namespace fedlora
