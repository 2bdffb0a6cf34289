// SPDX-License-Identifier: Apache-2.0
// Partitions: the properties every one of them promises, over many sizes, seeds and skews; their statistics; their
// errors.
#include "fedlora/data/partition.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"

namespace {

using fedlora::ConfigError;
using fedlora::Index;
using fedlora::Partition;
using Labels = std::vector<std::int32_t>;

/// `per_class` examples of each label, in a random order.
Labels balanced(Index classes, Index per_class, std::uint64_t seed = 1) {
  Labels labels;
  for (Index c = 0; c < classes; ++c)
    for (Index i = 0; i < per_class; ++i) labels.push_back(static_cast<std::int32_t>(c));
  fedlora::RandomSequence(fedlora::derive_key(seed, fedlora::Purpose::user, 1)).shuffle(labels);
  return labels;
}

/// Labels of unequal frequency; a few numbers may not occur at all.
Labels unbalanced(Index examples, Index classes, std::uint64_t seed) {
  fedlora::RandomSequence random(fedlora::derive_key(seed, fedlora::Purpose::user, 2));
  Labels labels;
  for (Index i = 0; i < examples; ++i)
    labels.push_back(static_cast<std::int32_t>(static_cast<double>(classes) * random.uniform() * random.uniform() *
                                               random.uniform()));
  return labels;
}

std::vector<Index> sizes_of(const Partition& partition) {
  std::vector<Index> sizes;
  for (const auto& own : partition) sizes.push_back(static_cast<Index>(own.size()));
  return sizes;
}

/// What every partition promises.
void check_promises(const Partition& partition, Index examples, Index clients, Index least = 1) {
  REQUIRE(static_cast<Index>(partition.size()) == clients);
  std::vector<Index> all;
  for (const auto& own : partition) {
    REQUIRE(static_cast<Index>(own.size()) >= least);
    REQUIRE(std::is_sorted(own.begin(), own.end()));
    all.insert(all.end(), own.begin(), own.end());
  }
  std::sort(all.begin(), all.end());
  REQUIRE(static_cast<Index>(all.size()) == examples);
  for (Index i = 0; i < examples; ++i) REQUIRE(all[static_cast<std::size_t>(i)] == i);
  CHECK_NOTHROW(fedlora::check_partition(partition, examples));
}

/// The mean over clients of the share of the client's most frequent label.
double purity(const Labels& labels, const Partition& partition, Index classes) {
  const auto table = fedlora::label_distribution(labels, partition, classes);
  double sum = 0.0;
  for (Index k = 0; k < table.clients; ++k) {
    Index most = 0;
    for (Index c = 0; c < classes; ++c) most = std::max(most, table(k, c));
    sum += static_cast<double>(most) / static_cast<double>(table.examples(k));
  }
  return sum / static_cast<double>(table.clients);
}

template <class Make>
std::string error_of(Make make) {
  try {
    make();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("iid: disjoint, complete, even, seeded") {
  for (const Index examples : {1, 2, 7, 100, 1001})
    for (const Index clients : {1, 2, 3, 7, 50, 100, 1001}) {
      if (clients > examples) continue;
      const auto partition = fedlora::partition_iid(examples, {.clients = clients, .seed = 3});
      check_promises(partition, examples, clients);
      const auto sizes = sizes_of(partition);
      CHECK(std::is_sorted(sizes.rbegin(), sizes.rend()));
      CHECK(sizes.front() - sizes.back() <= 1);
      CHECK(partition == fedlora::partition_iid(examples, {.clients = clients, .seed = 3}));
      if (examples >= 100 && clients > 1 && clients < examples)
        CHECK(partition != fedlora::partition_iid(examples, {.clients = clients, .seed = 4}));
    }
}

TEST_CASE("iid: every example is equally likely to come to every client") {
  std::vector<int> met(40, 0);  // of the first client
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    const auto partition = fedlora::partition_iid(40, {.clients = 4, .seed = seed});
    for (const Index example : partition[0]) ++met[static_cast<std::size_t>(example)];
  }
  // 1000 expected, standard deviation sqrt(4000 · 1/4 · 3/4) = 27.4; five of them.
  for (const int count : met) CHECK(std::abs(count - 1000) < 137);
}

TEST_CASE("Dirichlet: disjoint, complete, at least the minimum, for every size, skew and seed") {
  std::uint64_t seed = 0;
  for (const double alpha : {1e-300, 1e-6, 1e-3, 0.05, 0.3, 1.0, 10.0, 1e6, 1e300})
    for (const Index clients : {1, 2, 5, 20, 100})
      for (const Index classes : {1, 2, 10, 77})
        for (const Index examples : {100, 1000, 3001}) {
          const auto labels = unbalanced(examples, classes, ++seed);
          CAPTURE(alpha);
          CAPTURE(clients);
          CAPTURE(classes);
          CAPTURE(examples);
          const auto partition =
              fedlora::partition_dirichlet(labels, {.clients = clients, .alpha = alpha, .seed = seed});
          check_promises(partition, examples, clients, std::max<Index>(1, std::min<Index>(10, examples / clients / 2)));
          CHECK(partition == fedlora::partition_dirichlet(labels, {.clients = clients, .alpha = alpha, .seed = seed}));
          const Index least = examples / clients;
          check_promises(fedlora::partition_dirichlet(
                             labels, {.clients = clients, .alpha = alpha, .seed = seed, .min_examples = least}),
                         examples, clients, least);
        }
}

TEST_CASE("Dirichlet: another seed, another partition") {
  const auto labels = balanced(4, 250);
  std::set<Partition> seen;
  for (std::uint64_t seed = 0; seed < 50; ++seed)
    seen.insert(fedlora::partition_dirichlet(labels, {.clients = 10, .alpha = 0.3, .seed = seed}));
  CHECK(seen.size() == 50);
}

TEST_CASE("Dirichlet: as many clients as examples, and one client") {
  const auto labels = balanced(3, 20);
  for (const double alpha : {1e-6, 0.3, 1e6}) {
    const auto one_each = fedlora::partition_dirichlet(labels, {.clients = 60, .alpha = alpha, .seed = 5});
    check_promises(one_each, 60, 60);
    CHECK(sizes_of(one_each) == std::vector<Index>(60, 1));
    check_promises(fedlora::partition_dirichlet(labels, {.clients = 1, .alpha = alpha, .seed = 5}), 60, 1, 60);
  }
}

TEST_CASE("Dirichlet: shares have the mean and the variance of the distribution") {
  // One label: client sizes are the shares themselves. For Dir(alpha) over k: mean 1/k, variance (1/k)(1 - 1/k)/(k
  // alpha + 1).
  constexpr Index clients = 5, examples = 2000;
  constexpr int draws = 1000;
  const Labels labels(static_cast<std::size_t>(examples), 0);
  for (const double alpha : {0.1, 0.5, 2.0, 20.0}) {
    CAPTURE(alpha);
    std::vector<double> sum(clients, 0.0), squares(clients, 0.0);
    for (int draw = 0; draw < draws; ++draw) {
      const auto sizes = sizes_of(fedlora::partition_dirichlet(
          labels, {.clients = clients, .alpha = alpha, .seed = static_cast<std::uint64_t>(draw), .min_examples = 1}));
      for (std::size_t k = 0; k < clients; ++k) {
        const double share = static_cast<double>(sizes[k]) / static_cast<double>(examples);
        sum[k] += share;
        squares[k] += share * share;
      }
    }
    const double expected = 0.2 * 0.8 / (clients * alpha + 1.0);
    for (std::size_t k = 0; k < clients; ++k) {
      const double mean = sum[k] / draws;
      const double variance = squares[k] / draws - mean * mean;
      CHECK(std::abs(mean - 0.2) < 5.0 * std::sqrt(expected / draws));
      CHECK(variance / expected > 0.8);
      CHECK(variance / expected < 1.2);
    }
  }
}

TEST_CASE("Dirichlet: alpha sets the skew") {
  const auto labels = balanced(10, 300);
  double last = 1.1;
  for (const double alpha : {1e-6, 0.1, 1.0, 10.0, 1e6}) {
    double mean = 0.0;
    for (std::uint64_t seed = 0; seed < 10; ++seed)
      mean += purity(labels, fedlora::partition_dirichlet(labels, {.clients = 20, .alpha = alpha, .seed = seed}), 10) /
              10.0;
    CHECK(mean < last);
    last = mean;
    if (alpha == 1e-6) CHECK(mean > 0.9);
    if (alpha == 1e6) CHECK(mean < 0.11);
  }
  // At 1e6 every client gets 15 of each label, give or take the rounding of two cuts.
  const auto table = fedlora::label_distribution(
      labels, fedlora::partition_dirichlet(labels, {.clients = 20, .alpha = 1e6, .seed = 1}), 10);
  for (const Index count : table.counts) CHECK(std::abs(count - 15) <= 1);
}

TEST_CASE("Dirichlet: the repair keeps the skew") {
  // At 1e-6 one client takes each of the four labels; sixteen are left with nothing and are filled up. Each of them
  // must end with one label only, and whoever had a label keeps most of it.
  const auto labels = balanced(4, 500);
  std::vector<Index> chosen(4, 0);  // the labels of those filled up
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto partition =
        fedlora::partition_dirichlet(labels, {.clients = 20, .alpha = 1e-6, .seed = seed, .min_examples = 10});
    check_promises(partition, 2000, 20, 10);
    const auto table = fedlora::label_distribution(labels, partition, 4);
    Index filled = 0;
    for (Index k = 0; k < 20; ++k) {
      Index kinds = 0;
      for (Index c = 0; c < 4; ++c) kinds += table(k, c) > 0 ? 1 : 0;
      if (table.examples(k) != 10) continue;
      CHECK(kinds == 1);
      for (Index c = 0; c < 4; ++c) chosen[static_cast<std::size_t>(c)] += table(k, c) > 0 ? 1 : 0;
      ++filled;
    }
    CHECK(filled >= 16);
    const auto sizes = sizes_of(partition);
    CHECK(*std::max_element(sizes.begin(), sizes.end()) >= 340);
  }
  // The label is the one each client's own draws prefer: 80 of 320 or so for each of the four, standard deviation 7.7.
  for (const Index number : chosen) CHECK(std::abs(number - 80) < 39);
}

TEST_CASE("Dirichlet: clients at or above the minimum only give, and only the largest do") {
  const auto labels = balanced(5, 200);
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    const auto before =
        fedlora::partition_dirichlet(labels, {.clients = 10, .alpha = 0.2, .seed = seed, .min_examples = 1});
    const auto after =
        fedlora::partition_dirichlet(labels, {.clients = 10, .alpha = 0.2, .seed = seed, .min_examples = 40});
    check_promises(after, 1000, 10, 40);
    for (std::size_t k = 0; k < 10; ++k) {
      if (before[k].size() < 40) {
        CHECK(after[k].size() == 40);
        if (before[k].size() > 1)  // one example may have been taken or given for the minimum of 1
          CHECK(std::includes(after[k].begin(), after[k].end(), before[k].begin(), before[k].end()));
      } else {
        CHECK(after[k].size() <= before[k].size());
        CHECK(after[k].size() >= 40);
        CHECK(std::includes(before[k].begin(), before[k].end(), after[k].begin(), after[k].end()));
      }
    }
  }
}

TEST_CASE("Dirichlet: large and hostile, and still quick") {
  const auto labels = balanced(2, 50000);
  check_promises(fedlora::partition_dirichlet(labels, {.clients = 10000, .alpha = 1e-3, .seed = 1, .min_examples = 10}),
                 100000, 10000, 10);
  // Label numbers may be anything that is not negative.
  const Labels far{0, 2147483647, 5, 5, 2147483647, 0};
  check_promises(fedlora::partition_dirichlet(far, {.clients = 3, .alpha = 0.5, .seed = 1}), 6, 3);
}

TEST_CASE("Dirichlet: what cannot be is an error that says so") {
  const auto labels = balanced(2, 50);
  const auto error = [&](fedlora::DirichletOptions options) {
    return error_of([&] { fedlora::partition_dirichlet(labels, options); });
  };
  CHECK(error({.clients = 20, .min_examples = 6}) ==
        "[Dirichlet partition, min_examples] expected clients times min_examples within the 100 examples, got 20 "
        "clients of at "
        "least 6");
  CHECK(error({.clients = 20, .min_examples = 5}) == "no error");
  CHECK(error({.min_examples = 0}) ==
        "[Dirichlet partition, min_examples] expected at least 1: no client may be empty, got 0");
  CHECK(error({.clients = 2, .min_examples = std::numeric_limits<Index>::max()}).find("clients times min_examples") !=
        std::string::npos);
  CHECK(error({.clients = 0}) == "[Dirichlet partition, clients] expected at least 1, got 0");
  CHECK(error({.clients = -3}).find("at least 1, got -3") != std::string::npos);
  CHECK(
      error({.clients = 101}) ==
      "[Dirichlet partition, clients] expected no more clients than the 100 examples, so that none is empty, got 101");
  for (const double alpha : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity(), 1e-310})
    CHECK(error({.alpha = alpha}).starts_with("[Dirichlet partition, alpha] expected a positive number, got "));
  CHECK(error_of([] {
          fedlora::partition_dirichlet(Labels{0, -1}, {.clients = 1});
        }) == "[Dirichlet partition, label of example 1] expected 0 or more, got -1");
  CHECK(error_of([] { fedlora::partition_dirichlet(Labels{}, {.clients = 1}); }).find("clients") != std::string::npos);
}

TEST_CASE("shards: the clients of McMahan et al.") {
  const auto labels = balanced(10, 600);
  const auto partition = fedlora::partition_shards(labels, {.clients = 100, .shards_per_client = 2, .seed = 1});
  check_promises(partition, 6000, 100, 60);
  CHECK(sizes_of(partition) == std::vector<Index>(100, 60));
  const auto table = fedlora::label_distribution(labels, partition, 10);
  Index both = 0;
  for (Index k = 0; k < 100; ++k) {
    Index kinds = 0;
    for (Index c = 0; c < 10; ++c) kinds += table(k, c) > 0 ? 1 : 0;
    CHECK(kinds <= 2);
    both += kinds == 2 ? 1 : 0;
  }
  CHECK(both > 70);  // 0.905 of them on average
  CHECK(partition == fedlora::partition_shards(labels, {.clients = 100, .shards_per_client = 2, .seed = 1}));
  CHECK(partition != fedlora::partition_shards(labels, {.clients = 100, .shards_per_client = 2, .seed = 2}));
}

TEST_CASE("shards: any sizes") {
  for (const Index examples : {6, 100, 1003})
    for (const Index clients : {1, 2, 5})
      for (const Index each : {1, 3, 20}) {
        if (clients * each > examples) continue;
        const auto labels = unbalanced(examples, 7, 9);
        const auto partition =
            fedlora::partition_shards(labels, {.clients = clients, .shards_per_client = each, .seed = 2});
        check_promises(partition, examples, clients, each * (examples / (clients * each)));
        for (const Index size : sizes_of(partition)) CHECK(size <= each * (examples / (clients * each) + 1));
      }
  CHECK(error_of([] { fedlora::partition_shards(Labels(10, 0), {.clients = 4, .shards_per_client = 3}); }) ==
        "[shards partition, shards_per_client] expected no more shards than the 10 examples, got 4 clients with 3 "
        "shards each");
  CHECK(error_of([] {
          fedlora::partition_shards(Labels(10, 0),
                                    {.clients = 4, .shards_per_client = std::numeric_limits<Index>::max()});
        }).find("no more shards") != std::string::npos);
  CHECK(error_of([] { fedlora::partition_shards(Labels(10, 0), {.clients = 4, .shards_per_client = 0}); }) ==
        "[shards partition, shards_per_client] expected at least 1, got 0");
  CHECK(error_of([] {
          fedlora::partition_shards(Labels(10, 0), {.clients = 11, .shards_per_client = 1});
        }).find("clients") != std::string::npos);
}

TEST_CASE("natural: one client per id, in bytewise order") {
  const std::vector<std::string> ids = {"b", "a", "b", "10", "9", "a", "B"};
  const auto natural = fedlora::partition_natural(ids);
  CHECK(natural.names == std::vector<std::string>{"10", "9", "B", "a", "b"});
  CHECK(natural.partition == Partition{{3}, {4}, {6}, {1, 5}, {0, 2}});
  check_promises(natural.partition, 7, 5);
  CHECK(error_of([] {
          fedlora::partition_natural(std::vector<std::string>{"a", ""});
        }) == "[natural partition, example 1] expected an id, got an empty one");
  CHECK(error_of([] {
          fedlora::partition_natural({});
        }).starts_with("[natural partition] expected an id for every example"));
}

TEST_CASE("quantity: disjoint, complete, at least the minimum, seeded") {
  std::uint64_t seed = 0;
  for (const double alpha : {1e-6, 0.1, 1.0, 1e6})
    for (const Index clients : {1, 3, 20, 100})
      for (const Index examples : {100, 1009}) {
        ++seed;
        const auto partition =
            fedlora::partition_quantity(examples, {.clients = clients, .alpha = alpha, .seed = seed});
        check_promises(partition, examples, clients, std::max<Index>(1, std::min<Index>(10, examples / clients / 2)));
        CHECK(partition == fedlora::partition_quantity(examples, {.clients = clients, .alpha = alpha, .seed = seed}));
        if (clients > 1)
          CHECK(partition !=
                fedlora::partition_quantity(examples, {.clients = clients, .alpha = alpha, .seed = seed + 1}));
        const auto power = fedlora::partition_quantity(
            examples, {.clients = clients, .exponent = alpha, .seed = seed, .min_examples = 1});
        check_promises(power, examples, clients);
      }
  const auto even = sizes_of(fedlora::partition_quantity(1000, {.clients = 10, .alpha = 1e6, .seed = 1}));
  for (const Index size : even) CHECK(std::abs(size - 100) <= 1);
  // Nearly all to one: the others are lifted to the minimum, and it pays for all of them.
  auto lifted =
      sizes_of(fedlora::partition_quantity(1000, {.clients = 10, .alpha = 1e-6, .seed = 1, .min_examples = 20}));
  std::sort(lifted.begin(), lifted.end());
  CHECK(lifted == std::vector<Index>{20, 20, 20, 20, 20, 20, 20, 20, 20, 820});
}

TEST_CASE("quantity: a power law") {
  // 1 + 1/2 + 1/3 + 1/6... with exponent 1 over 3 clients: shares 6/11, 3/11, 2/11.
  CHECK(sizes_of(fedlora::partition_quantity(1100, {.clients = 3, .exponent = 1.0, .seed = 1})) ==
        std::vector<Index>{600, 300, 200});
  CHECK(sizes_of(fedlora::partition_quantity(99, {.clients = 3, .exponent = 0.0, .seed = 1})) ==
        std::vector<Index>{33, 33, 33});
  CHECK(sizes_of(fedlora::partition_quantity(1000, {.clients = 4, .exponent = 1000.0, .seed = 1, .min_examples = 3})) ==
        std::vector<Index>{991, 3, 3, 3});
  for (const double exponent : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()})
    CHECK(error_of([&] {
            fedlora::partition_quantity(10, {.clients = 2, .exponent = exponent});
          }).starts_with("[quantity partition, exponent]"));
  CHECK(error_of([] {
          fedlora::partition_quantity(10, {.clients = 2, .alpha = 0.0});
        }).starts_with("[quantity partition, alpha]"));
  CHECK(error_of([] {
          fedlora::partition_quantity(10, {.clients = 4, .min_examples = 3});
        }).starts_with("[quantity partition, min_examples]"));
  CHECK(error_of([] { fedlora::partition_quantity(0, {.clients = 1}); }).starts_with("[quantity partition, clients]"));
}

TEST_CASE("the same seed gives these very partitions, on every machine") {
  const Labels labels{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2};
  CHECK(fedlora::partition_iid(12, {.clients = 3, .seed = 42}) ==
        Partition{{4, 7, 8, 10}, {2, 5, 9, 11}, {0, 1, 3, 6}});
  CHECK(fedlora::partition_dirichlet(labels, {.clients = 3, .alpha = 0.3, .seed = 42}) ==
        Partition{{2, 4, 5, 8, 11}, {0, 6}, {1, 3, 7, 9, 10}});
  CHECK(fedlora::partition_shards(labels, {.clients = 3, .shards_per_client = 2, .seed = 42}) ==
        Partition{{1, 4, 5, 8}, {0, 2, 3, 11}, {6, 7, 9, 10}});
  CHECK(fedlora::partition_quantity(12, {.clients = 3, .alpha = 0.5, .seed = 42}) ==
        Partition{{0, 7, 10}, {6, 8}, {1, 2, 3, 4, 5, 9, 11}});
}

TEST_CASE("label_distribution counts") {
  const Labels labels{0, 1, 1, 2, 0};
  const auto table = fedlora::label_distribution(labels, {{0, 4, 1}, {2, 3}, {}}, 4);
  CHECK(table.clients == 3);
  CHECK(table.labels == 4);
  CHECK(table.counts == std::vector<Index>{2, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0});
  CHECK(table(1, 2) == 1);
  CHECK(table.examples(0) == 3);
  CHECK(table.examples(2) == 0);
  CHECK_THROWS_AS(fedlora::label_distribution(labels, {{5}}, 4), fedlora::ShapeError);
  CHECK_THROWS_AS(fedlora::label_distribution(labels, {{-1}}, 4), fedlora::ShapeError);
  CHECK_THROWS_WITH_AS(fedlora::label_distribution(labels, {{0}, {3}}, 2),
                       "[label distribution, client 1, example 3] expected a label in [0, 2), got 2",
                       fedlora::ShapeError);
}

TEST_CASE("check_partition refuses what is no partition") {
  const auto error = [](const Partition& partition, Index examples) {
    return error_of([&] { fedlora::check_partition(partition, examples); });
  };
  CHECK(error({{0, 2}, {1}}, 3) == "no error");
  CHECK(error({{0, 1}, {}}, 2) == "[partition, client 1] expected at least one example, got none");
  CHECK(error({{0}, {0}}, 1) ==
        "[partition, client 1] expected examples that nobody else has, got example 0 a second time");
  CHECK(error({{0}, {2}}, 2) == "[partition, client 1] expected an example in [0, 2), got 2");
  CHECK(error({{0}, {-1}}, 2) == "[partition, client 1] expected an example in [0, 2), got -1");
  CHECK(error({{0}, {1}}, 3) == "[partition] expected all 3 examples, got 2");
}
