// SPDX-License-Identifier: Apache-2.0
// One training run, of any mode, as one loop: sample, train, aggregate, evaluate, save. The modes differ in four
// values:
//
//   mode         clients               cohort     adapters     optimizer state
//   federated    the partition         a sample   one, FedAvg  new in every round
//   local        the partition         everybody  one each     kept
//   centralised  one with all data     it         one          kept
//   head         the same, head alone  it         one          kept
//
// A round of the last three is an epoch, so that they are evaluated, saved and resumed like the first.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "federation/console.hpp"
#include "federation/output_directory.hpp"
#include "fedlora/fed/aggregate.hpp"
#include "fedlora/fed/run_state.hpp"
#include "fedlora/fed/train.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/lora/evaluation.hpp"
#include "fedlora/optim/adamw.hpp"
#include "problem_type.hpp"
#include "sha256.hpp"

namespace fedlora::examples {

template <class Model>
struct Run {
  using T = typename Model::Scalar;

  std::string mode;
  const Model* model = nullptr;
  const Measures* measures = nullptr;
  std::vector<Client<Model, AdamW>> clients;
  std::shared_ptr<const Dataset> test;
  LocalPlan plan;
  double cohort = 1;
  Index rounds = 0;
  Index eval_every = 1;
  bool own_adapters = false;
  RunState<T> state;
  std::function<void(const RunState<T>&)> after_round = {};
  /// Comes before the first round of those that are left, with the threads that it may use, and counts as training;
  /// `check` throws when the run is to stop.
  std::function<void(int threads, const std::function<void()>& check)> before_rounds = {};

  bool finished() const { return state.round >= rounds; }
  std::string unit() const { return mode == "federated" ? "round" : "epoch"; }
  Cohort<Client<Model, AdamW>> cohort_of(Index round) const {
    return sample_uniform(clients, {.fraction = cohort, .seed = state.seed, .round = round});
  }

  /// Optimizer steps that are still to be taken.
  Index steps_left() const {
    Index steps = 0;
    for (Index round = state.round + 1; round <= rounds; ++round)
      for (const auto* client : cohort_of(round).clients) steps += local_steps(client->num_examples(), plan);
    return steps;
  }
};

/// What surrounds a run: where it writes, what it may use, who may stop it.
struct Surroundings {
  Console& console;
  OutputDirectory& out;
  std::function<int()> threads;  ///< asked before each piece of work: other runs end meanwhile
  std::function<bool()> cancelled;

  void check() const {
    if (cancelled()) throw Cancelled();
  }
};

/// Fills a row's measures: the means over the run's adapters (one, or everybody's own) on the whole test set.
template <class Model>
void evaluate_run(const Run<Model>& run, const Surroundings& around, Json& row) {
  std::map<std::string, double> means;
  for (const auto& adapter : run.state.adapters) {
    around.check();
    const Evaluation one = run.model->evaluate(adapter, *run.test, around.threads());
    for (const std::string& field : run.measures->fields()) means[field] += run.measures->value(one, field);
  }
  for (auto& [field, mean] : means) mean /= static_cast<double>(run.state.adapters.size());
  if (!std::isfinite(means["loss"]))
    fail<DivergenceError>(run.mode + ", round " + std::to_string(run.state.round) + ", evaluation", "a finite loss",
                          std::to_string(means["loss"]));
  for (const auto& [field, mean] : means) row[field] = Measures::json(mean);
}

/// Whether a row lacks a measure: it was passed over, or measured by other metrics.
template <class Model>
bool lacks_measures(const Run<Model>& run, const Json& row) {
  const auto fields = run.measures->fields();
  return row["loss"].is_null() ||
         std::any_of(fields.begin(), fields.end(), [&](const std::string& field) { return !row.contains(field); });
}

/// Trains one round from the state and leaves its result there; nothing has happened when it throws.
template <class Model>
std::vector<Update<typename Model::Scalar>> train_round(Run<Model>& run, Index round, const Surroundings& around) {
  using T = typename Model::Scalar;
  RunState<T>& state = run.state;
  const auto cohort = run.cohort_of(round);
  TrainHooks<T> hooks;
  hooks.cancelled = around.cancelled;
  hooks.store = &state.clients;
  hooks.on_step = [&](const TrainProgress& progress) {
    around.console.step(run.mode + ", " + run.unit() + " " + std::to_string(progress.round) + " of " +
                        std::to_string(run.rounds));
  };
  run.plan.threads = around.threads();
  const auto received = [&](Index client) -> const Adapter<T>& {
    return state.adapters[run.own_adapters ? static_cast<std::size_t>(client) : 0];
  };
  if (run.mode == "federated") {
    auto updates = train(cohort, received, run.plan, state.ledger, hooks);
    state.adapters = {FedAvg()(state.adapters[0], updates)};
    return updates;
  }
  auto updates = train(cohort, received, run.plan, hooks);
  for (std::size_t k = 0; k < updates.size(); ++k) state.adapters[k] = updates[k].adapter;
  return updates;
}

/// Measures a run where it stands: fills the measures of its last row, and returns the line that says so.
template <class Model>
std::string measure(Run<Model>& run, const Surroundings& around) {
  Json& row = run.state.metrics.back();
  evaluate_run(run, around, row);
  return run.mode + std::string(12 - run.mode.size(), ' ') + run.unit() + " " + std::to_string(run.state.round) +
         " of " + std::to_string(run.rounds) + ": " + run.measures->line(row) + ", train loss " +
         decimals(row["train_loss"].is_null() ? 0.0 : row["train_loss"].get<double>(), 4) + "\n";
}

/// Runs all rounds that are left, and measures the last one if a longer run went past it without. After each round, the
/// state is on disk before anything says so.
template <class Model>
void advance(Run<Model>& run, const Surroundings& around) {
  using Clock = std::chrono::steady_clock;
  auto& state = run.state;
  const auto counted = [&](const char* field) { return state.extra.value(field, 0.0); };
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const auto write = [&] {
    around.out.write_round(
        run.mode, state.metrics, [&](const auto& file) { save_run_state(state, file); },
        [&](const auto& directory) { save_peft(state.adapters[0], directory); });
  };
  if (run.finished() && lacks_measures(run, state.metrics.back())) {
    const auto started = Clock::now();
    const std::string line = measure(run, around);
    state.extra["seconds"] = counted("seconds") + since(started);
    write();
    around.console.print(line);
  }
  if (run.before_rounds && !run.finished()) {
    const auto started = Clock::now();
    run.before_rounds(around.threads(), [&] { around.check(); });
    for (const char* field : {"train_seconds", "seconds"}) state.extra[field] = counted(field) + since(started);
  }
  while (!run.finished()) {
    const auto started = Clock::now();
    const Index round = state.round + 1;
    const auto updates = train_round(run, round, around);
    state.round = round;
    const double train_seconds = counted("train_seconds") + since(started);

    double loss = 0;
    Index losses = 0, examples = 0, skipped = state.extra.value("skipped_steps", Index{0});
    for (const auto& update : updates) {
      loss += update.metrics.train_loss * static_cast<double>(update.metrics.loss_count);
      losses += update.metrics.loss_count;
      examples += update.num_examples;
      skipped += update.metrics.skipped_steps;
    }
    const RoundTraffic traffic = state.ledger.round(round);
    state.metrics.push_back({{"mode", run.mode},
                             {"round", round},
                             {"clients", updates.size()},
                             {"examples", examples},
                             {"train_loss", losses > 0 ? Json(loss / static_cast<double>(losses)) : Json(nullptr)},
                             {"bytes_up", traffic.up.bytes.total()},
                             {"bytes_down", traffic.down.bytes.total()},
                             {"train_seconds", train_seconds}});
    for (const std::string& field : run.measures->fields()) state.metrics.back()[field] = nullptr;
    std::string line;
    if (run.finished() || (!run.own_adapters && round % run.eval_every == 0)) line = measure(run, around);
    state.extra["train_seconds"] = train_seconds;
    state.extra["skipped_steps"] = skipped;
    state.extra["seconds"] = counted("seconds") + since(started);
    write();
    if (run.after_round) run.after_round(state);
    if (!line.empty()) around.console.print(line);
  }
}

/// The run's entry in summary.json. The digest is that of adapter_model.safetensors as `save_peft` writes it, for
/// clients with their own adapters of all these files, one after another. In f16 it says how many steps were skipped
/// because a gradient overflowed.
template <class Model>
Json summary_of(const Run<Model>& run) {
  const auto& state = run.state;
  const Json& last = state.metrics.back();
  const RoundTraffic traffic = state.ledger.total();
  Sha256 digest;
  for (const auto& adapter : state.adapters)
    digest.add(std::as_bytes(std::span<const char>(peft_tensor_bytes(adapter))));
  const auto by_kind = [](const MessageSize& size) {
    return Json{{"adapter", size.adapter}, {"head", size.head}, {"protocol", size.protocol}};
  };
  Json entry = {{"rounds", state.round},
                {"seconds", state.extra["seconds"]},
                {"train_seconds", state.extra["train_seconds"]},
                {"bytes_up", traffic.up.bytes.total()},
                {"bytes_down", traffic.down.bytes.total()},
                {"bytes_up_by_kind", by_kind(traffic.up.bytes)},
                {"bytes_down_by_kind", by_kind(traffic.down.bytes)},
                {"trainable_parameters", run.model->layout()->size},
                {"adapter_sha256", digest.hex()}};
  for (const std::string& field : run.measures->fields()) entry[field] = last[field];
  if (state.config["dtype"] == "f16") entry["skipped_steps"] = state.extra["skipped_steps"];
  return entry;
}

}  // namespace fedlora::examples
