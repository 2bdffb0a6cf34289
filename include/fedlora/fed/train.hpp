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
#include "fedlora/fed/local_training.hpp"
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
  const auto threads = static_cast<std::size_t>(detail::cohort_threads(cohort, plan.threads));
  const int per_client = static_cast<int>(std::max<std::size_t>(1, threads / std::max<std::size_t>(1, count)));
  std::vector<detail::WorkerMemory<Model>> workers(std::min(count, threads));
  std::vector<std::optional<Update<T>>> updates(count);
  std::vector<State> states(plan.keep_optimizer_state ? count : 0);
  std::mutex mutex;
  parallel_for(count, static_cast<int>(threads), [&](int number, std::size_t item) {
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
