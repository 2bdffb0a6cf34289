// SPDX-License-Identifier: Apache-2.0
// Aggregation: from the global adapter and a round's updates to the next global adapter.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/fed/concepts.hpp"
#include "fedlora/fed/update.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/optim/clip.hpp"

namespace fedlora {

/// Which weight a client's update has in the mean.
enum class ClientWeight {
  examples,  ///< its number of examples
  uniform,   ///< 1
};

/// Federated averaging (McMahan et al. 2017, arXiv 1602.05629) of the adapter's tensors, FedIT (Zhang et al. 2023,
/// arXiv 2305.05644): w ← Σ_k p_k w_k with p_k = n_k / Σ n, A and B and head each by themselves.
///
/// Sums are kept in double and added in ascending order of client, so that the result does not depend on the order in
/// which updates arrived. With FedProx it is the same rule; the proximal term is the clients' (`LocalPlan::mu`).
///
/// Final, because nothing here is virtual: a `weight` of a derived class would not be asked. For other weights write an
/// aggregator that has a FedAvg and hands it updates with another `num_examples`, or one of your own.
struct FedAvg final {
  ClientWeight weighting = ClientWeight::examples;

  /// A sum in progress.
  template <class T>
  struct Sum {
    Adapter<T> global;
    std::vector<double> values;  ///< Σ weight · adapter
    double weight = 0;
    Index last_client = -1;
    Index clients = 0;
  };

  template <class T>
  double weight(const Update<T>& update) const {
    return weighting == ClientWeight::uniform ? 1.0 : static_cast<double>(update.num_examples);
  }

  /// An empty sum; `global` gives the layout, and is the result if nothing is added.
  template <class T>
  Sum<T> begin(const Adapter<T>& global) const {
    return {global, std::vector<double>(global.values().size(), 0.0), 0.0, -1, 0};
  }

  /// Adds one update. Clients come in ascending order: ConfigError otherwise. ShapeError for another layout,
  /// DivergenceError for numbers that are not finite, ConfigError for a weight that is not positive; the sum is
  /// unchanged then.
  template <class T>
  void add(Sum<T>& sum, const Update<T>& update) const {
    const std::string where =
        "FedAvg, round " + std::to_string(update.round) + ", client " + std::to_string(update.client);
    if (update.client <= sum.last_client)
      fail<ConfigError>(where, "clients in ascending order, each once",
                        "it after client " + std::to_string(sum.last_client));
    if (!update.adapter.shared_layout() || (update.adapter.shared_layout() != sum.global.shared_layout() &&
                                            !same_places(update.adapter.layout(), sum.global.layout())))
      fail<ShapeError>(where, "an adapter with the global adapter's layout", "another one");
    const double weight_of_client = weight(update);
    if (!(weight_of_client > 0)) fail<ConfigError>(where, "a positive weight", std::to_string(weight_of_client));
    const std::span<const T> values = update.adapter.values();
    if (!all_finite(values)) fail<DivergenceError>(where, "finite numbers in the update", "some that are not");
    for (std::size_t i = 0; i < values.size(); ++i) sum.values[i] += weight_of_client * static_cast<double>(values[i]);
    sum.weight += weight_of_client;
    sum.last_client = update.client;
    ++sum.clients;
  }

  /// The weighted mean; the global adapter when nothing was added.
  template <class T>
  Adapter<T> finish(const Sum<T>& sum) const {
    if (sum.clients == 0) return sum.global;
    Adapter<T> mean(sum.global.shared_layout());
    const std::span<T> out = mean.values();
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(sum.values[i] / sum.weight);
    return mean;
  }

  /// The same in one call, over updates in any order.
  template <class T>
  Adapter<T> operator()(const Adapter<T>& global, std::type_identity_t<std::span<const Update<T>>> updates) const {
    std::vector<const Update<T>*> order;
    order.reserve(updates.size());
    for (const Update<T>& update : updates) order.push_back(&update);
    std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->client < b->client; });
    Sum<T> sum = begin(global);
    for (const Update<T>* update : order) add(sum, *update);
    return finish(sum);
  }
};

static_assert(LinearAggregator<FedAvg, float> && GatherAggregator<FedAvg, float>);

}  // namespace fedlora
