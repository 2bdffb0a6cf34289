// SPDX-License-Identifier: Apache-2.0
// Splits: exact sizes, nothing lost, fractions kept within every label.
#include "fedlora/data/split.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"

namespace {

using fedlora::ConfigError;
using fedlora::Index;
using fedlora::Split;
using fedlora::SplitOptions;
using Labels = std::vector<std::int32_t>;

void check_complete(const Split& split, Index examples) {
  std::vector<Index> all;
  for (const auto* part : {&split.train, &split.validation, &split.test}) {
    REQUIRE(std::is_sorted(part->begin(), part->end()));
    all.insert(all.end(), part->begin(), part->end());
  }
  std::sort(all.begin(), all.end());
  REQUIRE(static_cast<Index>(all.size()) == examples);
  for (Index i = 0; i < examples; ++i) REQUIRE(all[static_cast<std::size_t>(i)] == i);
}

std::vector<std::size_t> sizes_of(const Split& split) {
  return {split.train.size(), split.validation.size(), split.test.size()};
}

bool same(const Split& a, const Split& b) {
  return a.train == b.train && a.validation == b.validation && a.test == b.test;
}

std::string error_of(Index examples, const SplitOptions& options) {
  try {
    fedlora::split_examples(examples, options);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("split: exact sizes by largest remainder") {
  using Sizes = std::vector<std::size_t>;
  const auto sizes = [](Index n, double train, double validation, double test) {
    return sizes_of(fedlora::split_examples(n, {.train = train, .validation = validation, .test = test}));
  };
  CHECK(sizes(100, 0.8, 0.1, 0.1) == Sizes{80, 10, 10});
  CHECK(sizes(10, 0.75, 0.0, 0.25) == Sizes{8, 0, 2});     // 7.5 and 2.5: the earlier part
  CHECK(sizes(11, 0.7, 0.15, 0.15) == Sizes{8, 2, 1});     // 7.7, 1.65, 1.65
  CHECK(sizes(100, 0.29, 0.0, 0.71) == Sizes{29, 0, 71});  // 0.29 * 100 is 28.999… in binary
  CHECK(sizes(10, 0.7f, 0.2f, 0.1f) == Sizes{7, 2, 1});    // fractions that went through a float
  // Fractions that sum to 1 + 9e-7 are taken for what they mean, or their quotas would sum to more than there is.
  CHECK(sizes(4'000'000, 0.7000004, 0.2000004, 0.1000001) == Sizes{2'799'999, 800'001, 400'000});
  CHECK(sizes(3, 1.0, 0.0, 0.0) == Sizes{3, 0, 0});
  CHECK(sizes(3, 1.0 / 3, 1.0 / 3, 1.0 / 3) == Sizes{1, 1, 1});
  CHECK(sizes_of(fedlora::split_examples(Index{10}, {})) == Sizes{8, 0, 2});
}

TEST_CASE("split: disjoint, complete, seeded") {
  fedlora::RandomSequence random(fedlora::derive_key(3, fedlora::Purpose::user));
  for (int i = 0; i < 300; ++i) {
    const auto n = static_cast<Index>(30 + random.below(200));
    const double train = 0.2 + 0.5 * random.uniform();
    const double validation = 0.05 + 0.15 * random.uniform();
    SplitOptions options{.train = train,
                         .validation = validation,
                         .test = 1.0 - train - validation,
                         .seed = static_cast<std::uint64_t>(i)};
    const Split split = fedlora::split_examples(n, options);
    check_complete(split, n);
    CHECK(std::abs(static_cast<double>(split.train.size()) - train * static_cast<double>(n)) < 1.0);
    CHECK(std::abs(static_cast<double>(split.validation.size()) - validation * static_cast<double>(n)) < 1.0);
    CHECK(same(split, fedlora::split_examples(n, options)));
    CHECK(same(split, fedlora::split_examples(Labels(static_cast<std::size_t>(n), 7), options)));  // labels not used
    options.seed += 1000;
    CHECK_FALSE(same(split, fedlora::split_examples(n, options)));
  }
}

TEST_CASE("split: stratified keeps the fractions of every label, and the sizes of the whole") {
  fedlora::RandomSequence random(fedlora::derive_key(4, fedlora::Purpose::user));
  for (int i = 0; i < 300; ++i) {
    const auto n = static_cast<Index>(20 + random.below(300));
    const auto classes = 1 + random.below(i % 3 == 0 ? 80 : 6);
    Labels labels;
    std::map<std::int32_t, Index> total;
    for (Index e = 0; e < n; ++e) {
      labels.push_back(static_cast<std::int32_t>(static_cast<double>(classes) * random.uniform() * random.uniform()) *
                       3);
      ++total[labels.back()];
    }
    const double train = 0.3 + 0.4 * random.uniform();
    SplitOptions options{.train = train,
                         .validation = 0.1,
                         .test = 0.9 - train,
                         .seed = static_cast<std::uint64_t>(i),
                         .stratified = true};
    const Split split = fedlora::split_examples(labels, options);
    check_complete(split, n);
    SplitOptions plain = options;
    plain.stratified = false;
    CHECK(sizes_of(split) == sizes_of(fedlora::split_examples(n, plain)));
    const double fractions[] = {options.train, options.validation, options.test};
    std::size_t p = 0;
    for (const auto* part : {&split.train, &split.validation, &split.test}) {
      std::map<std::int32_t, Index> count;
      for (const Index example : *part) ++count[labels[static_cast<std::size_t>(example)]];
      for (const auto& [label, size] : total) {
        const double quota = fractions[p] * static_cast<double>(size);
        CHECK(static_cast<double>(count[label]) > quota - 1.0);
        CHECK(static_cast<double>(count[label]) <= std::floor(quota) + 2.0);
      }
      ++p;
    }
    CHECK(same(split, fedlora::split_examples(labels, options)));
    options.seed += 1000;
    CHECK_FALSE(same(split, fedlora::split_examples(labels, options)));
  }
}

TEST_CASE("split: stratified and even is exact") {
  Labels labels;
  for (int i = 0; i < 1000; ++i) labels.push_back(i % 10);
  const Split split =
      fedlora::split_examples(labels, {.train = 0.7, .validation = 0.1, .test = 0.2, .seed = 1, .stratified = true});
  std::map<std::int32_t, int> count;
  for (const Index example : split.validation) ++count[labels[static_cast<std::size_t>(example)]];
  for (int c = 0; c < 10; ++c) CHECK(count[c] == 10);
}

TEST_CASE("split: stratified, the largest remainders are served first") {
  // Quotas 6.4 2.8 0.8 of label 0, 12.8 5.6 1.6 of label 1, 19.2 8.4 2.4 of all, which is 19 9 2.
  Labels labels(30, 1);
  std::fill_n(labels.begin(), 10, 0);
  const Split split =
      fedlora::split_examples(labels, {.train = 0.64, .validation = 0.28, .test = 0.08, .seed = 1, .stratified = true});
  const auto zeros = [&](const std::vector<Index>& part) {
    return std::count_if(part.begin(), part.end(), [&](Index e) { return labels[static_cast<std::size_t>(e)] == 0; });
  };
  CHECK(sizes_of(split) == std::vector<std::size_t>{19, 9, 2});
  CHECK(zeros(split.train) == 6);
  CHECK(zeros(split.validation) == 3);
  CHECK(zeros(split.test) == 1);
}

TEST_CASE("split: the same seed gives these very splits, on every machine") {
  using Numbers = std::vector<Index>;
  SplitOptions options{.train = 0.5, .validation = 0.25, .test = 0.25, .seed = 42};
  const Split plain = fedlora::split_examples(12, options);
  CHECK(plain.train == Numbers{0, 1, 3, 6, 9, 10});
  CHECK(plain.validation == Numbers{2, 4, 11});
  options.stratified = true;
  const Split stratified = fedlora::split_examples(Labels{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}, options);
  CHECK(stratified.train == Numbers{0, 1, 3, 8, 10, 11});
  CHECK(stratified.validation == Numbers{2, 6, 7});
}

TEST_CASE("split: what cannot be is an error") {
  CHECK(error_of(10, {.train = 0.8, .validation = 0.1, .test = 0.2})
            .starts_with("[split] expected fractions for training, validation and test that sum to 1, got 1.1"));
  CHECK(error_of(10, {.train = 1.2, .validation = -0.2, .test = 0.0}) ==
        "[split, train] expected a fraction in [0, 1], got 1.200000");
  CHECK(error_of(10, {.train = std::nan(""), .validation = 0.0, .test = 0.2})
            .starts_with("[split, train] expected a fraction"));
  CHECK(error_of(3, {.train = 0.9, .validation = 0.0, .test = 0.1}) ==
        "[split, test] expected a fraction that comes to at least one example, got 0.100000 of 3");
  CHECK(error_of(0, {}) == "[split] expected at least one example, got 0");
  CHECK(error_of(-5, {}) == "[split] expected at least one example, got -5");
  CHECK(error_of(10, {.stratified = true}) == "[split, stratified] expected labels, got a number of examples only");
  CHECK_THROWS_AS(fedlora::split_examples(Labels{}, {.stratified = true}), ConfigError);
}
