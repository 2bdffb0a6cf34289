// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "fed/softmax_regression.hpp"
#include "fedlora/fed/plan.hpp"
#include "fedlora/fed/train.hpp"
#include "fedlora/optim/adamw.hpp"
#include "fedlora/optim/sgd.hpp"

using namespace fedlora;
using tests::same_bits;
using tests::SoftmaxRegression;
using tests::toy_dataset;
using tests::toy_partition;

namespace {

std::vector<Index> flatten(const std::vector<StepExamples>& steps) {
  std::vector<Index> all;
  for (const auto& step : steps)
    for (const auto& micro : step) all.insert(all.end(), micro.begin(), micro.end());
  return all;
}

std::vector<Index> sorted(std::vector<Index> values) {
  std::sort(values.begin(), values.end());
  return values;
}

template <class T>
double largest_difference(const Adapter<T>& a, const Adapter<T>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.values().size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a.values()[i]) - static_cast<double>(b.values()[i])));
  return worst;
}

}  // namespace

TEST_CASE("every epoch visits every example once, in an order of its own; the last batch may be short") {
  const std::vector<Index> examples = {3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377};
  const LocalPlan plan{.epochs = 3, .batch_size = 4};
  const auto steps = batch_plan(examples, 7, 42, 2, plan);
  REQUIRE(steps.size() == 9);
  CHECK(local_steps(11, plan) == 9);
  std::set<std::vector<Index>> orders;
  for (std::size_t epoch = 0; epoch < 3; ++epoch) {
    const std::vector<StepExamples> part(steps.begin() + static_cast<std::ptrdiff_t>(3 * epoch),
                                         steps.begin() + static_cast<std::ptrdiff_t>(3 * epoch + 3));
    CHECK(flatten({part[0]}).size() == 4);
    CHECK(flatten({part[2]}).size() == 3);
    CHECK(sorted(flatten(part)) == examples);
    orders.insert(flatten(part));
  }
  CHECK(orders.size() == 3);
  CHECK(batch_plan(examples, 7, 42, 2, plan) == steps);
  CHECK(flatten(batch_plan(examples, 8, 42, 2, plan)) != flatten(steps));
  CHECK(flatten(batch_plan(examples, 7, 42, 3, plan)) != flatten(steps));
  CHECK(flatten(batch_plan(examples, 7, 43, 2, plan)) != flatten(steps));
}

TEST_CASE("steps instead of epochs go round as often as needed") {
  const std::vector<Index> examples = {0, 1, 2, 3, 4};
  const auto steps = batch_plan(examples, 1, 1, 1, {.steps = 7, .batch_size = 2});
  REQUIRE(steps.size() == 7);
  const auto epochs = batch_plan(examples, 1, 1, 1, {.epochs = 3, .batch_size = 2});
  for (std::size_t s = 0; s < steps.size(); ++s) CHECK(steps[s] == epochs[s]);
  CHECK(batch_plan(examples, 1, 1, 1, {.steps = 1, .batch_size = 100})[0][0].size() == 5);
}

TEST_CASE("accumulation splits a step and changes neither its examples nor their order") {
  const std::vector<Index> examples = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const auto whole = batch_plan(examples, 1, 1, 1, {.batch_size = 8});
  const auto split = batch_plan(examples, 1, 1, 1, {.batch_size = 8, .accumulation = 3});
  REQUIRE(split.size() == 2);
  CHECK(flatten(split) == flatten(whole));
  REQUIRE(split[0].size() == 3);
  CHECK(split[0][0].size() == 3);
  CHECK(split[0][2].size() == 2);
  CHECK(split[1].size() == 1);  // two examples fit one micro-batch of three
}

TEST_CASE("plans that make no sense are refused by field") {
  const auto message = [](const LocalPlan& plan) -> std::string {
    try {
      plan.check();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message({.epochs = 0}).find("epochs") != std::string::npos);
  CHECK(message({.epochs = 0, .steps = 3}).empty());
  CHECK(message({.steps = -1}).find("steps") != std::string::npos);
  CHECK(message({.batch_size = 0}).find("batch_size") != std::string::npos);
  CHECK(message({.accumulation = 0}).find("accumulation") != std::string::npos);
  CHECK(message({.clip_norm = -1}).find("clip_norm") != std::string::npos);
  CHECK(message({.mu = std::nan("")}).find("mu") != std::string::npos);
  CHECK(message({.threads = -2}).find("threads") != std::string::npos);
  CHECK_THROWS_AS(batch_plan(std::vector<Index>{}, 1, 1, 1, {}), ConfigError);
}

TEST_CASE("schedules run over rounds, over the run's steps, or anew in each round") {
  LocalPlan plan{.schedule = {.shape = ScheduleShape::linear}, .rounds = 4};
  CHECK(plan.rate_factor(1, 3, 5) == 1.0);
  CHECK(plan.rate_factor(3, 0, 5) == doctest::Approx(0.5));
  plan.schedule_over = ScheduleOver::steps;
  CHECK(plan.rate_factor(1, 0, 5) == 1.0);
  CHECK(plan.rate_factor(3, 2, 5) == doctest::Approx(1 - 12.0 / 20));
  CHECK(plan.rate_factor(4, 4, 5) == doctest::Approx(1.0 / 20));
  plan.schedule_over = ScheduleOver::local_steps;
  CHECK(plan.rate_factor(9, 1, 5) == doctest::Approx(0.8));
  plan.schedule_over = ScheduleOver::rounds;
  CHECK_THROWS_AS(plan.rate_factor(5, 0, 5), ConfigError);
  plan.rounds = 0;
  CHECK_THROWS_AS(plan.rate_factor(1, 0, 5), ConfigError);
  plan.schedule.shape = ScheduleShape::constant;
  CHECK(plan.rate_factor(1, 0, 5) == 1.0);
}

TEST_CASE("training follows its plan: the same steps by hand give the same bits") {
  const SoftmaxRegression<double> model({.dropout = 0.3});
  const auto data = std::make_shared<const Dataset>(toy_dataset(23));
  const auto clients = make_clients(model, data, toy_partition(23, 1), Sgd{.lr = 0.2, .momentum = 0.9});
  const auto cohort = all_clients(clients, 9, 3);
  const LocalPlan plan{.epochs = 2,
                       .batch_size = 5,
                       .accumulation = 2,
                       .schedule = {.shape = ScheduleShape::cosine},
                       .schedule_over = ScheduleOver::steps,
                       .rounds = 6};
  const auto global = model.initial_adapter(4);
  const auto updates = train(cohort, global, plan);

  Adapter<double> by_hand = global;
  Sgd::State<double> state;
  SoftmaxRegression<double>::Workspace workspace(model.backend());
  std::vector<double> gradient(by_hand.values().size());
  const auto steps = batch_plan(clients[0], cohort, plan);
  double loss = 0;
  for (std::size_t s = 0; s < steps.size(); ++s) {
    std::fill(gradient.begin(), gradient.end(), 0.0);
    const double count = static_cast<double>(flatten({steps[s]}).size());
    double step_loss = 0;
    for (std::size_t m = 0; m < steps[s].size(); ++m) {  // micro-batches have sums of their own, added in order
      std::vector<double> part(gradient.size(), 0.0);
      step_loss += model.accumulate_gradient(workspace, *data, steps[s][m], by_hand.values(), part, 1.0 / count,
                                             {9, 3, 0, static_cast<Index>(s), static_cast<Index>(m)});
      for (std::size_t i = 0; i < part.size(); ++i) gradient[i] += part[i];
    }
    loss += step_loss;
    clients[0].optimizer.step(state, by_hand.values(), gradient, 0.2 * plan.rate_factor(3, static_cast<Index>(s), 10));
  }
  REQUIRE(steps.size() == 10);
  CHECK(same_bits(updates[0].adapter, by_hand));
  CHECK(updates[0].metrics.train_loss == loss / 46);
}

TEST_CASE("accumulation equals the big batch") {
  const SoftmaxRegression<double> model;
  const auto clients = make_clients(model, toy_dataset(50), toy_partition(50, 2), AdamW{.lr = 0.01});
  const auto global = model.initial_adapter(4);
  const auto whole = train(all_clients(clients, 9, 1), global, {.epochs = 2, .batch_size = 16});
  for (const Index accumulation : {2, 3, 5, 16, 40}) {
    const auto split =
        train(all_clients(clients, 9, 1), global, {.epochs = 2, .batch_size = 16, .accumulation = accumulation});
    for (std::size_t k = 0; k < whole.size(); ++k) {
      CHECK(largest_difference(whole[k].adapter, split[k].adapter) < 1e-12);
      CHECK(std::abs(whole[k].metrics.train_loss - split[k].metrics.train_loss) < 1e-12);
    }
  }
}

TEST_CASE("FedProx adds the gradient of mu/2 |w - w_received|^2") {
  // One SGD step at lr 1 from w moves by minus the gradient. The received adapter is also where the term starts, so its
  // gradient shows from the second step on: compare with the loss differentiated numerically at the first step's
  // result.
  const SoftmaxRegression<double> model;
  const auto data = std::make_shared<const Dataset>(toy_dataset(6));
  const auto clients = make_clients(model, data, {{0, 1, 2, 3, 4, 5}}, Sgd{.lr = 0.5});
  const auto cohort = all_clients(clients, 9, 1);
  const auto received = model.initial_adapter(4);
  const double mu = 0.7;
  const auto one = train(cohort, received, {.steps = 1, .batch_size = 6, .mu = mu})[0].adapter;
  const auto two = train(cohort, received, {.steps = 2, .batch_size = 6, .mu = mu})[0].adapter;
  CHECK(same_bits(one, train(cohort, received, {.steps = 1, .batch_size = 6})[0].adapter));

  const auto objective = [&](const Adapter<double>& w) {
    double distance = 0;
    for (std::size_t i = 0; i < w.values().size(); ++i) distance += std::pow(w.values()[i] - received.values()[i], 2);
    return model.evaluate(w, *data, 1).loss + mu / 2 * distance;
  };
  for (std::size_t i = 0; i < one.values().size(); ++i) {
    auto up = one, down = one;
    up.values()[i] += 1e-6;
    down.values()[i] -= 1e-6;
    const double numeric = (objective(up) - objective(down)) / 2e-6;
    const double analytic = (one.values()[i] - two.values()[i]) / 0.5;
    CHECK(std::abs(numeric - analytic) < 1e-7);
  }
}

TEST_CASE("a larger mu keeps clients closer to what they received") {
  const SoftmaxRegression<double> model;
  const auto clients = make_clients(model, toy_dataset(60), toy_partition(60, 3), Sgd{.lr = 0.1});
  const auto global = model.initial_adapter(4);
  double last = 1e300;
  for (const double mu : {0.0, 0.1, 1.0, 5.0}) {
    const auto updates = train(all_clients(clients, 9, 1), global, {.epochs = 5, .mu = mu});
    double distance = 0;
    for (std::size_t i = 0; i < global.values().size(); ++i)
      distance += std::pow(updates[2].adapter.values()[i] - global.values()[i], 2);
    CHECK(distance < last);
    last = distance;
  }
}

TEST_CASE("clipping bounds the step") {
  const SoftmaxRegression<double> model;
  const auto clients = make_clients(model, toy_dataset(6), {{0, 1, 2, 3, 4, 5}}, Sgd{.lr = 1});
  const auto global = model.initial_adapter(4);
  const auto distance = [&](double clip) {
    const auto update = train(all_clients(clients, 9, 1), global, {.steps = 1, .batch_size = 6, .clip_norm = clip});
    double sum = 0;
    for (std::size_t i = 0; i < global.values().size(); ++i)
      sum += std::pow(update[0].adapter.values()[i] - global.values()[i], 2);
    return std::sqrt(sum);
  };
  CHECK(distance(0) > 0.1);
  CHECK(distance(0.05) == doctest::Approx(0.05).epsilon(1e-4));
  CHECK(distance(1e6) == distance(0));
}

TEST_CASE("clipping bounds the step with FedProx's term in it") {
  const SoftmaxRegression<double> model;
  const auto clients = make_clients(model, toy_dataset(6), {{0, 1, 2, 3, 4, 5}}, Sgd{.lr = 1});
  const auto global = model.initial_adapter(4);
  const auto steps = [&](Index count) {  // of length 0.05 each, the second one away from where the term is zero
    return train(all_clients(clients, 9, 1), global,
                 {.steps = count, .batch_size = 6, .clip_norm = 0.05, .mu = 1000})[0]
        .adapter;
  };
  const auto first = steps(1), second = steps(2);
  double sum = 0;
  for (std::size_t i = 0; i < global.values().size(); ++i) sum += std::pow(second.values()[i] - first.values()[i], 2);
  CHECK(std::sqrt(sum) == doctest::Approx(0.05).epsilon(1e-3));
}

TEST_CASE("moments are reset each round, or kept in the store") {
  const SoftmaxRegression<float> model;
  const auto clients = make_clients(model, toy_dataset(60), toy_partition(60, 3), AdamW{.lr = 0.05});
  const auto global = model.initial_adapter(4);
  const auto again = [&](const LocalPlan& plan, TrainHooks<float> hooks) {
    const auto first = train(all_clients(clients, 9, 1), global, plan, hooks);
    return train(all_clients(clients, 9, 2), first[1].adapter, plan, hooks);
  };
  ClientStore<float> store;
  LocalPlan plan{.epochs = 2, .batch_size = 4};
  const auto reset = again(plan, {.store = &store});
  CHECK(store.entries().empty());
  plan.keep_optimizer_state = true;
  const auto kept = again(plan, {.store = &store});
  CHECK_FALSE(same_bits(reset[1].adapter, kept[1].adapter));
  REQUIRE(store.entries().size() == 3);
  for (const auto& [client, entry] : store.entries()) {
    CHECK(entry.round == 2);
    CHECK(entry.steps == 2 * kept[static_cast<std::size_t>(client)].metrics.steps);
    CHECK(entry.tensors.size() == 2);
    CHECK(entry.tensors.at("exp_avg").size() == global.values().size());
    CHECK(entry.tensors.at("exp_avg_sq").size() == global.values().size());
  }

  // Kept means continued: one epoch in each of two rounds is AdamW going on, not AdamW starting twice.
  Client<SoftmaxRegression<float>, AdamW> client = clients[2];
  AdamW::State<float> state;
  Adapter<float> by_hand = global;
  std::vector<float> gradient(by_hand.values().size());
  SoftmaxRegression<float>::Workspace workspace(model.backend());
  ClientStore<float> own;
  LocalPlan once{.epochs = 1, .batch_size = 100, .keep_optimizer_state = true};
  Adapter<float> trained = global;
  for (Index round = 1; round <= 4; ++round) {
    const auto order = batch_plan(client.examples, client.id, 9, round, once)[0][0];
    std::fill(gradient.begin(), gradient.end(), 0.0f);
    model.accumulate_gradient(workspace, *client.data, order, by_hand.values(), gradient,
                              1.0 / static_cast<double>(order.size()), {});
    client.optimizer.step(state, by_hand.values(), gradient, 0.05);
    trained =
        train(Cohort<Client<SoftmaxRegression<float>, AdamW>>{9, round, {&client}}, trained, once, {.store = &own})[0]
            .adapter;
    CHECK(same_bits(trained, by_hand));
  }
}

TEST_CASE("kept state of another optimizer or another adapter, and keeping without a store, are refused") {
  const SoftmaxRegression<float> model, wider({.rank = 5});
  const LocalPlan plan{.keep_optimizer_state = true};
  const auto adam = make_clients(model, toy_dataset(20), toy_partition(20, 2), AdamW{});
  const auto sgd = make_clients(model, toy_dataset(20), toy_partition(20, 2), Sgd{.momentum = 0.9});
  const auto other = make_clients(wider, toy_dataset(20), toy_partition(20, 2), AdamW{});
  CHECK_THROWS_AS(train(all_clients(adam, 1, 1), model.initial_adapter(1), plan), ConfigError);
  ClientStore<float> store;
  train(all_clients(adam, 1, 1), model.initial_adapter(1), plan, {.store = &store});
  CHECK_THROWS_AS(train(all_clients(sgd, 1, 2), model.initial_adapter(1), plan, {.store = &store}), ConfigError);
  CHECK_THROWS_AS(train(all_clients(other, 1, 2), wider.initial_adapter(1), plan, {.store = &store}), ConfigError);
}

TEST_CASE("cohorts and adapters that do not fit are refused") {
  const SoftmaxRegression<float> model, wider({.rank = 5});
  auto clients = make_clients(model, toy_dataset(20), toy_partition(20, 3), AdamW{});
  using C = Client<SoftmaxRegression<float>, AdamW>;
  CHECK_THROWS_AS(train(all_clients(clients, 1, 1), wider.initial_adapter(1), {}), ShapeError);
  CHECK_THROWS_AS(train(all_clients(clients, 1, 1), Adapter<float>(), {}), ShapeError);
  CHECK_THROWS_AS(train(Cohort<C>{1, 1, {&clients[1], &clients[0]}}, model.initial_adapter(1), {}), ConfigError);
  CHECK_THROWS_AS(train(Cohort<C>{1, 1, {&clients[1], &clients[1]}}, model.initial_adapter(1), {}), ConfigError);
  CHECK(train(Cohort<C>{1, 1, {}}, model.initial_adapter(1), {}).empty());
  clients[1].examples.clear();
  std::string message;
  try {
    train(all_clients(clients, 1, 5), model.initial_adapter(1), {});
  } catch (const ConfigError& error) {
    message = error.what();
  }
  CHECK(message == "[train, round 5, client 1] expected at least one example, got none");
}
