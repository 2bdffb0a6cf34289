// SPDX-License-Identifier: Apache-2.0
#include "fedlora/fed/sampling.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "fed/softmax_regression.hpp"
#include "fedlora/fed/client.hpp"
#include "fedlora/optim/adamw.hpp"

using namespace fedlora;
using tests::SoftmaxRegression;
using tests::toy_dataset;
using tests::toy_partition;

namespace {

using ToyClient = Client<SoftmaxRegression<float>, AdamW>;

const SoftmaxRegression<float>& model() {
  static const SoftmaxRegression<float> instance;
  return instance;
}

std::vector<ToyClient> toy_clients(Index count) {
  return make_clients(model(), toy_dataset(30 * count), toy_partition(30 * count, count), AdamW{});
}

std::vector<Index> ids(const Cohort<ToyClient>& cohort) {
  std::vector<Index> result;
  for (const ToyClient* client : cohort.clients) result.push_back(client->id);
  return result;
}

template <class Clients>
concept Samplable = requires(Clients&& clients) {
  sample_uniform(std::forward<Clients>(clients), {.fraction = 0.5});
};
template <class M>
concept MakesClients = requires(M&& m, std::vector<std::vector<Index>> partition) {
  make_clients(std::forward<M>(m), Dataset{}, partition, AdamW{});
};

}  // namespace

TEST_CASE("a cohort refers to clients, and clients to a model, neither of which may be a temporary") {
  static_assert(Samplable<std::vector<ToyClient>&> && Samplable<const std::vector<ToyClient>&>);
  static_assert(!Samplable<std::vector<ToyClient>>);
  static_assert(MakesClients<SoftmaxRegression<float>&> && MakesClients<const SoftmaxRegression<float>&>);
  static_assert(!MakesClients<SoftmaxRegression<float>>);
}

TEST_CASE("a cohort is a pure function of seed and round, sorted, without repetition") {
  const auto clients = toy_clients(20);
  for (Index round = 1; round <= 50; ++round) {
    for (const auto& cohort : {sample_uniform(clients, {.fraction = 0.25, .seed = 4, .round = round}),
                               sample_weighted(clients, {.count = 5, .seed = 4, .round = round})}) {
      CHECK(cohort.size() == 5);
      CHECK(cohort.round == round);
      CHECK(cohort.seed == 4);
      const auto chosen = ids(cohort);
      CHECK(std::set<Index>(chosen.begin(), chosen.end()).size() == 5);
      CHECK(std::is_sorted(chosen.begin(), chosen.end()));
    }
    CHECK(ids(sample_uniform(clients, {.fraction = 0.25, .seed = 4, .round = round})) ==
          ids(sample_uniform(clients, {.count = 5, .seed = 4, .round = round})));
  }
  std::set<std::vector<Index>> different;
  for (Index round = 1; round <= 20; ++round)
    for (std::uint64_t seed = 1; seed <= 5; ++seed)
      different.insert(ids(sample_uniform(clients, {.count = 5, .seed = seed, .round = round})));
  CHECK(different.size() > 95);
}

TEST_CASE("uniform sampling draws every client and every pair equally often") {
  const auto clients = toy_clients(6);
  std::map<std::pair<Index, Index>, int> pairs;
  const int draws = 6000;
  for (Index round = 1; round <= draws; ++round) {
    const auto chosen = ids(sample_uniform(clients, {.count = 2, .seed = 1, .round = round}));
    ++pairs[{chosen[0], chosen[1]}];
  }
  REQUIRE(pairs.size() == 15);
  double chi_squared = 0;
  for (const auto& [pair, count] : pairs) chi_squared += std::pow(count - draws / 15.0, 2) / (draws / 15.0);
  CHECK(chi_squared < 36.1);  // 14 degrees of freedom, p = 0.001
}

TEST_CASE("weighted sampling draws in proportion to examples") {
  const auto clients = toy_clients(5);  // 10, 20, 30, 40, 50 of 150 examples
  std::vector<int> first(5);
  const int draws = 8000;
  for (Index round = 1; round <= draws; ++round)
    ++first[static_cast<std::size_t>(ids(sample_weighted(clients, {.count = 1, .seed = 1, .round = round}))[0])];
  double chi_squared = 0;
  for (std::size_t k = 0; k < 5; ++k) {
    const double expected = draws * static_cast<double>(clients[k].num_examples()) / 150.0;
    chi_squared += std::pow(first[k] - expected, 2) / expected;
  }
  CHECK(chi_squared < 18.5);  // 4 degrees of freedom, p = 0.001
}

TEST_CASE("fractions are rounded, at least one client takes part, and senseless options are refused") {
  const auto clients = toy_clients(10);
  const auto size = [&](const SampleOptions& options) { return sample_uniform(clients, options).size(); };
  CHECK(size({.fraction = 0.3}) == 3);
  CHECK(size({.fraction = 0.29}) == 3);
  CHECK(size({.fraction = 0.001}) == 1);
  CHECK(size({.fraction = 1.0}) == 10);
  CHECK(size({.count = 10}) == 10);
  CHECK_THROWS_AS(size({}), ConfigError);
  CHECK_THROWS_AS(size({.fraction = 1.1}), ConfigError);
  CHECK_THROWS_AS(size({.fraction = -0.5}), ConfigError);
  CHECK_THROWS_AS(size({.fraction = std::nan("")}), ConfigError);
  CHECK_THROWS_AS(size({.count = 11}), ConfigError);
  CHECK_THROWS_AS(size({.count = -1}), ConfigError);
  CHECK_THROWS_AS(size({.fraction = 0.5, .count = 2}), ConfigError);
  const std::vector<ToyClient> nobody;
  CHECK_THROWS_AS(sample_uniform(nobody, {.fraction = 0.5}), ConfigError);
  CHECK_THROWS_AS(all_clients(nobody, 1, 1), ConfigError);
}

TEST_CASE("two clients of the same id cannot be told apart") {
  auto clients = toy_clients(3);
  clients[2].id = 0;
  CHECK_THROWS_AS(all_clients(clients, 1, 1), ConfigError);
}

TEST_CASE("clients without examples, with foreign examples, or with a senseless optimizer are refused") {
  const auto message = [](std::vector<std::vector<Index>> partition, const AdamW& optimizer) -> std::string {
    try {
      make_clients(model(), toy_dataset(10), std::move(partition), optimizer);
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  CHECK(message({{0, 1}, {}}, AdamW{}) == "[make_clients, client 1] expected at least one example, got none");
  CHECK(message({{0, 1}, {10}}, AdamW{}) == "[make_clients, client 1] expected examples in [0, 10), got 10");
  CHECK(message({{-1}}, AdamW{}).find("got -1") != std::string::npos);
  CHECK(message({}, AdamW{}).find("an empty partition") != std::string::npos);
  CHECK(message({{0}}, AdamW{.beta1 = 2}).find("AdamW, beta1") != std::string::npos);
  CHECK(message({{0, 1}, {9}}, AdamW{}) == "nothing was thrown");
  CHECK_THROWS_AS(make_clients(model(), std::shared_ptr<const Dataset>(), {{0}}, AdamW{}), ConfigError);
}

TEST_CASE("an idle client costs its list of examples and little else") {
  static_assert(sizeof(ToyClient) <= 128);
  const auto clients = toy_clients(50);
  for (const ToyClient& client : clients) {
    CHECK(client.data == clients.front().data);  // shared, not copied
    CHECK(client.examples.capacity() == client.examples.size());
  }
}
