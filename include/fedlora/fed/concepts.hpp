// SPDX-License-Identifier: Apache-2.0
// What federated learning asks of a model and of an aggregator. Anything that satisfies these can take part.
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fedlora/core/shape.hpp"
#include "fedlora/core/step.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/fed/update.hpp"
#include "fedlora/lora/adapter.hpp"

namespace fedlora {

/// A trainable model over a frozen base: const, shared by all workers, each of which brings its own workspace.
///
/// `accumulate_gradient(workspace, data, examples, parameters, gradient, weight, address)` adds the gradient of
/// weight · Σ loss to `gradient` and returns Σ loss; it is deterministic and runs on the calling thread.
/// `loss_count(data, examples)` is the number of losses in that sum.
template <class M>
concept FederatedModel = requires {
  typename M::Scalar;
  typename M::Backend;
  typename M::Workspace;
}
&&std::floating_point<typename M::Scalar>&& requires(const M& model, typename M::Workspace& workspace,
                                                     const Dataset& data, std::span<const Index> examples,
                                                     std::span<const typename M::Scalar> parameters,
                                                     std::span<typename M::Scalar> gradient, double weight,
                                                     const StepAddress& address) {
  { model.layout() } -> std::convertible_to<std::shared_ptr<const AdapterLayout>>;
  requires std::constructible_from<typename M::Workspace, decltype(model.backend())>;
  { model.loss_count(data, examples) } -> std::convertible_to<Index>;
  {
    model.accumulate_gradient(workspace, data, examples, parameters, gradient, weight, address)
    } -> std::same_as<double>;
};

/// An aggregator that is a weighted sum, added up client by client in ascending order: it composes with streaming, a
/// reduction between machines, and secure aggregation, none of which ever sees two updates at once.
template <class A, class T>
concept LinearAggregator = requires(const A& aggregator, const Adapter<T>& global, const Update<T>& update,
                                    typename A::template Sum<T>& sum) {
  { aggregator.weight(update) } -> std::same_as<double>;
  { aggregator.begin(global) } -> std::same_as<typename A::template Sum<T>>;
  aggregator.add(sum, update);
  { aggregator.finish(sum) } -> std::same_as<Adapter<T>>;
};

/// An aggregator that needs all updates in hand: stacking, factor-space SVD, robust rules. Any function of (global
/// adapter, updates) qualifies, a lambda too. One that is a template over T writes its second parameter as
/// `std::type_identity_t<std::span<const Update<T>>>`: `train` returns a vector, from which a span's T is not deduced.
/// Every linear aggregator of this library can also be called this way; the converse is not so, and an algorithm that
/// asks for `LinearAggregator` does not compile with a gather.
template <class A, class T>
concept GatherAggregator = requires(const A& aggregator, const Adapter<T>& global, std::span<const Update<T>> updates) {
  { aggregator(global, updates) } -> std::convertible_to<Adapter<T>>;
};

}  // namespace fedlora
