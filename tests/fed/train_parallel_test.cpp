// SPDX-License-Identifier: Apache-2.0
#include "fedlora/fed/train.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "fed/softmax_regression.hpp"
#include "fedlora/fed/aggregate.hpp"
#include "fedlora/fed/evaluate.hpp"
#include "fedlora/optim/adamw.hpp"
#include "fedlora/optim/sgd.hpp"

using namespace fedlora;
using tests::SoftmaxRegression;
using tests::toy_dataset;
using tests::toy_partition;

namespace {

template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

template <class T>
bool same_bits(const std::vector<Update<T>>& a, const std::vector<Update<T>>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Update<T>& x, const Update<T>& y) {
    return x.client == y.client && x.round == y.round && x.num_examples == y.num_examples &&
           std::memcmp(&x.metrics.train_loss, &y.metrics.train_loss, sizeof(double)) == 0 &&
           x.metrics.steps == y.metrics.steps && same_bits(x.adapter.values(), y.adapter.values());
  });
}

std::string message_of(const auto& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// A model that fails, in one way or another, at the first gradient of one client.
struct Faulty : SoftmaxRegression<float> {
  Index client = -1;
  int fault = 0;  // 1: a loss that is not a number; 2: a gradient that is infinite; 3: an exception of another library
  double accumulate_gradient(Workspace& ws, const Dataset& data, std::span<const Index> examples,
                             std::span<const float> parameters, std::span<float> gradient, double weight,
                             const StepAddress& at) const {
    const double loss =
        SoftmaxRegression<float>::accumulate_gradient(ws, data, examples, parameters, gradient, weight, at);
    if (at.client != client || at.step != 1) return loss;
    if (fault == 1) return std::nan("");
    if (fault == 2) gradient[3] = INFINITY;
    if (fault == 3) throw std::out_of_range("somebody else's");
    return loss;
  }
};

}  // namespace

TEST_CASE_TEMPLATE("updates have the same bits on 1, 2, 3 and 4 threads", T, float, double) {
  const SoftmaxRegression<T> model({.dropout = 0.2});
  const auto clients = make_clients(model, toy_dataset(200), toy_partition(200, 9), AdamW{.lr = 0.05});
  const auto cohort = sample_uniform(clients, {.fraction = 0.7, .seed = 3, .round = 2});
  const auto global = model.initial_adapter(1);
  LocalPlan plan{.epochs = 2, .batch_size = 8, .accumulation = 2, .clip_norm = 1.0, .mu = 0.1, .threads = 1};
  const auto reference = train(cohort, global, plan);
  REQUIRE(reference.size() == 6);
  CHECK_FALSE(same_bits(reference.front().adapter.values(), global.values()));
  for (const int threads : {2, 3, 4, 16, 0}) {
    plan.threads = threads;
    CHECK(same_bits(train(cohort, global, plan), reference));
  }
}

TEST_CASE_TEMPLATE("threads without a client share micro-batches, and leave no trace in the bits", T, float, double) {
  const SoftmaxRegression<T> model({.dropout = 0.2});
  const auto clients = make_clients(model, toy_dataset(200), toy_partition(200, 2), AdamW{.lr = 0.05});
  const auto global = model.initial_adapter(1);
  SoftmaxRegression<T>::unscoped_calls = 0;
  for (const Index count : {1, 2}) {
    const auto cohort = sample_uniform(clients, {.count = count, .seed = 3, .round = 2});
    LocalPlan plan{.epochs = 2, .batch_size = 16, .accumulation = 4, .threads = 1};
    const auto reference = train(cohort, global, plan);
    for (const int threads : {2, 3, 4, 7, 16}) {
      plan.threads = threads;
      CHECK(same_bits(train(cohort, global, plan), reference));
    }
  }
  CHECK(SoftmaxRegression<T>::unscoped_calls == 0);
}

TEST_CASE("updates do not depend on which other clients take part, nor on the order in which clients are registered") {
  const SoftmaxRegression<float> model({.dropout = 0.2});
  auto clients = make_clients(model, toy_dataset(120), toy_partition(120, 6), AdamW{.lr = 0.05});
  const auto global = model.initial_adapter(1);
  const LocalPlan plan{.threads = 2};
  const auto all = train(all_clients(clients, 3, 2), global, plan);
  std::reverse(clients.begin(), clients.end());
  CHECK(same_bits(train(all_clients(clients, 3, 2), global, plan), all));
  Cohort<Client<SoftmaxRegression<float>, AdamW>> alone{3, 2, {&clients[1]}};
  CHECK(same_bits(train(alone, global, plan), {all[static_cast<std::size_t>(clients[1].id)]}));
}

TEST_CASE("updates come in order of client, with their facts, and every worker limits the backend's threads") {
  const SoftmaxRegression<float> model;
  const auto clients = make_clients(model, toy_dataset(100), toy_partition(100, 5), Sgd{.lr = 0.1});
  SoftmaxRegression<float>::unscoped_calls = 0;
  const auto updates =
      train(all_clients(clients, 3, 7), model.initial_adapter(1), {.epochs = 3, .batch_size = 8, .threads = 3});
  CHECK(SoftmaxRegression<float>::unscoped_calls == 0);
  REQUIRE(updates.size() == 5);
  for (std::size_t k = 0; k < updates.size(); ++k) {
    const auto examples = clients[k].num_examples();
    CHECK(updates[k].client == static_cast<Index>(k));
    CHECK(updates[k].round == 7);
    CHECK(updates[k].num_examples == examples);
    CHECK(updates[k].metrics.steps == 3 * ((examples + 7) / 8));
    CHECK(updates[k].metrics.loss_count == 3 * examples);
    CHECK(updates[k].metrics.train_loss > 0);
    CHECK(updates[k].metrics.seconds >= 0);
  }
}

TEST_CASE("a loss or gradient that is not finite names round, client and step") {
  for (const int fault : {1, 2}) {
    Faulty model;
    model.client = 2;
    model.fault = fault;
    const auto clients = make_clients(model, toy_dataset(100), toy_partition(100, 5), Sgd{.lr = 0.1});
    const auto global = model.initial_adapter(1);
    const std::vector<float> before(global.values().begin(), global.values().end());
    CommunicationLedger ledger;
    ClientStore<float> store;
    const LocalPlan plan{.threads = 2, .keep_optimizer_state = true};
    const auto call = [&] { train(all_clients(clients, 3, 4), global, plan, ledger, {.store = &store}); };
    CHECK_THROWS_AS(call(), DivergenceError);
    const std::string message = message_of(call);
    CHECK(message.find("round 4, client 2, step 1") != std::string::npos);
    CHECK(message.find(fault == 1 ? "finite loss" : "finite gradient") != std::string::npos);
    CHECK(same_bits(global.values(), std::span<const float>(before)));
    CHECK(ledger == CommunicationLedger{});
    CHECK(store.entries().empty());
  }
}

TEST_CASE("parameters that overflow are an error, not an update") {
  const SoftmaxRegression<float> model;
  const auto clients = make_clients(model, toy_dataset(40), toy_partition(40, 2), Sgd{.lr = 1e39});
  const std::string message =
      message_of([&] { train(all_clients(clients, 3, 1), model.initial_adapter(1), {.threads = 2}); });
  CHECK(message.find("step 0] expected finite parameters") != std::string::npos);
}

TEST_CASE("what a worker throws comes back as an error of the library that names its client") {
  Faulty model;
  model.client = 3;
  model.fault = 3;
  const auto clients = make_clients(model, toy_dataset(100), toy_partition(100, 5), Sgd{.lr = 0.1});
  const auto call = [&] { train(all_clients(clients, 3, 4), model.initial_adapter(1), {.threads = 2}); };
  CHECK_THROWS_AS(call(), Error);
  CHECK(message_of(call) == "round 4, client 3: somebody else's");
}

TEST_CASE("cancellation is seen between two steps, and keeps nothing") {
  const SoftmaxRegression<float> model;
  const auto clients = make_clients(model, toy_dataset(100), toy_partition(100, 5), AdamW{});
  CommunicationLedger ledger;
  ClientStore<float> store;
  std::atomic<int> asked{0};
  TrainHooks<float> hooks;
  hooks.store = &store;
  hooks.cancelled = [&] { return ++asked > 10; };
  CHECK_THROWS_AS(train(all_clients(clients, 3, 1), model.initial_adapter(1),
                        {.threads = 2, .keep_optimizer_state = true}, ledger, hooks),
                  Cancelled);
  CHECK(asked <= 10 + 2);
  CHECK(ledger == CommunicationLedger{});
  CHECK(store.entries().empty());
}

TEST_CASE("progress counts every step and every client once") {
  const SoftmaxRegression<float> model;
  const auto clients = make_clients(model, toy_dataset(100), toy_partition(100, 5), AdamW{});
  TrainHooks<float> hooks;
  std::vector<Index> steps;
  std::set<Index> finished;
  hooks.on_step = [&](const TrainProgress& p) {
    steps.push_back(p.steps_done);
    CHECK(p.round == 2);
    CHECK(p.clients_total == 5);
  };
  Index last_total = 0;
  hooks.on_client = [&](const TrainProgress& p, const Update<float>& update) {
    CHECK(update.client == p.client);
    CHECK(p.clients_done == static_cast<Index>(finished.size()) + 1);
    finished.insert(p.client);
    last_total = p.steps_total;
  };
  const auto updates =
      train(all_clients(clients, 3, 2), model.initial_adapter(1), {.epochs = 2, .batch_size = 4, .threads = 3}, hooks);
  Index expected = 0;
  for (const auto& update : updates) expected += update.metrics.steps;
  CHECK(last_total == expected);
  REQUIRE(static_cast<Index>(steps.size()) == expected);
  for (std::size_t i = 0; i < steps.size(); ++i) CHECK(steps[i] == static_cast<Index>(i) + 1);
  CHECK(finished.size() == 5);
}

TEST_CASE("each client may receive an adapter of its own, and be evaluated with it") {
  const SoftmaxRegression<float> model;
  const auto clients = make_clients(model, toy_dataset(120), toy_partition(120, 4), AdamW{.lr = 0.05});
  std::vector<Adapter<float>> own;
  for (std::uint64_t k = 0; k < 4; ++k) own.push_back(model.initial_adapter(k));
  const auto broadcast = [&](Index client) -> const Adapter<float>& { return own[static_cast<std::size_t>(client)]; };
  const auto cohort = all_clients(clients, 3, 1);
  const auto before = evaluate_clients(cohort, broadcast, 3);
  const auto updates = train(cohort, broadcast, {.epochs = 20, .threads = 3});
  for (std::size_t k = 0; k < 4; ++k) {
    CHECK(same_bits(train(Cohort<Client<SoftmaxRegression<float>, AdamW>>{3, 1, {&clients[k]}}, own[k], {.epochs = 20}),
                    {updates[k]}));
    own[k] = updates[k].adapter;
  }
  const auto after = evaluate_clients(cohort, broadcast, 3);
  for (std::size_t k = 0; k < 4; ++k) {
    CHECK(after[k].examples == clients[k].num_examples());
    CHECK(after[k].loss < before[k].loss);
  }
}
