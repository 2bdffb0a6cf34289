// SPDX-License-Identifier: Apache-2.0
// The generator against its authors' vectors, and every distribution against its law, with fixed seeds.
#include "fedlora/core/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

namespace fedlora {
namespace {

constexpr RandomKey key_of(std::uint32_t low, std::uint32_t high) { return {low | (std::uint64_t{high} << 32)}; }

/// Largest distance between the empirical distribution of `draws` and `cdf` (Kolmogorov and Smirnov), times sqrt(n).
/// Above 1.95 in one of a thousand samples.
template <class Cdf>
double kolmogorov(std::vector<double> draws, Cdf&& cdf) {
  std::sort(draws.begin(), draws.end());
  const auto n = static_cast<double>(draws.size());
  double worst = 0;
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const double p = cdf(draws[i]);
    worst = std::max({worst, p - static_cast<double>(i) / n, static_cast<double>(i + 1) / n - p});
  }
  return worst * std::sqrt(n);
}

template <class Draw>
std::vector<double> sample(std::size_t count, Draw&& draw) {
  std::vector<double> draws(count);
  for (double& value : draws) value = draw();
  return draws;
}

double mean_of(const std::vector<double>& draws, int power = 1, double centre = 0) {
  double sum = 0;
  for (const double value : draws) sum += std::pow(value - centre, power);
  return sum / static_cast<double>(draws.size());
}

/// The regularised lower incomplete gamma function P(a, x), by its series.
double gamma_cdf(double a, double x) {
  double term = 1 / a;
  double sum = term;
  for (int n = 1; n < 5000 && term > 1e-17 * sum; ++n) {
    term *= x / (a + n);
    sum += term;
  }
  return std::min(1.0, sum * std::exp(-x + a * std::log(x) - std::lgamma(a)));
}

}  // namespace

TEST_CASE("Philox4x32-10 gives the known answers of Random123") {
  CHECK(philox<10>({0, 0, 0, 0}, key_of(0, 0)) == RandomWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox<10>({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, key_of(0xffffffff, 0xffffffff)) ==
        RandomWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox<10>({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, key_of(0xa4093822, 0x299f31d0)) ==
        RandomWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("Philox4x32-7 gives the known answers of Random123") {
  CHECK(philox<7>({0, 0, 0, 0}, key_of(0, 0)) == RandomWords{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48});
  CHECK(philox<7>({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, key_of(0xffffffff, 0xffffffff)) ==
        RandomWords{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662});
  CHECK(philox<7>({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, key_of(0xa4093822, 0x299f31d0)) ==
        RandomWords{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a});
}

TEST_CASE("keys differ whenever any part of their address does") {
  std::set<std::uint64_t> seen;
  std::size_t made = 0;
  for (std::uint64_t seed : {0, 1, 2})
    for (const Purpose purpose : {Purpose::adapter_dropout, Purpose::hidden_dropout, Purpose::user})
      for (int a = -1; a < 12; ++a)
        for (int b = 0; b < 12; ++b) {
          seen.insert(derive_key(seed, purpose, a, b).bits);
          ++made;
        }
  for (int a = 0; a < 12; ++a, ++made) seen.insert(derive_key(0, Purpose::user, a).bits);
  CHECK(seen.size() == made);
  CHECK(derive_key(7, Purpose::split, 1, 2, 3) == derive_key(derive_key(7, Purpose::split, 1), 2, 3));
  CHECK(derive_key(7, Purpose::split, 1, 2) != derive_key(7, Purpose::split, 2, 1));
}

TEST_CASE("a seed's meaning does not change between versions") {
  // Runs are repeatable across releases only if these stay as they are.
  CHECK(derive_key(42, Purpose::partition).bits == 0x35f5d69215812004ull);
  RandomSequence draws(derive_key(42, Purpose::user, 1));
  CHECK(draws.next_u32() == 0xc67dd99au);
  CHECK(draws.next_u64() == 0x1b99d45cf7c022ffull);
}

TEST_CASE("a sequence is the blocks of Philox one after another") {
  const RandomKey key = derive_key(3, Purpose::user);
  RandomSequence draws(key);
  for (std::uint32_t block = 0; block < 5; ++block)
    for (const std::uint32_t word : philox<10>({block, 0, 0, 0}, key)) CHECK(draws.next_u32() == word);
  RandomSequence low_first(key);
  const RandomWords words = philox<10>({0, 0, 0, 0}, key);
  CHECK(low_first.next_u64() == (words[0] | (std::uint64_t{words[1]} << 32)));
}

TEST_CASE("uniform draws follow the uniform law") {
  RandomSequence draws(derive_key(11, Purpose::user));
  const auto values = sample(20000, [&] { return draws.uniform(); });
  CHECK(*std::min_element(values.begin(), values.end()) >= 0);
  CHECK(*std::max_element(values.begin(), values.end()) < 1);
  CHECK(kolmogorov(values, [](double x) { return x; }) < 1.95);
  CHECK(std::abs(mean_of(values, 2, 0.5) - 1.0 / 12) < 4 * std::sqrt(1.0 / 180 / 20000));
  double correlation = 0;
  for (std::size_t i = 1; i < values.size(); ++i) correlation += (values[i] - 0.5) * (values[i - 1] - 0.5);
  CHECK(std::abs(correlation * 12 / 20000) < 4 / std::sqrt(20000.0));
}

TEST_CASE("normal draws follow the normal law") {
  RandomSequence draws(derive_key(12, Purpose::user));
  const auto values = sample(20000, [&] { return draws.normal(); });
  CHECK(kolmogorov(values, [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }) < 1.95);
  CHECK(std::abs(mean_of(values)) < 4 / std::sqrt(20000.0));
  CHECK(std::abs(mean_of(values, 2) - 1) < 4 * std::sqrt(2.0 / 20000));
  CHECK(std::abs(mean_of(values, 3)) < 4 * std::sqrt(15.0 / 20000));
  CHECK(std::abs(mean_of(values, 4) - 3) < 4 * std::sqrt(96.0 / 20000));
}

TEST_CASE("gamma draws follow the gamma law for shapes above and below one") {
  for (const double shape : {0.05, 0.3, 0.7, 1.0, 1.5, 4.0, 30.0}) {
    CAPTURE(shape);
    RandomSequence draws(derive_key(13, Purpose::user, static_cast<int>(100 * shape)));
    const auto values = sample(8000, [&] { return draws.gamma(shape); });
    CHECK(kolmogorov(values, [&](double x) { return x <= 0 ? 0.0 : gamma_cdf(shape, x); }) < 1.95);
    CHECK(std::abs(mean_of(values) - shape) < 4 * std::sqrt(shape / 8000));
  }
}

TEST_CASE("the logarithm of a gamma draw stays finite where the draw would be zero") {
  // For a tiny shape a, -a log(draw) is close to an exponential variable of mean 1.
  for (const double shape : {1e-3, 1e-6, 1e-12}) {
    CAPTURE(shape);
    RandomSequence draws(derive_key(14, Purpose::user));
    const auto values = sample(4000, [&] { return -shape * draws.log_gamma_draw(shape); });
    for (const double value : values) REQUIRE(std::isfinite(value));
    CHECK(kolmogorov(values, [](double x) { return x < 0 ? 0.0 : 1 - std::exp(-x); }) < 1.95);
  }
}

TEST_CASE("below draws every number equally often") {
  for (const std::uint64_t bound : {1, 2, 3, 7, 10, 64}) {
    CAPTURE(bound);
    RandomSequence draws(derive_key(15, Purpose::user, bound));
    std::vector<double> counts(bound, 0.0);
    const double each = 1000;
    for (std::uint64_t i = 0; i < 1000 * bound; ++i) counts[draws.below(bound)] += 1;
    double chi = 0;
    for (const double count : counts) chi += (count - each) * (count - each) / each;
    const auto degrees = static_cast<double>(bound) - 1;
    CHECK(chi <= degrees + 4 * std::sqrt(2 * degrees));
  }
}

TEST_CASE("below has no bias where the bound does not divide 2^64") {
  // With plain `% bound` the first 2^62 numbers of bound 3 · 2^62 would come twice as often as the others: half of all
  // draws instead of a third.
  const std::uint64_t bound = 3ull << 62;
  RandomSequence draws(derive_key(16, Purpose::user));
  int low = 0;
  for (int i = 0; i < 6000; ++i) {
    const std::uint64_t draw = draws.below(bound);
    REQUIRE(draw < bound);
    low += draw < (1ull << 62) ? 1 : 0;
  }
  CHECK(std::abs(low - 2000) < 4 * std::sqrt(6000 * 2.0 / 9));
}

TEST_CASE("shuffle gives every order equally often, and keeps every element") {
  std::vector<int> counts(24, 0);
  RandomSequence draws(derive_key(17, Purpose::user));
  for (int i = 0; i < 24000; ++i) {
    std::vector<int> order = {0, 1, 2, 3};
    draws.shuffle(order);
    int rank = 0;  // Lehmer code
    for (int a = 0; a < 4; ++a) {
      int smaller = 0;
      for (int b = a + 1; b < 4; ++b)
        smaller += order[static_cast<std::size_t>(b)] < order[static_cast<std::size_t>(a)];
      rank = rank * (4 - a) + smaller;
    }
    ++counts[static_cast<std::size_t>(rank)];
  }
  double chi = 0;
  for (const int count : counts) chi += (count - 1000.0) * (count - 1000.0) / 1000;
  CHECK(chi < 23 + 4 * std::sqrt(46.0));

  std::vector<int> many(1000);
  for (int i = 0; i < 1000; ++i) many[static_cast<std::size_t>(i)] = i;
  std::vector<int> shuffled = many;
  draws.shuffle(shuffled);
  CHECK(shuffled != many);
  CHECK(std::is_permutation(shuffled.begin(), shuffled.end(), many.begin()));
  std::vector<int> empty;
  draws.shuffle(empty);
  CHECK(empty.empty());
}

TEST_CASE("dropout's threshold and scale are those of its probability") {
  CHECK_FALSE(static_cast<bool>(Dropout()));
  CHECK_FALSE(static_cast<bool>(Dropout(RandomKey{1}, 0.0)));
  CHECK(Dropout().scale == 1.0f);
  const Dropout half(RandomKey{1}, 0.5);
  CHECK(static_cast<bool>(half));
  CHECK(half.threshold == 0x80000000u);
  CHECK(half.scale == 2.0f);
  CHECK(Dropout(RandomKey{1}, 0.75).scale == 4.0f);
  CHECK(Dropout(RandomKey{1}, 0.25).threshold == 0x40000000u);
}

}  // namespace fedlora
