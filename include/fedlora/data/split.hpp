// SPDX-License-Identifier: Apache-2.0
// Splits of one data set into training, validation and test examples.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

struct SplitOptions {
  double train = 0.8;  ///< fractions of the examples; the three sum to 1
  double validation = 0.0;
  double test = 0.2;
  std::uint64_t seed = 0;
  bool stratified = false;  ///< the same fractions of every label; needs the labels
};

/// Example numbers, ascending in each part.
struct Split {
  std::vector<Index> train, validation, test;
};

namespace detail {

using SplitParts = std::array<Index, 3>;

inline std::array<double, 3> checked_fractions(const SplitOptions& options) {
  const std::array<double, 3> fractions{options.train, options.validation, options.test};
  constexpr std::array<const char*, 3> names{"train", "validation", "test"};
  for (std::size_t p = 0; p < 3; ++p)
    if (!(fractions[p] >= 0.0 && fractions[p] <= 1.0))
      fail<ConfigError>(std::string("split, ") + names[p], "a fraction in [0, 1]", std::to_string(fractions[p]));
  const double sum = fractions[0] + fractions[1] + fractions[2];
  if (std::abs(sum - 1.0) > 1e-6)
    fail<ConfigError>("split", "fractions for training, validation and test that sum to 1", std::to_string(sum));
  return {fractions[0] / sum, fractions[1] / sum, fractions[2] / sum};
}

/// The three quotas of `examples`, rounded down, and what was cut off each.
inline std::pair<SplitParts, std::array<double, 3>> quotas(const std::array<double, 3>& fractions, Index examples) {
  SplitParts whole{};
  std::array<double, 3> rest{};
  for (std::size_t p = 0; p < 3; ++p) {
    const double quota = fractions[p] * static_cast<double>(examples);
    whole[p] = static_cast<Index>(std::floor(quota));
    rest[p] = quota - std::floor(quota);
  }
  return {whole, rest};
}

/// The sizes of the parts by largest remainder; of equal remainders the earlier part's comes first.
inline SplitParts part_sizes(const std::array<double, 3>& fractions, Index examples) {
  auto [sizes, rest] = quotas(fractions, examples);
  Index left = examples - sizes[0] - sizes[1] - sizes[2];
  for (; left > 0; --left) {
    const auto most = static_cast<std::size_t>(std::max_element(rest.begin(), rest.end()) - rest.begin());
    ++sizes[most];
    rest[most] = -1.0;
  }
  constexpr std::array<const char*, 3> names{"train", "validation", "test"};
  for (std::size_t p = 0; p < 3; ++p)
    if (fractions[p] > 0.0 && sizes[p] == 0)
      fail<ConfigError>(std::string("split, ") + names[p], "a fraction that comes to at least one example",
                        std::to_string(fractions[p]) + " of " + std::to_string(examples));
  return sizes;
}

/// Hands the next sizes[p] examples of `order` to every part.
inline void deal_parts(std::span<const Index> order, const SplitParts& sizes, Split& split) {
  auto next = order.begin();
  std::size_t p = 0;
  for (auto* part : {&split.train, &split.validation, &split.test}) {
    part->insert(part->end(), next, next + sizes[p]);
    next += sizes[p++];
  }
}

inline void sort_parts(Split& split) {
  for (auto* part : {&split.train, &split.validation, &split.test}) std::sort(part->begin(), part->end());
}

}  // namespace detail

/// Splits `examples` examples at random. The sizes are exact: the fractions of `examples`, rounded by largest
/// remainder. Throws ConfigError for fractions that are negative or do not sum to 1, a fraction above 0 that comes to
/// no example, no examples, and `stratified`, which needs labels. Stream: derive_key(seed, Purpose::split, 0).
inline Split split_examples(Index examples, const SplitOptions& options) {
  const auto fractions = detail::checked_fractions(options);
  if (options.stratified) fail<ConfigError>("split, stratified", "labels", "a number of examples only");
  if (examples < 1) fail<ConfigError>("split", "at least one example", std::to_string(examples));
  const auto sizes = detail::part_sizes(fractions, examples);
  std::vector<Index> order(static_cast<std::size_t>(examples));
  std::iota(order.begin(), order.end(), Index{0});
  RandomSequence(derive_key(options.seed, Purpose::split, 0)).shuffle(order);
  Split split;
  detail::deal_parts(order, sizes, split);
  detail::sort_parts(split);
  return split;
}

/// Splits labelled examples; when `stratified`, every label in the same fractions. Then the sizes of the parts are
/// still exactly those of the other overload, and every label's share of a part is its quota rounded down plus at most
/// two. Streams: derive_key(seed, Purpose::split, 0), stratified (1, label).
inline Split split_examples(std::span<const std::int32_t> labels, const SplitOptions& options) {
  const auto examples = static_cast<Index>(labels.size());
  if (!options.stratified) return split_examples(examples, options);
  const auto fractions = detail::checked_fractions(options);
  if (examples < 1) fail<ConfigError>("split", "at least one example", "none");
  auto missing = detail::part_sizes(fractions, examples);  // of every part, once all quotas rounded down are given

  std::map<std::int32_t, std::vector<Index>> groups;
  for (std::size_t i = 0; i < labels.size(); ++i) groups[labels[i]].push_back(static_cast<Index>(i));
  std::vector<detail::SplitParts> sizes;
  std::vector<Index> left;                                          // of every label
  std::vector<std::tuple<double, std::size_t, std::size_t>> cells;  // (-remainder, label, part)
  for (const auto& [label, group] : groups) {
    const auto [whole, rest] = detail::quotas(fractions, static_cast<Index>(group.size()));
    for (std::size_t p = 0; p < 3; ++p) {
      missing[p] -= whole[p];
      cells.emplace_back(-rest[p], sizes.size(), p);
    }
    left.push_back(static_cast<Index>(group.size()) - whole[0] - whole[1] - whole[2]);
    sizes.push_back(whole);
  }
  // What is left of the labels is what the parts still miss. The largest remainders come first; a second pass gives
  // whatever the first could not place, and the sums of both sides see to it that it ends with nothing left.
  std::sort(cells.begin(), cells.end());
  for (int pass = 0; pass < 2; ++pass) {
    for (const auto& [rest, label, part] : cells) {
      const Index most = pass == 0 ? (rest < 0.0 ? 1 : 0) : left[label];
      const Index given = std::min({most, left[label], missing[part]});
      if (given <= 0) continue;
      sizes[label][part] += given;
      left[label] -= given;
      missing[part] -= given;
    }
  }

  Split split;
  std::size_t g = 0;
  for (auto& [label, group] : groups) {
    RandomSequence(derive_key(options.seed, Purpose::split, 1, label)).shuffle(group);
    detail::deal_parts(group, sizes[g++], split);
  }
  detail::sort_parts(split);
  return split;
}

}  // namespace fedlora
