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

#include "fedlora/backend/cpu/loops.hpp"
#include "fedlora/backend/optimizer_step.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

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

  /// One step in place, by the loops of a CPU level. ShapeError when the three lengths differ.
  template <cpu::LoopLevel Level = cpu::OwnLevel, class T>
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
    const AdamWFactors<T> factors{.decay = static_cast<T>(1.0 - learning_rate * weight_decay),
                                  .blend = static_cast<T>(1.0 - beta1),
                                  .keep = static_cast<T>(beta2),
                                  .fresh = static_cast<T>(1.0 - beta2),
                                  .step_size = static_cast<T>(-(learning_rate / (1.0 - std::pow(beta1, t)))),
                                  .correction = static_cast<T>(std::sqrt(1.0 - std::pow(beta2, t))),
                                  .eps = static_cast<T>(eps)};
    Level::template loops<T>().adamw_step(factors, size, parameters.data(), gradient.data(), state.exp_avg.data(),
                                          state.exp_avg_sq.data());
  }
};

}  // namespace fedlora
