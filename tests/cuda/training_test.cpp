// SPDX-License-Identifier: Apache-2.0
// Local training on the CUDA backend, run on the host: clients whose parameters and moments stay on the device end where
// the CPU's do, with the same bits on any number of threads and by graphs or without.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../nn/tiny.hpp"
#include "errors.hpp"
#include "fedlora/backend/cuda.cuh"
#include "fedlora/fed/aggregate.hpp"
#include "fedlora/fed/train.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/optim/adamw.hpp"
#include "fedlora/optim/sgd.hpp"

namespace fedlora::tests {
namespace {

using cuda::FloatMath;

const LoraConfig everywhere{.rank = 3, .alpha = 5, .dropout = 0.25, .target_modules = {"all-linear"}};
const std::vector<std::vector<Index>> shards = {{0, 1, 2}, {3, 4, 5, 6}, {7}};

/// SGD that no backend knows: its steps are taken on the host.
struct OwnSgd : Sgd {
  double fused(double) const = delete;
};

Dataset texts() { return tiny_data({4, 2, 7, 2, 6, 3, 5, 2}); }

template <class B>
SequenceClassifier<Bert, B> classifier(const B& backend = B()) {
  return {tiny_base<Bert, B>(1, Json::object(), {}, backend), {}, everywhere};
}

/// Two rounds of a federation; the parameters at its end.
template <class Model, class Optim>
std::vector<double> federate(const Model& model, const Optim& optimizer, LocalPlan plan) {
  const auto clients = make_clients(model, texts(), shards, optimizer);
  auto global = model.initial_adapter(5);
  ClientStore<float> store;
  for (Index round = 1; round <= 2; ++round) {
    const auto cohort = sample_uniform(clients, {.fraction = 1.0, .seed = 11, .round = round});
    const auto updates = train(cohort, global, plan, {.store = &store});
    global = FedAvg{}(global, updates);
  }
  return {global.values().begin(), global.values().end()};
}

/// How far two runs ended apart, as a share of the way they went.
template <class Model>
double apart(const Model& model, const std::vector<double>& got, const std::vector<double>& expected) {
  const auto start = model.initial_adapter(5);
  double difference = 0, way = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    way += std::pow(expected[i] - static_cast<double>(start.values()[i]), 2);
  }
  return std::sqrt(difference / way);
}

const LocalPlan plain{.epochs = 2, .batch_size = 2, .threads = 1};

}  // namespace

TEST_CASE("clients trained on the device end where the CPU's do") {
  const auto expected = classifier<CpuBackend<float>>();
  const auto model = classifier<CudaBackend<float>>(CudaBackend<float>({.math = FloatMath::float32}));
  static_assert(detail::TrainsOnDevice<std::remove_cv_t<decltype(model)>, AdamW>);
  static_assert(!detail::TrainsOnDevice<std::remove_cv_t<decltype(model)>, OwnSgd>);
  const auto check = [&](const auto& optimizer, const LocalPlan& plan, double bound) {
    const auto there = federate(expected, optimizer, plan);
    CHECK(apart(model, federate(model, optimizer, plan), there) <= bound);
  };
  check(Sgd{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.01, .nesterov = true}, plain, 1e-4);
  check(AdamW{.lr = 1e-3}, plain, 1e-2);  // its first steps follow the sign of gradients that are nearly zero
  LocalPlan plan = plain;
  plan.accumulation = 2;
  plan.clip_norm = 0.5;
  plan.mu = 0.1;
  plan.keep_optimizer_state = true;
  check(Sgd{.lr = 0.1, .momentum = 0.9}, plan, 1e-4);
  OwnSgd own;
  own.lr = 0.1;
  check(own, plan, 1e-4);
}

TEST_CASE("the same bits on any number of threads, as graphs or not") {
  LocalPlan plan = plain;
  plan.keep_optimizer_state = true;
  const auto run = [&](bool graphs, int threads) {
    CudaOptions options;
    options.graphs = graphs;
    plan.threads = threads;
    return federate(classifier<CudaBackend<Bf16>>(CudaBackend<Bf16>(options)), AdamW{.lr = 1e-3}, plan);
  };
  const auto reference = run(true, 1);
  CHECK(run(true, 2) == reference);
  CHECK(run(false, 3) == reference);
}

TEST_CASE("training that diverges names round, client and step") {
  const auto model = classifier<CudaBackend<float>>();
  check_error<DivergenceError>([&] { federate(model, Sgd{.lr = 1e30}, plain); }, {"round 1, client ", "step ", "finite"});
}

TEST_CASE("steps whose gradient overflows 16 bits are skipped and counted") {
  const auto model = classifier<CudaBackend<Half>>();
  const auto clients = make_clients(model, texts(), shards, AdamW{.lr = 1e-3});
  auto start = model.initial_adapter(5);
  for (const SavedTensor& tensor : model.layout()->saved)
    for (float& value : start.values().subspan(static_cast<std::size_t>(tensor.offset),
                                               static_cast<std::size_t>(tensor.size())))
      value *= 40;  // the gradient of what the head reads is that large; times the first loss scale it is infinite
  const auto cohort = sample_uniform(clients, {.fraction = 1.0, .seed = 11, .round = 1});
  const auto updates = train(cohort, start, {.epochs = 6, .batch_size = 3, .threads = 1});
  for (const auto& update : updates) {
    CHECK(update.metrics.skipped_steps >= 1);
    CHECK(update.metrics.skipped_steps < update.metrics.steps);  // the loss scale falls until steps are taken
    CHECK(std::isfinite(update.metrics.train_loss));
    CHECK(!std::ranges::equal(update.adapter.values(), start.values()));
  }
}

TEST_CASE("memory that runs out says what was asked for and what is held") {
  check_error<CudaError>([] { classifier<CudaBackend<float>>(CudaBackend<float>({.memory_limit = 3000})); },
                         {"cuda memory", "out of memory: held", "in use", "peak"});
}

}  // namespace fedlora::tests
