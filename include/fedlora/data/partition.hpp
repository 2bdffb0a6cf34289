// SPDX-License-Identifier: Apache-2.0
// Ways to deal the examples of one data set to simulated clients. Every partition is disjoint and complete, gives every
// client at least one example (or is an error), lists each client's examples in ascending order, and depends on its
// arguments alone.
//
// Random streams (core/random.hpp): derive_key(seed, Purpose::partition, kind, …) with kind 1 iid, 2 Dirichlet, 3
// shards, 4 quantity, and the rest as each function says.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Per client, the numbers of its examples.
using Partition = std::vector<std::vector<Index>>;

struct IidOptions {
  Index clients = 10;
  std::uint64_t seed = 0;
};

struct DirichletOptions {
  Index clients = 10;
  double alpha = 0.5;  ///< concentration: small is skewed (one client takes a class), large is even
  std::uint64_t seed = 0;
  /// Every client's least number of examples. Left out, it is 10, but no more than half of the mean client, and at
  /// least 1.
  std::optional<Index> min_examples = {};
};

struct ShardOptions {
  Index clients = 10;
  Index shards_per_client = 2;
  std::uint64_t seed = 0;
};

struct QuantityOptions {
  Index clients = 10;
  double alpha = 0.5;  ///< sizes in the proportions of one Dirichlet(alpha) draw
  /// When set, sizes are those of a power law instead: client k gets a share in proportion to (k + 1)^-exponent.
  std::optional<double> exponent = {};
  std::uint64_t seed = 0;
  std::optional<Index> min_examples = {};  ///< as in DirichletOptions
};

/// A partition by somebody else's grouping.
struct NaturalPartition {
  Partition partition;
  std::vector<std::string> names;  ///< the id of each client
};

/// How many examples of each label each client has.
struct LabelTable {
  Index clients = 0;
  Index labels = 0;
  std::vector<Index> counts;  ///< (clients, labels), row-major

  Index operator()(Index client, Index label) const {
    return counts[static_cast<std::size_t>(client * labels + label)];
  }
  /// The number of examples of a client.
  Index examples(Index client) const {
    const auto row = counts.begin() + client * labels;
    return std::accumulate(row, row + labels, Index{0});
  }
};

namespace detail {

enum class PartitionKind : std::uint64_t { iid = 1, dirichlet = 2, shards = 3, quantity = 4 };

template <class... Address>
RandomSequence partition_stream(std::uint64_t seed, PartitionKind kind, Address... address) {
  return RandomSequence(derive_key(seed, Purpose::partition, kind, address...));
}

inline void check_clients(const std::string& where, Index clients, Index examples) {
  if (clients < 1) fail<ConfigError>(where + ", clients", "at least 1", std::to_string(clients));
  if (clients > examples)
    fail<ConfigError>(where + ", clients",
                      "no more clients than the " + std::to_string(examples) + " examples, so that none is empty",
                      std::to_string(clients));
}

inline void check_alpha(const std::string& where, double alpha) {
  // Below 1e-300 the logarithm of a Gamma draw itself leaves the range of a double.
  if (!(alpha >= 1e-300) || !std::isfinite(alpha))
    fail<ConfigError>(where + ", alpha", "a positive number", std::to_string(alpha));
}

inline Index least_examples(const std::string& where, std::optional<Index> asked, Index clients, Index examples) {
  if (!asked) return std::max<Index>(1, std::min<Index>(10, examples / clients / 2));
  if (*asked < 1)
    fail<ConfigError>(where + ", min_examples", "at least 1: no client may be empty", std::to_string(*asked));
  if (*asked > examples / clients)
    fail<ConfigError>(where + ", min_examples",
                      "clients times min_examples within the " + std::to_string(examples) + " examples",
                      std::to_string(clients) + " clients of at least " + std::to_string(*asked));
  return *asked;
}

inline std::vector<Index> counted_up(Index n) {
  std::vector<Index> numbers(static_cast<std::size_t>(n));
  std::iota(numbers.begin(), numbers.end(), Index{0});
  return numbers;
}

/// Hands out `order` from its front, sizes[k] examples to client k, each client's sorted.
inline Partition deal(std::span<const Index> order, std::span<const Index> sizes) {
  Partition partition(sizes.size());
  auto next = order.begin();
  for (std::size_t k = 0; k < sizes.size(); ++k) {
    partition[k].assign(next, next + sizes[k]);
    next += sizes[k];
    std::sort(partition[k].begin(), partition[k].end());
  }
  return partition;
}

/// The examples of each label, labels ascending.
inline std::map<std::int32_t, std::vector<Index>> examples_by_label(const std::string& where,
                                                                    std::span<const std::int32_t> labels) {
  std::map<std::int32_t, std::vector<Index>> groups;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0)
      fail<ConfigError>(where + ", label of example " + std::to_string(i), "0 or more", std::to_string(labels[i]));
    groups[labels[i]].push_back(static_cast<Index>(i));
  }
  return groups;
}

/// log Σ exp(values), for values that may be far below the range of exp.
inline double log_sum_exp(std::span<const double> values) {
  const double top = *std::max_element(values.begin(), values.end());
  double sum = 0.0;
  for (const double value : values) sum += std::exp(value - top);
  return top + std::log(sum);
}

/// Whole numbers in proportion to the shares exp(log_shares) that sum to `total`: the shares are laid end to end and
/// every cut goes to the nearest whole number, so that no place is favoured.
inline std::vector<Index> cut_in_proportion(std::span<const double> log_shares, Index total) {
  const double log_sum = log_sum_exp(log_shares);
  std::vector<Index> sizes(log_shares.size());
  double laid = 0.0;
  Index cut = 0;
  for (std::size_t k = 0; k < sizes.size(); ++k) {
    laid += std::exp(log_shares[k] - log_sum);
    Index next =
        k + 1 == sizes.size() ? total : static_cast<Index>(std::floor(laid * static_cast<double>(total) + 0.5));
    next = std::clamp(next, cut, total);
    sizes[k] = next - cut;
    cut = next;
  }
  return sizes;
}

/// Holders of something, the largest first (of equals, the lowest number). Sizes only shrink, and are looked up when a
/// holder comes to the top.
class LargestFirst {
 public:
  void add(Index size, std::size_t holder) { heap_.push({size, std::numeric_limits<std::size_t>::max() - holder}); }

  /// The largest holder that has more than `least` and for which `usable(holder)`; none is left when the optional is
  /// empty.
  template <class Usable>
  std::optional<std::size_t> top(std::span<const Index> sizes, Index least, Usable usable) {
    while (!heap_.empty()) {
      const auto [size, reversed] = heap_.top();
      const std::size_t holder = std::numeric_limits<std::size_t>::max() - reversed;
      if (size == sizes[holder] && size > least && usable(holder)) return holder;
      heap_.pop();
      if (size != sizes[holder] && sizes[holder] > least) add(sizes[holder], holder);
    }
    return std::nullopt;
  }

 private:
  std::priority_queue<std::pair<Index, std::size_t>> heap_;
};

}  // namespace detail

/// Shuffles all examples and deals them in parts whose sizes differ by at most one (the larger first).
/// Throws ConfigError for fewer than one client and for more clients than examples. Stream: (1).
inline Partition partition_iid(Index examples, const IidOptions& options) {
  detail::check_clients("iid partition", options.clients, examples);
  auto order = detail::counted_up(examples);
  detail::partition_stream(options.seed, detail::PartitionKind::iid).shuffle(order);
  std::vector<Index> sizes(static_cast<std::size_t>(options.clients), examples / options.clients);
  for (Index k = 0; k < examples % options.clients; ++k) ++sizes[static_cast<std::size_t>(k)];
  return detail::deal(order, sizes);
}

/// Label skew: for every label, the shares of the clients are one draw from a symmetric Dirichlet(alpha), and the
/// label's shuffled examples are cut in these shares (Yurochkin et al. 2019, "Bayesian nonparametric federated learning
/// of neural networks", section 4; the benchmarks that followed call it LDA after Hsu et al. 2019, arXiv 1909.06335).
///
/// There is one draw, never a second: clients below `min_examples` are brought up to it afterwards, in the order of
/// their numbers, one example at a time. Its label is the one in which the client is furthest behind the mix of labels
/// that its own draws ask for, so that a client that was to have one label keeps it; it comes from the largest client
/// that holds the label and can spare one. Shares are kept as logarithms, so that an alpha of 1e-6 is exact.
///
/// `labels`: one per example, 0 or more. Throws ConfigError for an alpha that is not a positive number, a client count
/// below 1 or above the examples, clients × min_examples above the examples, a negative label. Streams: (2, 0, label)
/// shuffles, (2, 1, label, client) draws a share.
inline Partition partition_dirichlet(std::span<const std::int32_t> labels, const DirichletOptions& options) {
  const std::string where = "Dirichlet partition";
  const auto examples = static_cast<Index>(labels.size());
  detail::check_clients(where, options.clients, examples);
  detail::check_alpha(where, options.alpha);
  const Index least = detail::least_examples(where, options.min_examples, options.clients, examples);
  const auto clients = static_cast<std::size_t>(options.clients);
  constexpr auto kind = detail::PartitionKind::dirichlet;
  auto groups = detail::examples_by_label(where, labels);

  const auto log_share = [&](std::int32_t label, std::size_t client) {
    return detail::partition_stream(options.seed, kind, 1, label, client).log_gamma_draw(options.alpha);
  };

  // held[client][g]: the examples of the g-th label that the client has; labels it lacks are absent.
  std::vector<std::map<std::size_t, std::vector<Index>>> held(clients);
  std::vector<Index> sizes(clients, 0);
  std::vector<double> log_sums;
  std::vector<double> shares(clients);
  std::size_t g = 0;
  for (auto& [label, group] : groups) {
    detail::partition_stream(options.seed, kind, 0, label).shuffle(group);
    for (std::size_t k = 0; k < clients; ++k) shares[k] = log_share(label, k);
    log_sums.push_back(detail::log_sum_exp(shares));
    const auto cuts = detail::cut_in_proportion(shares, static_cast<Index>(group.size()));
    auto next = group.begin();
    for (std::size_t k = 0; k < clients; ++k) {
      if (cuts[k] == 0) continue;
      held[k][g].assign(next, next + cuts[k]);
      next += cuts[k];
      sizes[k] += cuts[k];
    }
    ++g;
  }

  if (std::any_of(sizes.begin(), sizes.end(), [&](Index size) { return size < least; })) {
    std::vector<detail::LargestFirst> givers(groups.size());  // per label
    for (std::size_t k = 0; k < clients; ++k)
      if (sizes[k] > least)
        for (const auto& [label_index, own] : held[k]) givers[label_index].add(sizes[k], k);
    std::vector<double> mix(groups.size());
    for (std::size_t k = 0; k < clients; ++k) {
      if (sizes[k] >= least) continue;
      std::size_t label_index = 0;
      for (const auto& [label, group] : groups) {
        mix[label_index] = std::log(static_cast<double>(group.size())) + log_share(label, k) - log_sums[label_index];
        ++label_index;
      }
      const double log_sum = detail::log_sum_exp(mix);
      for (double& part : mix) part = std::exp(part - log_sum) * static_cast<double>(least);
      while (sizes[k] < least) {
        // While somebody is below the minimum, somebody else is above it, because clients × minimum is within the
        // examples.
        std::optional<std::size_t> from;
        std::size_t chosen = 0;
        double furthest = 0.0;
        for (std::size_t c = 0; c < mix.size(); ++c) {
          const auto own = held[k].find(c);
          const double behind = mix[c] - (own == held[k].end() ? 0.0 : static_cast<double>(own->second.size()));
          if (from && behind <= furthest) continue;
          const auto giver = givers[c].top(sizes, least, [&](std::size_t other) { return held[other].contains(c); });
          if (!giver) continue;
          from = giver;
          chosen = c;
          furthest = behind;
        }
        auto& source = held[*from][chosen];
        held[k][chosen].push_back(source.back());
        source.pop_back();
        if (source.empty()) held[*from].erase(chosen);
        --sizes[*from];
        ++sizes[k];
      }
    }
  }

  Partition partition(clients);
  for (std::size_t k = 0; k < clients; ++k) {
    for (const auto& [label_index, own] : held[k]) partition[k].insert(partition[k].end(), own.begin(), own.end());
    std::sort(partition[k].begin(), partition[k].end());
  }
  return partition;
}

/// The pathological label skew of McMahan et al. 2017 ("Communication-efficient learning of deep networks from
/// decentralized data", section 3): examples sorted by label are cut into clients × shards_per_client shards of nearly
/// equal size, and every client is dealt shards_per_client of them at random. Within a label the order is shuffled
/// first.
///
/// Throws ConfigError for counts below 1, more shards than examples, a negative label. Streams: (3, 0, label), (3, 1).
inline Partition partition_shards(std::span<const std::int32_t> labels, const ShardOptions& options) {
  const std::string where = "shards partition";
  const auto examples = static_cast<Index>(labels.size());
  constexpr auto kind = detail::PartitionKind::shards;
  detail::check_clients(where, options.clients, examples);
  if (options.shards_per_client < 1)
    fail<ConfigError>(where + ", shards_per_client", "at least 1", std::to_string(options.shards_per_client));
  if (options.shards_per_client > examples / options.clients)
    fail<ConfigError>(where + ", shards_per_client",
                      "no more shards than the " + std::to_string(examples) + " examples",
                      std::to_string(options.clients) + " clients with " + std::to_string(options.shards_per_client) +
                          " shards each");
  std::vector<Index> order;
  order.reserve(labels.size());
  for (auto& [label, group] : detail::examples_by_label(where, labels)) {
    auto shuffled = group;
    detail::partition_stream(options.seed, kind, 0, label).shuffle(shuffled);
    order.insert(order.end(), shuffled.begin(), shuffled.end());
  }
  const Index shards = options.clients * options.shards_per_client;
  auto dealt = detail::counted_up(shards);
  detail::partition_stream(options.seed, kind, 1).shuffle(dealt);
  // The first examples % shards shards hold one example more.
  const auto begin_of = [&](Index shard) { return shard * (examples / shards) + std::min(shard, examples % shards); };
  Partition partition(static_cast<std::size_t>(options.clients));
  for (Index i = 0; i < shards; ++i) {
    auto& own = partition[static_cast<std::size_t>(i / options.shards_per_client)];
    const Index shard = dealt[static_cast<std::size_t>(i)];
    own.insert(own.end(), order.begin() + begin_of(shard), order.begin() + begin_of(shard + 1));
  }
  for (auto& own : partition) std::sort(own.begin(), own.end());
  return partition;
}

/// One client per distinct id, clients in the bytewise order of their ids. `ids`: one per example.
/// Throws ConfigError when there are none and for an empty id.
inline NaturalPartition partition_natural(std::span<const std::string> ids) {
  if (ids.empty()) fail<ConfigError>("natural partition", "an id for every example", "no examples, or no id column");
  std::map<std::string_view, std::vector<Index>> groups;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i].empty()) fail<ConfigError>("natural partition, example " + std::to_string(i), "an id", "an empty one");
    groups[ids[i]].push_back(static_cast<Index>(i));
  }
  NaturalPartition natural;
  for (auto& [name, own] : groups) {
    natural.names.emplace_back(name);
    natural.partition.push_back(std::move(own));
  }
  return natural;
}

/// Quantity skew: examples are dealt at random, but in unequal numbers: in the shares of one Dirichlet(alpha) draw over
/// the clients (Li et al. 2022, "Federated learning on non-IID data silos", section 4), or of a power law, client 0 the
/// largest. Clients below `min_examples` are brought up to it at the cost of the largest.
///
/// Throws ConfigError for an alpha that is not a positive number, an exponent that is negative or not finite, and for
/// the counts that partition_dirichlet refuses. Streams: (4, 0) shuffles, (4, 1, client) draws a share.
inline Partition partition_quantity(Index examples, const QuantityOptions& options) {
  const std::string where = "quantity partition";
  constexpr auto kind = detail::PartitionKind::quantity;
  detail::check_clients(where, options.clients, examples);
  if (options.exponent) {
    if (!(*options.exponent >= 0.0) || !std::isfinite(*options.exponent))
      fail<ConfigError>(where + ", exponent", "a finite number of at least 0", std::to_string(*options.exponent));
  } else {
    detail::check_alpha(where, options.alpha);
  }
  const Index least = detail::least_examples(where, options.min_examples, options.clients, examples);
  const auto clients = static_cast<std::size_t>(options.clients);
  std::vector<double> shares(clients);
  for (std::size_t k = 0; k < clients; ++k)
    shares[k] = options.exponent ? -*options.exponent * std::log(static_cast<double>(k + 1))
                                 : detail::partition_stream(options.seed, kind, 1, k).log_gamma_draw(options.alpha);
  auto sizes = detail::cut_in_proportion(shares, examples);
  detail::LargestFirst givers;
  for (std::size_t k = 0; k < clients; ++k)
    if (sizes[k] > least) givers.add(sizes[k], k);
  for (std::size_t k = 0; k < clients; ++k) {
    for (; sizes[k] < least; ++sizes[k]) --sizes[*givers.top(sizes, least, [](std::size_t) { return true; })];
  }
  auto order = detail::counted_up(examples);
  detail::partition_stream(options.seed, kind, 0).shuffle(order);
  return detail::deal(order, sizes);
}

/// A label for every example that has a number instead, for the partitions that go by labels: its quantile. Group g of
/// `groups` holds the numbers from the g-th part of the sorted ones on; equal numbers go together, so that there may be
/// fewer groups. Numbered 0, 1, … in ascending order.
/// Throws ConfigError for fewer than one group and a number that is not finite.
inline std::vector<std::int32_t> quantile_groups(std::span<const double> numbers, Index groups = 10) {
  if (groups < 1) fail<ConfigError>("quantile groups", "at least 1", std::to_string(groups));
  for (std::size_t i = 0; i < numbers.size(); ++i)
    if (!std::isfinite(numbers[i]))
      fail<ConfigError>("quantile groups, number " + std::to_string(i), "a finite one", std::to_string(numbers[i]));
  std::vector<Index> order = detail::counted_up(static_cast<Index>(numbers.size()));
  const auto number = [&](Index i) { return numbers[static_cast<std::size_t>(i)]; };
  std::sort(order.begin(), order.end(), [&](Index a, Index b) { return number(a) < number(b); });
  std::vector<std::int32_t> group(numbers.size());
  std::int32_t current = -1;
  Index last_part = -1;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || number(order[i]) != number(order[i - 1])) {
      const Index part = static_cast<Index>(i) * groups / static_cast<Index>(order.size());
      if (part != std::exchange(last_part, part)) ++current;
    }
    group[static_cast<std::size_t>(order[i])] = current;
  }
  return group;
}

/// A label for every example that has a set of them, for the partitions that go by labels: the one of its set that the
/// fewest examples have, of equals the lowest. Example i has labels[offsets[i] … offsets[i + 1]); one without any is in
/// a group of its own, `num_labels`. Throws ShapeError for a label out of range.
inline std::vector<std::int32_t> rarest_labels(std::span<const std::int32_t> labels, std::span<const Index> offsets,
                                               Index num_labels) {
  std::vector<Index> count(static_cast<std::size_t>(std::max<Index>(num_labels, 0)), 0);
  for (const std::int32_t label : labels) {
    if (label < 0 || label >= num_labels)
      fail<ShapeError>("rarest labels", "a label in [0, " + std::to_string(num_labels) + ")", std::to_string(label));
    ++count[static_cast<std::size_t>(label)];
  }
  std::vector<std::int32_t> rarest;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    auto& chosen = rarest.emplace_back(static_cast<std::int32_t>(num_labels));
    for (Index at = offsets[i]; at < offsets[i + 1]; ++at) {
      const std::int32_t label = labels[static_cast<std::size_t>(at)];
      const auto rank = [&](std::int32_t one) { return std::pair{count[static_cast<std::size_t>(one)], one}; };
      if (chosen == num_labels || rank(label) < rank(chosen)) chosen = label;
    }
  }
  return rarest;
}

/// Throws ConfigError unless `partition` gives every one of `examples` examples to exactly one client and every client
/// something: for partitions that were made elsewhere.
inline void check_partition(const Partition& partition, Index examples) {
  std::vector<bool> given(static_cast<std::size_t>(std::max<Index>(examples, 0)), false);
  Index total = 0;
  for (std::size_t k = 0; k < partition.size(); ++k) {
    const std::string where = "partition, client " + std::to_string(k);
    if (partition[k].empty()) fail<ConfigError>(where, "at least one example", "none");
    for (const Index example : partition[k]) {
      if (example < 0 || example >= examples)
        fail<ConfigError>(where, "an example in [0, " + std::to_string(examples) + ")", std::to_string(example));
      if (given[static_cast<std::size_t>(example)])
        fail<ConfigError>(where, "examples that nobody else has",
                          "example " + std::to_string(example) + " a second time");
      given[static_cast<std::size_t>(example)] = true;
      ++total;
    }
  }
  if (total != examples)
    fail<ConfigError>("partition", "all " + std::to_string(examples) + " examples", std::to_string(total));
}

/// Counts labels per client. `labels`: one per example, below `num_labels`.
/// Throws ShapeError for an example or a label out of range.
inline LabelTable label_distribution(std::span<const std::int32_t> labels, const Partition& partition,
                                     Index num_labels) {
  LabelTable table;
  table.clients = static_cast<Index>(partition.size());
  table.labels = num_labels;
  table.counts.assign(partition.size() * static_cast<std::size_t>(std::max<Index>(num_labels, 0)), 0);
  for (std::size_t k = 0; k < partition.size(); ++k) {
    for (const Index example : partition[k]) {
      const std::string where = "label distribution, client " + std::to_string(k);
      if (example < 0 || example >= static_cast<Index>(labels.size()))
        fail<ShapeError>(where, "an example in [0, " + std::to_string(labels.size()) + ")", std::to_string(example));
      const Index label = labels[static_cast<std::size_t>(example)];
      if (label < 0 || label >= num_labels)
        fail<ShapeError>(where + ", example " + std::to_string(example),
                         "a label in [0, " + std::to_string(num_labels) + ")", std::to_string(label));
      ++table.counts[k * static_cast<std::size_t>(num_labels) + static_cast<std::size_t>(label)];
    }
  }
  return table;
}

}  // namespace fedlora
