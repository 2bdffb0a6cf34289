// SPDX-License-Identifier: Apache-2.0
// Local training of a cohort: from (clients, what each receives, a plan) to updates. Clients run in parallel, each on
// one thread; their updates have the same bits on any number of threads and in any order.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
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
#include "fedlora/fed/client_store.hpp"
#include "fedlora/fed/ledger.hpp"
#include "fedlora/fed/message.hpp"
#include "fedlora/fed/plan.hpp"
#include "fedlora/fed/sampling.hpp"
#include "fedlora/fed/update.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/optim/clip.hpp"

namespace fedlora {

/// Thrown by `train` when its `cancelled` callback said so. Nothing of the round has been kept.
class Cancelled : public Error {
 public:
  Cancelled() : Error("cancelled") {}
};

/// How far a round has come, told to `TrainHooks::on_step` and `on_client`.
struct TrainProgress {
  Index round = 0;
  Index client = 0;      ///< whose step or whose end this is
  Index steps_done = 0;  ///< of the whole cohort
  Index steps_total = 0;
  Index clients_done = 0;
  Index clients_total = 0;
};

/// Optional company of `train`. Callbacks may come from any worker; `on_step` and `on_client` never two at a time,
/// `cancelled` (asked before every step) possibly several at once.
template <class T>
struct TrainHooks {
  std::function<void(const TrainProgress&)> on_step = {};
  std::function<void(const TrainProgress&, const Update<T>&)> on_client = {};
  std::function<bool()> cancelled = {};
  /// Needed by `LocalPlan::keep_optimizer_state`; written only when the whole cohort is done.
  ClientStore<T>* store = nullptr;
};

namespace detail {

/// Limits a backend's own threading on this worker, where the backend has such a thing.
template <class Backend>
struct WorkerScope {};
template <class Backend>
requires requires { typename Backend::ThreadScope; }
struct WorkerScope<Backend> {
  typename Backend::ThreadScope scope;
};

inline std::string place_of(Index round, Index client) {
  return "round " + std::to_string(round) + ", client " + std::to_string(client);
}

/// Rethrows the current exception with round and client in front, keeping its type where it is one of ours.
[[noreturn]] inline void rethrow_naming(Index round, Index client) {
  const std::string prefix = place_of(round, client) + ": ";
  try {
    throw;
  } catch (const Cancelled&) {
    throw;
  } catch (const DivergenceError& error) {
    throw DivergenceError(std::string(error.what()).find(place_of(round, client)) == std::string::npos
                              ? prefix + error.what()
                              : error.what());
  } catch (const ShapeError& error) {
    throw ShapeError(prefix + error.what());
  } catch (const ConfigError& error) {
    throw ConfigError(prefix + error.what());
  } catch (const FormatError& error) {
    throw FormatError(prefix + error.what());
  } catch (const IoError& error) {
    throw IoError(prefix + error.what());
  } catch (const CudaError& error) {
    throw CudaError(prefix + error.what());
  } catch (const std::bad_alloc&) {
    throw Error(prefix + "out of memory");
  } catch (const std::exception& error) {
    throw Error(prefix + error.what());
  }
}

/// What one worker computes in; it goes from client to client.
template <class Model>
struct WorkerMemory {
  using T = typename Model::Scalar;

  const Model* model = nullptr;
  std::vector<std::unique_ptr<typename Model::Workspace>> workspaces;  ///< one per thread that works on a client's step
  std::vector<T> gradient;
  std::vector<std::vector<T>> parts;  ///< gradients of micro-batches

  void serve(const Model& next, int threads) {
    if (model != &next) workspaces.clear();
    model = &next;
    workspaces.resize(static_cast<std::size_t>(threads));
    gradient.resize(static_cast<std::size_t>(next.layout()->size));
  }
};

/// The gradient of weight · Σ loss over a step's micro-batches, left in `memory.gradient`; returns Σ loss. Each of
/// several micro-batches has a gradient of its own and these are added in order, so that threads may share them.
template <class C>
double step_gradient(const C& client, const StepExamples& micros, std::span<const typename C::Scalar> parameters,
                     double weight, const StepAddress& step, int threads, WorkerMemory<typename C::ModelType>& memory) {
  using T = typename C::Scalar;
  const auto pass = [&](int worker, std::size_t micro, std::span<T> gradient) {
    auto& workspace = memory.workspaces[static_cast<std::size_t>(worker)];
    if (!workspace)  // made by the thread that uses it
      workspace = std::make_unique<typename C::ModelType::Workspace>(client.model->backend());
    StepAddress address = step;
    address.micro = static_cast<Index>(micro);
    return client.model->accumulate_gradient(*workspace, *client.data, micros[micro], parameters, gradient, weight,
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

/// One client's local training, on the calling thread and, where a step has micro-batches to share, up to `threads - 1`
/// others.
template <class C, class Observe>
Update<typename C::Scalar> train_client(const C& client, const Adapter<typename C::Scalar>& received,
                                        std::uint64_t seed, Index round, const LocalPlan& plan, int threads,
                                        WorkerMemory<typename C::ModelType>& memory,
                                        typename C::OptimizerType::template State<typename C::Scalar>& state,
                                        Observe&& before_step) {
  using T = typename C::Scalar;
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
    client.optimizer.step(state, parameters, gradient, client.optimizer.lr * plan.rate_factor(round, step, total));
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

/// What a client receives, as a function of its id: a global adapter for all, or a `broadcast` of its own for each.
template <class F, class T>
concept BroadcastFunction = requires(const F& broadcast, Index client) {
  { broadcast(client) } -> std::convertible_to<const Adapter<T>&>;
  requires std::is_lvalue_reference_v<decltype(broadcast(client))>;
};

/// Trains every client of the cohort from the adapter that `broadcast(client)` gives it, and returns the updates in
/// ascending order of client. `broadcast` returns references that live as long as the call.
///
/// \throws DivergenceError naming round, client and step when a loss, gradient or parameter is not finite; Cancelled;
///         ConfigError, ShapeError; whatever else a worker throws comes back as one of the library's errors naming its
///         client. In all cases the store is as it was.
template <class C, BroadcastFunction<typename C::Scalar> Broadcasts>
std::vector<Update<typename C::Scalar>> train(const Cohort<C>& cohort, const Broadcasts& broadcast,
                                              const LocalPlan& plan, const TrainHooks<typename C::Scalar>& hooks = {}) {
  using T = typename C::Scalar;
  using Model = typename C::ModelType;
  using State = typename C::OptimizerType::template State<T>;
  plan.check();
  if (plan.keep_optimizer_state && hooks.store == nullptr)
    fail<ConfigError>("train, keep_optimizer_state", "a ClientStore in the hooks", "none");
  const std::size_t count = cohort.clients.size();
  TrainProgress progress{cohort.round, 0, 0, 0, 0, static_cast<Index>(count)};
  for (std::size_t k = 0; k < count; ++k) {
    const C& client = *cohort.clients[k];
    const std::string where = "train, " + detail::place_of(cohort.round, client.id);
    if (k > 0 && cohort.clients[k - 1]->id >= client.id)
      fail<ConfigError>(where, "clients in ascending order, each once",
                        "it after client " + std::to_string(cohort.clients[k - 1]->id));
    if (client.model == nullptr || client.data == nullptr) fail<ConfigError>(where, "a model and a dataset", "none");
    if (client.examples.empty()) fail<ConfigError>(where, "at least one example", "none");
    client.optimizer.check();
    const Adapter<T>& received = broadcast(client.id);
    const std::shared_ptr<const AdapterLayout> layout = client.model->layout();
    if (!received.shared_layout() || (received.shared_layout() != layout && !same_places(received.layout(), *layout)))
      fail<ShapeError>(where, "an adapter with the model's layout", "another one");
    progress.steps_total += local_steps(client.num_examples(), plan);
  }

  // Long clients first, so that the last to finish is not the one that started last.
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return local_steps(cohort.clients[a]->num_examples(), plan) > local_steps(cohort.clients[b]->num_examples(), plan);
  });

  // One client per thread; threads that are left over when clients are few share the micro-batches of their steps.
  const std::size_t threads = static_cast<std::size_t>(worker_count(plan.threads));
  const int per_client = static_cast<int>(std::max<std::size_t>(1, threads / std::max<std::size_t>(1, count)));
  std::vector<detail::WorkerMemory<Model>> workers(std::min(count, threads));
  std::vector<std::optional<Update<T>>> updates(count);
  std::vector<State> states(plan.keep_optimizer_state ? count : 0);
  std::mutex mutex;
  parallel_for(count, plan.threads, [&](int number, std::size_t item) {
    const std::size_t k = order[item];
    const C& client = *cohort.clients[k];
    try {
      [[maybe_unused]] const detail::WorkerScope<typename Model::Backend> scope{};
      State state;
      if (plan.keep_optimizer_state)
        if (const ClientEntry<T>* entry = hooks.store->find(client.id))
          state = state_of<T, State>(*entry, static_cast<std::size_t>(client.model->layout()->size),
                                     detail::place_of(cohort.round, client.id));
      bool first = true;
      const auto tell_step = [&] {
        if (!hooks.on_step) return;
        const std::lock_guard lock(mutex);
        progress.client = client.id;
        ++progress.steps_done;
        hooks.on_step(progress);
      };
      Update<T> update = detail::train_client(client, broadcast(client.id), cohort.seed, cohort.round, plan, per_client,
                                              workers[static_cast<std::size_t>(number)], state, [&] {
                                                if (!std::exchange(first, false)) tell_step();
                                                if (hooks.cancelled && hooks.cancelled()) throw Cancelled();
                                              });
      tell_step();
      if (plan.keep_optimizer_state) states[k] = std::move(state);
      updates[k] = std::move(update);
      const std::lock_guard lock(mutex);
      ++progress.clients_done;
      progress.client = client.id;
      if (hooks.on_client) hooks.on_client(progress, *updates[k]);
    } catch (...) {
      detail::rethrow_naming(cohort.round, client.id);
    }
  });

  std::vector<Update<T>> result;
  result.reserve(count);
  for (auto& update : updates) result.push_back(std::move(*update));
  if (plan.keep_optimizer_state)
    for (std::size_t k = 0; k < count; ++k)
      hooks.store->put(cohort.clients[k]->id, entry_of<T, State>(std::move(states[k]), cohort.round));
  return result;
}

/// The same from one global adapter.
template <class C>
std::vector<Update<typename C::Scalar>> train(const Cohort<C>& cohort, const Adapter<typename C::Scalar>& global,
                                              const LocalPlan& plan, const TrainHooks<typename C::Scalar>& hooks = {}) {
  return train(
      cohort, [&global](Index) -> const Adapter<typename C::Scalar>& { return global; }, plan, hooks);
}

/// The same, entering one broadcast down and one update up per client into the ledger: the bytes `broadcast_message`
/// and `update_message` would make, without making them. The ledger, too, is as it was when this throws.
template <class C, class Start>
std::vector<Update<typename C::Scalar>> train(const Cohort<C>& cohort, const Start& start, const LocalPlan& plan,
                                              CommunicationLedger& ledger,
                                              const TrainHooks<typename C::Scalar>& hooks = {}) {
  using T = typename C::Scalar;
  auto updates = train(cohort, start, plan, hooks);
  std::optional<MessageSizes<T>> sizes;
  const AdapterLayout* measured = nullptr;
  for (const Update<T>& update : updates) {
    if (measured != &update.adapter.layout()) {
      measured = &update.adapter.layout();
      sizes.emplace(*measured);
    }
    ledger.record_down(update.round, sizes->broadcast(update.round, update.client));
    ledger.record_up(update.round, sizes->update(update));
  }
  return updates;
}

}  // namespace fedlora
