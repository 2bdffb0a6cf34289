// SPDX-License-Identifier: Apache-2.0
// One client's local training, from what it received to its update: step by step with the gradient in the host's memory,
// or where the backend keeps parameters and moments itself.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/parallel.hpp"
#include "fedlora/core/step.hpp"
#include "fedlora/fed/client.hpp"
#include "fedlora/fed/plan.hpp"
#include "fedlora/fed/update.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/optim/clip.hpp"

namespace fedlora {

namespace detail {

/// Limits a backend's own threading on this worker, where the backend has such a thing.
template <class Backend>
struct WorkerScope {};
template <class Backend>
requires requires { typename Backend::ThreadScope; }
struct WorkerScope<Backend> {
  typename Backend::ThreadScope scope;
};

/// How many threads may work for a cohort at the same time (`runner_threads`).
template <class C>
int cohort_threads(const Cohort<C>& cohort, int threads) {
  int workers = worker_count(threads);
  if constexpr (requires(const C& client) { client.model->base().backend; })
    for (const C* client : cohort.clients) workers = runner_threads(client->model->base().backend, workers);
  return workers;
}

inline std::string place_of(Index round, Index client) {
  return "round " + std::to_string(round) + ", client " + std::to_string(client);
}

/// A backend that trains where its parameters are: its runner's `Trainee` holds a client's adapter, and takes the steps
/// of this optimizer.
template <class Model, class Optim>
concept TrainsOnDevice = requires(typename Model::Backend::Runner::Trainee& trainee, const Optim& optimizer) {
  trainee.update(optimizer.fused(0.1));
};

/// What a worker keeps beside a workspace for such a backend.
template <class Backend>
struct TraineeOf {
  struct type {};
};
template <class Backend>
requires requires { typename Backend::Runner::Trainee; }
struct TraineeOf<Backend> {
  using type = typename Backend::Runner::Trainee;
};

/// What one worker computes in; it goes from client to client.
template <class Model>
struct WorkerMemory {
  using T = typename Model::Scalar;

  const Model* model = nullptr;
  std::vector<std::unique_ptr<typename Model::Workspace>> workspaces;  ///< one per thread that works on a client's step
  std::optional<typename TraineeOf<typename Model::Backend>::type> trainee;  ///< on the first workspace's runner
  std::vector<T> gradient;
  std::vector<std::vector<T>> parts;  ///< gradients of micro-batches

  void serve(const Model& next, int threads) {
    if (model != &next) {
      trainee.reset();
      workspaces.clear();
    }
    model = &next;
    workspaces.resize(static_cast<std::size_t>(threads));
    gradient.resize(static_cast<std::size_t>(next.layout()->size));
  }

  /// The workspace of worker `number`, made by the thread that uses it.
  typename Model::Workspace& workspace(std::size_t number) {
    if (!workspaces[number]) workspaces[number] = std::make_unique<typename Model::Workspace>(model->backend());
    return *workspaces[number];
  }
};

/// The gradient of weight · Σ loss over a step's micro-batches, left in `memory.gradient`; returns Σ loss. Each of
/// several micro-batches has a gradient of its own and these are added in order, so that threads may share them.
template <class C>
double step_gradient(const C& client, const StepExamples& micros, std::span<const typename C::Scalar> parameters,
                     double weight, const StepAddress& step, int threads, WorkerMemory<typename C::ModelType>& memory) {
  using T = typename C::Scalar;
  const auto pass = [&](int worker, std::size_t micro, std::span<T> gradient) {
    auto& workspace = memory.workspace(static_cast<std::size_t>(worker));
    StepAddress address = step;
    address.micro = static_cast<Index>(micro);
    return client.model->accumulate_gradient(workspace, *client.data, micros[micro], parameters, gradient, weight,
                                             address);
  };
  std::vector<T>& total = memory.gradient;
  std::fill(total.begin(), total.end(), T(0));
  if (micros.size() == 1) return pass(0, 0, total);

  const std::size_t together = threads > 1 ? micros.size() : 1;  // gradients that exist at the same time
  memory.parts.resize(std::max(memory.parts.size(), together));
  std::vector<double> losses(micros.size());
  for (std::size_t begin = 0; begin < micros.size(); begin += together) {
    parallel_for(together, threads, [&](int worker, std::size_t i) {
      [[maybe_unused]] const WorkerScope<typename C::ModelType::Backend> scope{};
      memory.parts[i].assign(total.size(), T(0));
      losses[begin + i] = pass(worker, begin + i, memory.parts[i]);
    });
    for (std::size_t part = 0; part < together; ++part)
      for (std::size_t i = 0; i < total.size(); ++i) total[i] += memory.parts[part][i];
  }
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

/// One step of an optimizer; of those that have loops for each level of CPU, by the backend's.
template <class Backend, class O, class T>
void step_parameters(const O& optimizer, typename O::template State<T>& state, std::span<T> parameters,
                     std::type_identity_t<std::span<const T>> gradient, double lr) {
  if constexpr (requires { optimizer.template step<typename Backend::Level>(state, parameters, gradient, lr); })
    optimizer.template step<typename Backend::Level>(state, parameters, gradient, lr);
  else
    optimizer.step(state, parameters, gradient, lr);
}

/// One client's local training where its backend keeps parameters and moments. Nothing is known of a step before the
/// last one is done; what was not finite is found then, and named by the step that it came from.
template <class C, class Observe>
Update<typename C::Scalar> train_on_device(const C& client, const Adapter<typename C::Scalar>& received,
                                           std::uint64_t seed, Index round, const LocalPlan& plan,
                                           WorkerMemory<typename C::ModelType>& memory,
                                           typename C::OptimizerType::template State<typename C::Scalar>& state,
                                           Observe&& before_step) {
  using T = typename C::Scalar;
  const auto started = std::chrono::steady_clock::now();
  const auto& model = *client.model;
  const Dataset& data = *client.data;
  memory.serve(model, 1);
  auto& workspace = memory.workspace(0);
  if (!memory.trainee) memory.trainee.emplace(workspace.run);
  auto& trainee = *memory.trainee;
  workspace.run.reset();

  const auto steps = batch_plan(client.examples, client.id, seed, round, plan);
  const auto total = static_cast<Index>(steps.size());
  std::vector<std::vector<T>*> moments;
  state.for_each([&](std::string_view, std::vector<T>& tensor) { moments.push_back(&tensor); });
  trainee.begin(received.values(), {moments.begin(), moments.end()}, state.steps, total, plan.clip_norm, plan.mu);
  std::vector<Index> counts(steps.size(), 0);
  for (Index step = 0; step < total; ++step) {
    before_step();
    const StepExamples& micros = steps[static_cast<std::size_t>(step)];
    Index& count = counts[static_cast<std::size_t>(step)];
    for (const auto& micro : micros) count += model.loss_count(data, micro);
    if (count == 0) continue;  // sequences of one token: nothing to predict, nothing to learn
    const double weight = 1.0 / static_cast<double>(count);
    const double rate = client.optimizer.lr * plan.rate_factor(round, step, total);
    const auto prepare = [&](std::size_t micro) {
      workspace.run.reset();
      model.prepare_training(workspace, data, micros[micro], trainee.parameters(), trainee.gradient(),
                             {seed, round, client.id, step, static_cast<Index>(micro)});
    };
    if (micros.size() == 1) {
      prepare(0);
      trainee.run(step, workspace.tables.all.count, workspace.batch.sequences(), [&] {
        model.run_training(workspace, weight);
        trainee.update(client.optimizer.fused(rate));
      });
      continue;
    }
    trainee.begin_step(step);
    for (std::size_t micro = 0; micro < micros.size(); ++micro) {
      prepare(micro);
      model.run_training(workspace, weight);
    }
    trainee.update(client.optimizer.fused(rate));
  }

  Adapter<T> adapter = received;
  if (!plan.keep_optimizer_state) moments.clear();
  const auto outcomes = trainee.finish(adapter.values(), moments, state.steps);
  ClientMetrics metrics;
  double loss_sum = 0;
  for (std::size_t step = 0; step < outcomes.size(); ++step) {
    if (counts[step] == 0) continue;
    const auto& outcome = outcomes[step];
    const auto diverged = [&](const char* expected, const std::string& got) {
      fail<DivergenceError>(place_of(round, client.id) + ", step " + std::to_string(step), expected, got);
    };
    if (!std::isfinite(outcome.loss)) diverged("a finite loss", std::to_string(outcome.loss));
    if (!outcome.gradient_finite) {
      if (!trainee.scales_loss) diverged("a finite gradient", "infinite or not a number");
      if (outcome.loss_scale < 1) diverged("a gradient that is finite without a loss scale", "infinite or not a number");
      ++metrics.skipped_steps;
    }
    if (!outcome.parameters_finite) diverged("finite parameters", "infinite or not a number");
    loss_sum += outcome.loss;
    metrics.loss_count += counts[step];
    ++metrics.steps;
  }
  metrics.train_loss = metrics.loss_count > 0 ? loss_sum / static_cast<double>(metrics.loss_count) : 0.0;
  metrics.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return {client.id, round, client.num_examples(), metrics, std::move(adapter)};
}

/// One client's local training, on the calling thread and, where a step has micro-batches to share, up to `threads - 1`
/// others.
template <class C, class Observe>
Update<typename C::Scalar> train_client(const C& client, const Adapter<typename C::Scalar>& received,
                                        std::uint64_t seed, Index round, const LocalPlan& plan, int threads,
                                        WorkerMemory<typename C::ModelType>& memory,
                                        typename C::OptimizerType::template State<typename C::Scalar>& state,
                                        Observe&& before_step) {
  using T = typename C::Scalar;
  if constexpr (TrainsOnDevice<typename C::ModelType, typename C::OptimizerType>)
    return train_on_device(client, received, seed, round, plan, memory, state, before_step);
  const auto started = std::chrono::steady_clock::now();
  const auto& model = *client.model;
  const Dataset& data = *client.data;
  Adapter<T> adapter = received;
  const std::span<T> parameters = adapter.values();
  const std::span<const T> start = received.values();
  memory.serve(model, threads);
  const std::span<T> gradient = memory.gradient;

  const auto steps = batch_plan(client.examples, client.id, seed, round, plan);
  const auto total = static_cast<Index>(steps.size());
  const T mu = static_cast<T>(plan.mu);
  ClientMetrics metrics;
  double loss_sum = 0;
  for (Index step = 0; step < total; ++step) {
    before_step();
    const StepExamples& micros = steps[static_cast<std::size_t>(step)];
    const auto diverged = [&](const char* expected, const std::string& got) {
      fail<DivergenceError>(place_of(round, client.id) + ", step " + std::to_string(step), expected, got);
    };
    Index count = 0;
    for (const auto& micro : micros) count += model.loss_count(data, micro);
    if (count == 0) continue;  // sequences of one token: nothing to predict, nothing to learn
    const double weight = 1.0 / static_cast<double>(count);
    const double loss = step_gradient(client, micros, std::as_const(adapter).values(), weight,
                                      StepAddress{seed, round, client.id, step, 0}, threads, memory);
    if (!std::isfinite(loss)) diverged("a finite loss", std::to_string(loss));
    if (plan.mu > 0)
      for (std::size_t i = 0; i < gradient.size(); ++i) gradient[i] += mu * (parameters[i] - start[i]);
    if (!all_finite(gradient)) diverged("a finite gradient", "infinite or not a number");
    if (plan.clip_norm > 0) clip_global_norm(gradient, plan.clip_norm);
    step_parameters<typename C::ModelType::Backend>(client.optimizer, state, parameters, gradient,
                                                    client.optimizer.lr * plan.rate_factor(round, step, total));
    if (!all_finite(std::as_const(adapter).values())) diverged("finite parameters", "infinite or not a number");
    loss_sum += loss;
    metrics.loss_count += count;
    ++metrics.steps;
  }
  metrics.train_loss = metrics.loss_count > 0 ? loss_sum / static_cast<double>(metrics.loss_count) : 0.0;
  metrics.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return {client.id, round, client.num_examples(), metrics, std::move(adapter)};
}

}  // namespace detail

}  // namespace fedlora
