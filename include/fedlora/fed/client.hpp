// SPDX-License-Identifier: Apache-2.0
// A client: an identity, private examples, an optimizer. Idle, it is a few words and its list of example numbers.
#pragma once

#include <concepts>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/fed/concepts.hpp"
#include "fedlora/optim/concepts.hpp"

namespace fedlora {

/// One participant. It refers to a model that outlives it, shares the tokenised data with all others and owns nothing
/// else; adapters, moments and activations exist only while it trains. Nothing here has a serialiser: examples stay
/// where they are.
template <FederatedModel Model, Optimizer<typename Model::Scalar> Optim>
struct Client {
  using ModelType = Model;
  using OptimizerType = Optim;
  using Scalar = typename Model::Scalar;

  Index id = 0;
  const Model* model = nullptr;
  std::shared_ptr<const Dataset> data;
  std::vector<Index> examples;  ///< numbers of this client's examples in `data`
  Optim optimizer;

  Index num_examples() const { return static_cast<Index>(examples.size()); }
};

/// Clients 0, 1, … of a partition (`partition[k]` are the example numbers of client k), all with the same optimizer.
/// \throws ConfigError naming a client without examples or an optimizer's field, ShapeError for an example that the
/// dataset does not have.
template <FederatedModel Model, Optimizer<typename Model::Scalar> Optim>
std::vector<Client<Model, Optim>> make_clients(const Model& model, std::shared_ptr<const Dataset> data,
                                               std::vector<std::vector<Index>> partition, const Optim& optimizer) {
  if (data == nullptr) fail<ConfigError>("make_clients", "a dataset", "none");
  if (partition.empty()) fail<ConfigError>("make_clients", "at least one client", "an empty partition");
  optimizer.check();
  std::vector<Client<Model, Optim>> clients;
  clients.reserve(partition.size());
  for (auto& examples : partition) {
    const auto id = static_cast<Index>(clients.size());
    if (examples.empty())
      fail<ConfigError>("make_clients, client " + std::to_string(id), "at least one example", "none");
    for (const Index example : examples)
      if (example < 0 || example >= data->size())
        fail<ShapeError>("make_clients, client " + std::to_string(id),
                         "examples in [0, " + std::to_string(data->size()) + ")", std::to_string(example));
    examples.shrink_to_fit();
    clients.push_back({id, &model, data, std::move(examples), optimizer});
  }
  return clients;
}

/// The same for a dataset by value.
template <FederatedModel Model, Optimizer<typename Model::Scalar> Optim>
std::vector<Client<Model, Optim>> make_clients(const Model& model, Dataset data,
                                               std::vector<std::vector<Index>> partition, const Optim& optimizer) {
  return make_clients(model, std::make_shared<const Dataset>(std::move(data)), std::move(partition), optimizer);
}

/// The same for texts that the model can tokenise.
template <FederatedModel Model, class Texts, Optimizer<typename Model::Scalar> Optim>
requires requires(const Model& model, const Texts& texts) {
  { model.encode(texts) } -> std::same_as<Dataset>;
}
std::vector<Client<Model, Optim>> make_clients(const Model& model, const Texts& texts,
                                               std::vector<std::vector<Index>> partition, const Optim& optimizer) {
  return make_clients(model, model.encode(texts), std::move(partition), optimizer);
}

/// A model that dies at the end of the statement cannot be referred to.
template <FederatedModel Model, class Data, class Optim>
std::vector<Client<Model, Optim>> make_clients(const Model&& model, Data&&, std::vector<std::vector<Index>>,
                                               const Optim&) = delete;

}  // namespace fedlora
