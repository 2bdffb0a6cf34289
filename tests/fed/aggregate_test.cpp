// SPDX-License-Identifier: Apache-2.0
#include "fedlora/fed/aggregate.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "fed/softmax_regression.hpp"
#include "fedlora/core/random.hpp"

using namespace fedlora;
using tests::same_bits;
using tests::SoftmaxRegression;

namespace {

template <class T>
std::vector<Update<T>> random_updates(const SoftmaxRegression<T>& model, std::vector<Index> examples) {
  std::vector<Update<T>> updates;
  for (std::size_t k = 0; k < examples.size(); ++k) {
    Update<T> update{static_cast<Index>(k), 1, examples[k], {}, model.initial_adapter(100 + k)};
    // Sizes far apart, so that the order of a sum shows in its last bits.
    for (T& value : update.adapter.values()) value *= static_cast<T>(std::pow(10.0, static_cast<double>(k % 5) - 2.0));
    updates.push_back(std::move(update));
  }
  return updates;
}

/// An algorithm that would only ever see masked sums.
template <class T, LinearAggregator<T> A>
constexpr bool composes_with_masking(const A&) {
  return true;
}
template <class T>
constexpr bool composes_with_masking(const auto&) {
  return false;
}

}  // namespace

TEST_CASE("a lambda is a gather and nothing more; FedAvg is both") {
  const auto first = [](const Adapter<float>&, std::span<const Update<float>> updates) {
    return updates.front().adapter;
  };
  static_assert(GatherAggregator<decltype(first), float>);
  static_assert(!LinearAggregator<decltype(first), float>);
  static_assert(LinearAggregator<FedAvg, double> && GatherAggregator<FedAvg, double>);
  const auto wrong = [](const Adapter<float>&, int) { return 1; };
  static_assert(!GatherAggregator<decltype(wrong), float>);
  CHECK(composes_with_masking<float>(FedAvg{}));
  CHECK_FALSE(composes_with_masking<float>(first));
}

TEST_CASE("the mean of equal adapters is that adapter") {
  const SoftmaxRegression<float> single;
  const SoftmaxRegression<double> both;
  std::vector<Update<float>> updates;
  std::vector<Update<double>> wide;
  for (Index k = 0; k < 7; ++k) {
    updates.push_back({k, 1, 3 * k + 1, {}, single.initial_adapter(9)});
    wide.push_back({k, 1, 3 * k + 1, {}, both.initial_adapter(9)});
  }
  CHECK(same_bits(FedAvg{}(single.initial_adapter(1), updates), single.initial_adapter(9)));
  const auto mean = FedAvg{}(both.initial_adapter(1), wide);
  for (std::size_t i = 0; i < mean.values().size(); ++i)
    CHECK(std::abs(mean.values()[i] - wide[0].adapter.values()[i]) <= 4e-16 * std::abs(mean.values()[i]));
}

TEST_CASE("clients weigh as much as they have examples, or all the same") {
  const SoftmaxRegression<double> model;
  const auto updates = random_updates(model, {10, 1, 250, 31, 4});
  const auto by_examples = FedAvg{}(model.initial_adapter(1), updates);
  const auto uniform = FedAvg{.weighting = ClientWeight::uniform}(model.initial_adapter(1), updates);
  for (std::size_t i = 0; i < by_examples.values().size(); ++i) {
    long double weighted = 0, plain = 0;
    for (const auto& update : updates) {
      weighted += static_cast<long double>(update.num_examples) * update.adapter.values()[i] / 296.0L;
      plain += update.adapter.values()[i] / 5.0L;
    }
    CHECK(by_examples.values()[i] == doctest::Approx(static_cast<double>(weighted)).epsilon(1e-13));
    CHECK(uniform.values()[i] == doctest::Approx(static_cast<double>(plain)).epsilon(1e-13));
  }
}

TEST_CASE("the mean is linear in the adapters") {
  const SoftmaxRegression<double> model;
  const auto global = model.initial_adapter(1);
  auto x = random_updates(model, {3, 5, 8}), y = x, z = x;
  for (std::size_t k = 0; k < 3; ++k) {
    y[k].adapter = model.initial_adapter(7 * k + 2);
    for (std::size_t i = 0; i < global.values().size(); ++i)
      z[k].adapter.values()[i] = 2.0 * x[k].adapter.values()[i] - 0.5 * y[k].adapter.values()[i];
  }
  const auto mx = FedAvg{}(global, x), my = FedAvg{}(global, y), mz = FedAvg{}(global, z);
  for (std::size_t i = 0; i < global.values().size(); ++i)
    CHECK(std::abs(mz.values()[i] - (2.0 * mx.values()[i] - 0.5 * my.values()[i])) < 1e-13);
}

TEST_CASE_TEMPLATE("the order of arrival leaves no trace, and streaming equals the one call", T, float, double) {
  const SoftmaxRegression<T> model;
  const auto global = model.initial_adapter(1);
  auto updates = random_updates(model, {10, 1, 250, 31, 4, 77, 13, 2, 900});
  const auto reference = FedAvg{}(global, updates);
  RandomSequence random(derive_key(1, Purpose::user));
  for (int trial = 0; trial < 20; ++trial) {
    random.shuffle(updates);
    CHECK(same_bits(FedAvg{}(global, updates), reference));
  }
  std::sort(updates.begin(), updates.end(), [](const auto& a, const auto& b) { return a.client < b.client; });
  const FedAvg aggregate;
  auto sum = aggregate.begin(global);
  for (const auto& update : updates) aggregate.add(sum, update);
  CHECK(same_bits(aggregate.finish(sum), reference));
}

TEST_CASE("without updates the global adapter stays") {
  const SoftmaxRegression<float> model;
  const auto global = model.initial_adapter(1);
  CHECK(same_bits(FedAvg{}(global, {}), global));
}

TEST_CASE("updates that do not fit are refused by client, and the sum stays as it was") {
  const SoftmaxRegression<float> model, wider({.rank = 3});
  const auto global = model.initial_adapter(1);
  const auto updates = random_updates(model, {10, 5, 3});
  const FedAvg aggregate;
  auto sum = aggregate.begin(global);
  aggregate.add(sum, updates[1]);
  const auto before = aggregate.finish(sum);

  CHECK_THROWS_AS(aggregate.add(sum, updates[1]), ConfigError);  // twice
  CHECK_THROWS_AS(aggregate.add(sum, updates[0]), ConfigError);  // out of order
  auto other = updates[2];
  other.adapter = wider.initial_adapter(1);
  CHECK_THROWS_AS(aggregate.add(sum, other), ShapeError);
  other = updates[2];
  other.adapter = Adapter<float>();
  CHECK_THROWS_AS(aggregate.add(sum, other), ShapeError);
  other = updates[2];
  other.num_examples = 0;
  CHECK_THROWS_AS(aggregate.add(sum, other), ConfigError);
  other = updates[2];
  other.adapter.values().back() = std::numeric_limits<float>::quiet_NaN();
  std::string message;
  try {
    aggregate.add(sum, other);
  } catch (const DivergenceError& error) {
    message = error.what();
  }
  CHECK(message == "[FedAvg, round 1, client 2] expected finite numbers in the update, got some that are not");
  CHECK(same_bits(aggregate.finish(sum), before));
}

TEST_CASE("layouts that are equal, though not the same object, agree") {
  const SoftmaxRegression<float> here, there;
  REQUIRE(here.layout() != there.layout());
  CHECK_NOTHROW(FedAvg{}(here.initial_adapter(1), random_updates(there, {1, 2})));
}
