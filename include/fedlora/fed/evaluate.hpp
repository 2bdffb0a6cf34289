// SPDX-License-Identifier: Apache-2.0
// Evaluation client by client: how one adapter, or each client's own, does on each client's own examples.
#pragma once

#include <utility>
#include <vector>

#include "fedlora/core/parallel.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/fed/sampling.hpp"
#include "fedlora/fed/train.hpp"

namespace fedlora {

/// `model.evaluate` of the adapter `broadcast(client)` on each client's examples, in the cohort's order; clients in
/// parallel.
template <class C, BroadcastFunction<typename C::Scalar> Broadcasts>
auto evaluate_clients(const Cohort<C>& cohort, const Broadcasts& broadcast, int threads = 0) {
  using Result = decltype(cohort.clients[0]->model->evaluate(broadcast(Index{0}), Dataset{}, 1));
  std::vector<Result> results(cohort.clients.size());
  parallel_for(cohort.clients.size(), detail::cohort_threads(cohort, threads), [&](int, std::size_t k) {
    const C& client = *cohort.clients[k];
    try {
      [[maybe_unused]] const detail::WorkerScope<typename C::ModelType::Backend> scope{};
      results[k] = client.model->evaluate(broadcast(client.id), subset(*client.data, client.examples), 1);
    } catch (...) {
      detail::rethrow_naming(cohort.round, client.id);
    }
  });
  return results;
}

/// The same for one adapter.
template <class C>
auto evaluate_clients(const Cohort<C>& cohort, const Adapter<typename C::Scalar>& adapter, int threads = 0) {
  return evaluate_clients(
      cohort, [&](Index) -> const Adapter<typename C::Scalar>& { return adapter; }, threads);
}

}  // namespace fedlora
