// SPDX-License-Identifier: Apache-2.0
// Local training on the CUDA backend, run on the host: clients whose parameters and moments stay on the device end
// where the CPU's do, with the same bits on any number of threads and by graphs or without.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
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
const std::vector<std::vector<Index>> shards = {{0, 1, 2}, {3, 4}, {5}};

/// SGD that no backend knows: its steps are taken on the host.
struct OwnSgd : Sgd {
  double fused(double) const = delete;
};

/// Six texts with what is predicted of each.
Dataset texts(ProblemType type = ProblemType::single_label) {
  Dataset data = tiny_data({4, 2, 7, 2, 6, 3});
  if (type == ProblemType::single_label) return data;
  data.labels.clear();
  if (type == ProblemType::regression)
    for (int i = 0; i < 18; ++i) data.targets.push_back(0.5 * (i % 7) - 1);
  else
    data.labels = {0, 2, 1, 0, 1, 2, 2}, data.label_offsets = {0, 2, 2, 3, 6, 6, 7};
  return data;
}

/// What a step is made of shows in one layer; kernels take their time on the host.
template <class B>
SequenceClassifier<Bert, B> classifier(const B& backend = B(), Index layers = 1,
                                       ProblemType type = ProblemType::single_label) {
  return {tiny_base<Bert, B>(1, {{"num_hidden_layers", layers}}, {}, backend), {.problem_type = type}, everywhere};
}

/// Two rounds of a federation; the parameters at its end, and each client's training loss.
template <class Model, class Optim>
std::vector<double> federate(const Model& model, const Optim& optimizer, LocalPlan plan,
                             std::vector<double>* losses = nullptr) {
  const auto clients = make_clients(model, texts(model.problem_type()), shards, optimizer);
  auto global = model.initial_adapter(5);
  ClientStore<float> store;
  for (Index round = 1; round <= 2; ++round) {
    const auto cohort = sample_uniform(clients, {.fraction = 1.0, .seed = 11, .round = round});
    const auto updates = train(cohort, global, plan, {.store = &store});
    global = FedAvg{}(global, updates);
    for (const auto& update : updates)
      if (losses != nullptr) losses->push_back(update.metrics.train_loss);
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

const LocalPlan plain{.epochs = 1, .batch_size = 2, .threads = 1};

}  // namespace

/// Both from one start: parameters at the end, as a share of the way, and every loss.
template <class Model, class Optim>
void check_against_cpu(const Model& model, const Optim& optimizer, const LocalPlan& plan, double bound,
                       double loss_bound) {
  std::vector<double> losses, expected_losses;
  const auto layers = model.base().config().layers;
  const auto there =
      federate(classifier(CpuBackend<float>(), layers, model.problem_type()), optimizer, plan, &expected_losses);
  const auto here = federate(model, optimizer, plan, &losses);
  CHECK(apart(model, here, there) <= bound);
  REQUIRE(losses.size() == 6);
  for (std::size_t i = 0; i < losses.size(); ++i)
    CHECK(std::abs(losses[i] - expected_losses[i]) <= loss_bound * expected_losses[i]);
}

TEST_CASE("clients trained on the device end where the CPU's do") {
  const CudaBackend<float> backend({.math = FloatMath::float32});
  const auto model = classifier(backend);
  static_assert(detail::TrainsOnDevice<std::remove_cv_t<decltype(model)>, AdamW>);
  static_assert(!detail::TrainsOnDevice<std::remove_cv_t<decltype(model)>, OwnSgd>);
  const auto check = [&](const auto& optimizer, const LocalPlan& plan, double bound) {
    check_against_cpu(model, optimizer, plan, bound, 1e-4);
  };
  check_against_cpu(classifier(backend, 2), Sgd{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.01, .nesterov = true},
                    plain, 1e-4, 1e-4);
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

TEST_CASE_TEMPLATE("the same in 16 bits, within their rounding", T, Bf16, Half) {
  const auto model = classifier<CudaBackend<T>>();
  const double bound = std::is_same_v<T, Bf16> ? 0.1 : 0.02;
  LocalPlan plan = plain;
  check_against_cpu(model, Sgd{.lr = 0.1, .momentum = 0.9}, plan, bound, bound);
  plan.accumulation = 2;
  plan.mu = 0.1;
  check_against_cpu(model, Sgd{.lr = 0.1}, plan, bound, bound);
}

TEST_CASE_TEMPLATE("numbers and sets of labels are trained on the device as on the CPU", T, float, Bf16, Half) {
  for (const auto type : {ProblemType::regression, ProblemType::multi_label}) {
    CAPTURE(problem_type_name(type));
    const auto model = classifier(CudaBackend<T>({.math = FloatMath::float32}), 1, type);
    const double bound = std::is_same_v<T, float> ? 1e-4 : std::is_same_v<T, Bf16> ? 0.1 : 0.02;
    check_against_cpu(model, Sgd{.lr = 0.1, .momentum = 0.9}, plain, bound, bound);
    const Dataset data = texts(type);
    const auto adapter = model.initial_adapter(5);
    const auto here = model.evaluate(adapter, data, 1);
    const auto there = classifier(CpuBackend<float>(), 1, type).evaluate(adapter, data, 1);
    CHECK(here.loss == doctest::Approx(there.loss).epsilon(bound));
    CHECK(here.label_counts.size() == there.label_counts.size());
  }
}

TEST_CASE("the same bits on any number of threads, as graphs or not") {
  LocalPlan plan = plain;
  plan.keep_optimizer_state = true;
  const auto run = [&](bool graphs, int threads, std::optional<cuda::Stream> stream = {}) {
    CudaOptions options;
    options.graphs = graphs;
    options.stream = stream;
    plan.threads = threads;
    const CudaBackend<Bf16> backend(options);
    auto result = federate(classifier(backend), AdamW{.lr = 1e-3}, plan);
    if (!stream) CHECK(backend.counts().runners_made <= threads);  // in both rounds
    CHECK(backend.counts().captures_failed == 0);
    return result;
  };
  const auto reference = run(true, 1);
  CHECK(run(true, 2) == reference);
  CHECK(run(false, 3) == reference);
  const cuda::OwnedStream callers;
  CHECK(run(true, 3, callers.get()) == reference);
  CHECK(run(true, 3, cuda::Stream{}) == reference);  // CUDA's default stream, of which no graph can be made
}

TEST_CASE("a caller's stream has one runner at a time") {
  const CudaBackend<float> own(CudaOptions{.stream = cuda::Stream{}});
  CHECK(runner_threads(own, 7) == 1);
  CHECK(runner_threads(CudaBackend<float>(), 7) == 7);
  CHECK(detail::cohort_threads(Cohort<Client<SequenceClassifier<Bert, CudaBackend<float>>, Sgd>>{}, 7) == 7);
  const auto model = classifier(own);
  const auto clients = make_clients(model, texts(), shards, Sgd{.lr = 0.1});
  CHECK(detail::cohort_threads(sample_uniform(clients, {.fraction = 1.0, .seed = 1, .round = 1}), 7) == 1);
}

TEST_CASE("a step for which memory must grow is not captured, and counts once") {
  const CudaBackend<float> backend;
  cuda::Runner<float> run(backend);
  cuda::Trainee<float> trainee(run);
  const std::vector<float> start = {1, 2, 3};
  std::vector<float> velocity;
  const std::vector<std::vector<float>*> moments = {&velocity};
  trainee.begin(start, {moments.begin(), moments.end()}, 0, 2, 0.0, 0.0);
  int calls = 0;
  for (Index step = 0; step < 2; ++step) {
    run.reset();
    trainee.run(step, 5, 1, [&] {
      ++calls;
      cuda::fill_zero<float>(run.matrix(1 + 400 * step, 1000), run.stream());
      trainee.update(Sgd{.lr = 0.1, .momentum = 0.5, .weight_decay = 1.0}.fused(0.1));
    });
  }
  std::vector<float> end(3);
  Index steps_done = 0;
  const auto outcomes = trainee.finish(end, moments, steps_done);
  CHECK(calls == 3);
  CHECK(backend.counts().captures_refused == 1);
  CHECK(backend.counts().captures_failed == 0);
  CHECK(steps_done == 2);
  CHECK(outcomes[1].gradient_finite);
  // v = w, w -= 0.1 v; v = 0.5 v + w, w -= 0.1 v
  for (std::size_t i = 0; i < 3; ++i) CHECK(end[i] == doctest::Approx(start[i] * (0.9 - 0.14)));
}

TEST_CASE("moments that no step has made are zero") {
  const CudaBackend<Half> backend;
  cuda::Runner<Half> run(backend);
  cuda::Trainee<Half> trainee(run);
  std::vector<float> values = {1, 2, 3}, first, second;
  const std::vector<std::vector<float>*> moments = {&first, &second};
  trainee.begin(values, {moments.begin(), moments.end()}, 0, 1, 0.0, 0.0);
  Index steps_done = 7;
  trainee.finish(values, moments, steps_done);
  CHECK(steps_done == 0);
  CHECK(first == std::vector<float>(3, 0.0f));
  CHECK(second == first);
}

TEST_CASE("a step that is skipped is told of that step, and of no other") {
  const CudaBackend<Half> backend;
  cuda::Runner<Half> run(backend);
  const cuda::Stream stream = run.stream();
  cuda::DeviceBuffer gradients(run.context().memory, 2 * 3 * sizeof(float), "two gradients", stream);
  const std::vector<float> given = {1, 2, 3, 1, std::numeric_limits<float>::infinity(), 3};
  cuda::upload<float>(given, gradients.as<float>(), stream);
  cuda::Trainee<Half> trainee(run);
  std::vector<float> values = {1, 2, 3}, velocity;
  const std::vector<std::vector<float>*> moments = {&velocity};
  constexpr Index steps = 4, skipped = 2;
  trainee.begin(values, {moments.begin(), moments.end()}, 0, steps, 0.0, 0.0);
  for (Index step = 0; step < steps; ++step) {
    run.reset();
    trainee.run(step, 1, 1, [&] {
      const MatrixView<const float> from{gradients.as<float>() + (step == skipped ? 3 : 0), 1, 3, 3};
      cuda::copy<float>(from, {trainee.gradient().data(), 1, 3, 3}, stream);
      trainee.update(Sgd{.lr = 0.1, .momentum = 0.5}.fused(0.1));
    });
  }
  Index steps_done = 0;
  const auto outcomes = trainee.finish(values, moments, steps_done);
  CHECK(steps_done == steps - 1);
  const double scale = cuda::default_loss_scaling<Half>.initial;
  REQUIRE(outcomes.size() == static_cast<std::size_t>(steps));
  for (Index step = 0; step < steps; ++step) {
    CAPTURE(step);
    const auto& outcome = outcomes[static_cast<std::size_t>(step)];
    CHECK(outcome.gradient_finite == (step != skipped));
    CHECK(outcome.loss_scale == (step < skipped ? scale : scale / 2));
  }
}

TEST_CASE("the first step of another model is not captured: memory has not grown for it yet") {
  const CudaBackend<float> backend;
  cuda::Runner<float> run(backend);
  cuda::Trainee<float> trainee(run);
  const auto train_steps = [&](std::size_t size) {
    std::vector<float> values(size, 1.0f), velocity;
    const std::vector<std::vector<float>*> moments = {&velocity};
    trainee.begin(values, {moments.begin(), moments.end()}, 0, 3, 0.0, 0.0);
    for (Index step = 0; step < 3; ++step) {
      run.reset();
      trainee.run(step, 1, 1, [&] { trainee.update(Sgd{.lr = 0.1, .momentum = 0.5}.fused(0.1)); });
    }
    Index steps_done = 0;
    trainee.finish(values, moments, steps_done);
    return backend.counts().graphs_launched;
  };
  const auto first = train_steps(3);
  CHECK(first == 2);
  CHECK(train_steps(3) == first + 3);
  CHECK(train_steps(4) == first + 3 + 2);
}

TEST_CASE("training that diverges names round, client and step") {
  const auto model = classifier<CudaBackend<float>>();
  check_error<DivergenceError>([&] { federate(model, Sgd{.lr = 1e30}, plain); },
                               {"round 1, client ", "step ", "finite"});
}

TEST_CASE("steps whose gradient overflows 16 bits are skipped and counted") {
  const auto model = classifier<CudaBackend<Half>>();
  const auto clients = make_clients(model, texts(), {{0, 1, 2}, {3}}, AdamW{.lr = 1e-3});
  auto start = model.initial_adapter(5);
  for (const SavedTensor& tensor : model.layout()->saved)
    for (float& value :
         start.values().subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.size())))
      value *= 640;  // the gradient of what the head reads is that large; times the first loss scale it is infinite
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
