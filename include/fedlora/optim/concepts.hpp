// SPDX-License-Identifier: Apache-2.0
// What training asks of an optimizer: hyper-parameters as a value, and a state that is a value too.
#pragma once

#include <concepts>
#include <span>
#include <string_view>
#include <vector>

#include "fedlora/core/shape.hpp"

namespace fedlora {

namespace detail {

/// A stand-in for anything that visits the named tensors of an optimizer's state.
template <class T>
struct AnyTensorVisitor {
  void operator()(std::string_view, std::vector<T>&) const {}
};

}  // namespace detail

/// An optimizer's memory of past gradients: a count of steps and named flat tensors, each empty (not used yet) or as
/// long as the parameters. `for_each(f)` calls `f(name, tensor)`; names are torch's, so that a saved state can be read
/// by others.
template <class S, class T>
concept OptimizerState = std::default_initializable<S> && std::copyable<S> && requires(S& state) {
  { state.steps } -> std::same_as<Index&>;
  state.for_each(detail::AnyTensorVisitor<T>{});
};

/// An optimizer over flat spans. `lr` is its learning rate before any schedule; `check()` throws ConfigError for
/// hyper-parameters that make no sense; `step` updates `parameters` in place with the learning rate it is given.
template <class O, class T>
concept Optimizer = std::copyable<O> && OptimizerState<typename O::template State<T>, T> &&
    requires(const O& optimizer, typename O::template State<T>& state, std::span<T> parameters,
             std::span<const T> gradient, double lr) {
  { optimizer.lr } -> std::convertible_to<double>;
  optimizer.check();
  optimizer.step(state, parameters, gradient, lr);
};

}  // namespace fedlora
