// SPDX-License-Identifier: Apache-2.0
// Stochastic gradient descent with momentum, as torch.optim.SGD has it.
#pragma once

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

/// With gradient g: g ← g + λ w;  u ← g at the first step, else μ u + (1 − d) g;  w ← w − lr · u, or with Nesterov's
/// look-ahead (Sutskever et al. 2013) w ← w − lr · (g + μ u). The weight decay λ is coupled, unlike AdamW's.
struct Sgd {
  double lr = 1e-3;
  double momentum = 0.0;
  double dampening = 0.0;
  double weight_decay = 0.0;
  bool nesterov = false;

  /// The momentum buffer, empty while there is no momentum or no step yet.
  template <class T>
  struct State {
    Index steps = 0;
    std::vector<T> momentum_buffer;

    template <class F>
    void for_each(F&& f) {
      f("momentum_buffer", momentum_buffer);
    }
    friend bool operator==(const State&, const State&) = default;
  };

  void check() const {
    const auto refuse = [](const char* field, const char* expected, double got) {
      fail<ConfigError>(std::string("Sgd, ") + field, expected, std::to_string(got));
    };
    if (!(lr >= 0) || !std::isfinite(lr)) refuse("lr", "a number of at least 0", lr);
    if (!(momentum >= 0) || !std::isfinite(momentum)) refuse("momentum", "a number of at least 0", momentum);
    if (!std::isfinite(dampening)) refuse("dampening", "a finite number", dampening);
    if (!(weight_decay >= 0) || !std::isfinite(weight_decay))
      refuse("weight_decay", "a number of at least 0", weight_decay);
    if (nesterov && (momentum <= 0 || dampening != 0))
      fail<ConfigError>("Sgd, nesterov", "a positive momentum and no dampening",
                        "momentum " + std::to_string(momentum) + ", dampening " + std::to_string(dampening));
  }

  /// A step for backends that take it in one pass.
  SgdStep fused(double learning_rate) const { return {learning_rate, momentum, dampening, weight_decay, nesterov}; }

  /// One step in place, by the loops of a CPU level. ShapeError when the lengths differ.
  template <cpu::LoopLevel Level = cpu::OwnLevel, class T>
  void step(State<T>& state, std::type_identity_t<std::span<T>> parameters,
            std::type_identity_t<std::span<const T>> gradient, double learning_rate) const {
    const std::size_t size = parameters.size();
    const bool first = state.momentum_buffer.empty();
    if (gradient.size() != size || (!first && state.momentum_buffer.size() != size))
      fail<ShapeError>("Sgd::step", "gradient and momentum of " + std::to_string(size) + " values",
                       std::to_string(gradient.size()) + " and " + std::to_string(state.momentum_buffer.size()));
    ++state.steps;
    const SgdFactors<T> factors{.rate = static_cast<T>(-learning_rate),
                                .decay = static_cast<T>(weight_decay),
                                .mu = static_cast<T>(momentum),
                                .fresh = static_cast<T>(1.0 - dampening),
                                .first = first,
                                .nesterov = nesterov};
    if (first && momentum != 0) state.momentum_buffer.resize(size);
    Level::template loops<T>().sgd_step(factors, size, parameters.data(), gradient.data(),
                                        momentum == 0 ? nullptr : state.momentum_buffer.data());
  }
};

}  // namespace fedlora
