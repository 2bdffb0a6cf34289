// SPDX-License-Identifier: Apache-2.0
#include "fedlora/fed/run_state.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "fed/softmax_regression.hpp"
#include "fedlora/fed/aggregate.hpp"
#include "fedlora/fed/train.hpp"
#include "fedlora/optim/adamw.hpp"
#include "support.hpp"

using namespace fedlora;
using tests::has;
using tests::same_bits;
using tests::SoftmaxRegression;
using tests::TemporaryDirectory;
using tests::toy_dataset;
using tests::toy_partition;

namespace {

constexpr std::uint64_t large_seed = 18'000'000'000'000'000'001ull;

/// A federation of the kind a program runs, from `state` to the end of `rounds`.
template <class T>
void run(const SoftmaxRegression<T>& model, RunState<T>& state, Index rounds) {
  const auto clients = make_clients(model, toy_dataset(100), toy_partition(100, 6), AdamW{.lr = 0.02});
  const LocalPlan plan{.batch_size = 4,
                       .schedule = {.shape = ScheduleShape::cosine},
                       .schedule_over = ScheduleOver::steps,
                       .rounds = 8,
                       .threads = 2,
                       .keep_optimizer_state = true};
  while (state.round < rounds) {
    const Index round = state.round + 1;
    const auto cohort = sample_uniform(clients, {.fraction = 0.5, .seed = state.seed, .round = round});
    const auto updates = train(cohort, state.adapters[0], plan, state.ledger, {.store = &state.clients});
    state.adapters[0] = FedAvg{}(state.adapters[0], updates);
    state.metrics.push_back({{"round", round}, {"train_loss", updates[0].metrics.train_loss}});
    state.round = round;
  }
}

template <class T>
RunState<T> fresh(const SoftmaxRegression<T>& model) {
  RunState<T> state;
  state.config = {{"clients", 6}, {"lr", 0.02}, {"dtype", "f32"}, {"local", {{"batch", 4}, {"epochs", 1}}}};
  state.seed = large_seed;
  state.adapters = {model.initial_adapter(1)};
  return state;
}

/// The state's file with its JSON changed by `change`, as parsed: the error, or "accepted".
std::string rejection(const RunState<float>& state, const SoftmaxRegression<float>& model, const auto& change) {
  const SafetensorsFile file(bytes_of(run_state_bytes(state), "state"));
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, view] : file.tensors()) tensors.push_back({name, view.dtype, view.shape, view.bytes});
  Json json = Json::parse(file.metadata().at("fedlora_run_state"));
  change(json, tensors);
  try {
    parse_run_state<float>(bytes_of(detail::run_state_file(tensors, json), "state"), model.layout());
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

/// What differs, as "field: saved, now" a line each.
std::string differences(const Json& saved, const Json& now, const std::set<std::string>& passed_over) {
  std::string lines;
  for (const ConfigDifference& one : config_differences(saved, now, passed_over))
    lines += (lines.empty() ? "" : "\n") + one.field + ": " + one.saved + ", " + one.now;
  return lines;
}

}  // namespace

TEST_CASE_TEMPLATE("a run stopped after any round and resumed from its file ends with the same bits", T, float,
                   double) {
  const SoftmaxRegression<T> model({.dropout = 0.2});
  auto uninterrupted = fresh(model);
  run(model, uninterrupted, 8);
  const TemporaryDirectory directory;
  const auto path = directory.path() / "state.safetensors";
  for (const Index stop : {0, 1, 4, 7, 8}) {
    auto state = fresh(model);
    run(model, state, stop);
    save_run_state(state, path);
    auto resumed = load_run_state<T>(path, model.layout());
    run(model, resumed, 8);
    CHECK(same_bits(resumed.adapters[0], uninterrupted.adapters[0]));
    CHECK(resumed.clients == uninterrupted.clients);
    CHECK(resumed.ledger == uninterrupted.ledger);
    CHECK(resumed.metrics == uninterrupted.metrics);
    CHECK(run_state_bytes(resumed) == run_state_bytes(uninterrupted));
  }
}

TEST_CASE("a state comes back whole") {
  const SoftmaxRegression<float> model;
  auto state = fresh(model);
  run(model, state, 3);
  state.adapters.push_back(model.initial_adapter(7));
  state.adapters.push_back(model.initial_adapter(8));
  state.metrics.push_back({{"text", "naïve \"quotes\"\n"}, {"loss", 0.1 + 0.2}});
  state.extra = {{"seconds", 12.5}, {"finished", {"head", "local"}}};
  const TemporaryDirectory directory;
  save_run_state(state, directory.path() / "state");
  const auto back = load_run_state<float>(directory.path() / "state", model.layout());
  CHECK(back.config == state.config);
  CHECK(back.seed == large_seed);
  CHECK(back.round == 3);
  REQUIRE(back.adapters.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(same_bits(back.adapters[i], state.adapters[i]));
  CHECK(back.ledger == state.ledger);
  CHECK(back.clients == state.clients);
  CHECK(back.metrics == state.metrics);
  CHECK(back.extra == state.extra);
  const SavedRun saved = read_saved_run(map_file(directory.path() / "state"));
  CHECK(saved.config == state.config);
  CHECK(saved.round == 3);
  CHECK(saved.extra == state.extra);
}

TEST_CASE("a damaged state is a FormatError that names file and field") {
  const SoftmaxRegression<float> model;
  auto state = fresh(model);
  run(model, state, 2);
  using Tensors = std::vector<TensorToWrite>;
  const auto set = [&](const char* field, const Json& value) {
    return rejection(state, model, [&](Json& json, Tensors&) { json[field] = value; });
  };
  CHECK(rejection(state, model, [](Json&, Tensors&) {}) == "accepted");
  CHECK(has(set("version", 99), "state, fedlora_run_state, field version] expected 2, got 99"));
  CHECK(has(set("round", -1), "field round"));
  CHECK(has(set("round", "three"), "round"));
  CHECK(has(set("seed", -1), "seed"));
  CHECK(has(set("config", nullptr), "field config] expected an object"));
  CHECK(has(set("metrics", 5), "field metrics] expected an array"));
  CHECK(has(set("ledger", {{1, 2}}), "field ledger"));
  CHECK(has(set("adapters", 1'000'000'000), "field adapters"));
  CHECK(has(set("adapters", 2), "tensor adapter.1] expected it, got no such tensor"));
  CHECK(has(set("layout", Json::array()), "field layout"));
  CHECK(has(set("clients", Json::array()), "expected tensors that the state names"));
  CHECK(has(set("clients", {{{"client", 1}, {"round", 1}, {"steps", 1}, {"tensors", {"nothing"}}}}),
            "tensor client.1.nothing"));
  CHECK(has(set("clients", {{{"client", 1}, {"round", 3}, {"steps", 1}, {"tensors", Json::array()}}}),
            "a round of at most 2"));
  CHECK(
      has(rejection(state, model, [](Json&, Tensors& tensors) { tensors.erase(tensors.begin()); }), "no such tensor"));
  CHECK(has(rejection(state, model,
                      [](Json&, Tensors& tensors) {
                        tensors[0].shape = {1, tensors[0].shape[0]};
                      }),
            "tensor adapter.0] expected F32 of shape"));

  const std::string bytes = run_state_bytes(state);
  for (std::size_t length = 0; length < bytes.size(); length += 97)
    CHECK_THROWS_AS(parse_run_state<float>(bytes_of(bytes.substr(0, length), "state"), model.layout()), FormatError);
  CHECK_THROWS_AS(parse_run_state<float>(bytes_of(safetensors_bytes({}, {}), "state"), model.layout()), FormatError);
  CHECK_THROWS_AS(read_saved_run(bytes_of(safetensors_bytes({}, {}), "state")), FormatError);
  CHECK_THROWS_AS(load_run_state<float>("/nonexistent/state", model.layout()), IoError);
}

TEST_CASE("a bit that was lost anywhere in a state is noticed") {
  const SoftmaxRegression<float> model;
  auto state = fresh(model);
  run(model, state, 2);
  const std::string bytes = run_state_bytes(state);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::string lost = bytes;
    lost[i] = static_cast<char>(lost[i] ^ 1 << i % 8);
    INFO("byte ", i);
    CHECK_THROWS_AS(read_saved_run(bytes_of(lost, "state")), FormatError);
  }
}

TEST_CASE("a state of another model or precision is refused") {
  const SoftmaxRegression<float> model, wider({.rank = 3});
  const SoftmaxRegression<double> precise;
  const std::string bytes = run_state_bytes(fresh(model));
  CHECK_THROWS_AS(parse_run_state<float>(bytes_of(bytes, "state"), wider.layout()), FormatError);
  CHECK_THROWS_AS(parse_run_state<double>(bytes_of(bytes, "state"), precise.layout()), FormatError);
  CHECK_NOTHROW(parse_run_state<float>(bytes_of(bytes, "state"), model.layout()));
}

TEST_CASE("configurations are compared field by field: what was and what is") {
  const Json saved = {{"batch", 8}, {"rounds", 12}, {"local", {{"epochs", 1}, {"lr", 0.001}}}, {"model", nullptr}};
  Json now = saved;
  CHECK(differences(saved, now, {}).empty());
  now["rounds"] = 20;
  CHECK(differences(saved, now, {}) == "rounds: 12, 20");
  CHECK(differences(saved, now, {"rounds"}).empty());
  now["local"]["lr"] = 0.01;
  CHECK(differences(saved, now, {}) == "local.lr: 0.001, 0.01\nrounds: 12, 20");
  CHECK(differences(saved, now, {"rounds", "local"}).empty());
  CHECK(differences(saved, now, {"rounds", "local.lr"}).empty());
  now = saved;
  now["mu"] = 0.1;
  CHECK(differences(saved, now, {}) == "mu: nothing, 0.1");
  now = saved;
  now.erase("batch");
  CHECK(differences(saved, now, {}) == "batch: 8, nothing");
}

TEST_CASE("a path that is not UTF-8 neither breaks a save nor hinders a resume") {
  const SoftmaxRegression<float> model;
  auto state = fresh(model);
  state.config["train"] = "caf\xe9.csv";
  const auto back = parse_run_state<float>(bytes_of(run_state_bytes(state), "state"), model.layout());
  CHECK(differences(back.config, state.config, {}).empty());
  state.config["train"] = "tea.csv";
  CHECK(has(differences(back.config, state.config, {}), "train: "));
}

TEST_CASE("a state that cannot be written leaves the last good one") {
  const SoftmaxRegression<float> model;
  const TemporaryDirectory directory;
  auto state = fresh(model);
  save_run_state(state, directory.path() / "state");
  CHECK_THROWS_AS(save_run_state(state, directory.path() / "missing" / "state"), IoError);
  CHECK(load_run_state<float>(directory.path() / "state", model.layout()).round == 0);
}
