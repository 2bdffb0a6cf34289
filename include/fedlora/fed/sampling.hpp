// SPDX-License-Identifier: Apache-2.0
// Who takes part in a round. A cohort is a pure function of (clients, seed, round).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/fed/client.hpp"

namespace fedlora {

/// The clients of one round, in ascending order of id, with the address that all randomness of the round starts from.
/// Refers to clients that outlive it.
template <class C>
struct Cohort {
  std::uint64_t seed = 0;
  Index round = 1;
  std::vector<const C*> clients;

  Index size() const { return static_cast<Index>(clients.size()); }
};

/// How many clients a round takes: a fraction (rounded to the nearest whole client) or a count; at least one either
/// way.
struct SampleOptions {
  double fraction = 0;
  Index count = 0;  ///< used instead of `fraction` when positive
  std::uint64_t seed = 0;
  Index round = 1;
};

namespace detail {

inline Index cohort_size(Index clients, const SampleOptions& options) {
  if (clients <= 0) fail<ConfigError>("sampling", "at least one client", std::to_string(clients));
  if (options.count != 0 && options.fraction != 0) fail<ConfigError>("sampling", "a fraction or a count", "both");
  if (options.count < 0 || options.count > clients)
    fail<ConfigError>("sampling, count", "a number of clients in [1, " + std::to_string(clients) + "]",
                      std::to_string(options.count));
  if (options.count > 0) return options.count;
  if (!(options.fraction > 0 && options.fraction <= 1))
    fail<ConfigError>("sampling, fraction", "a fraction in (0, 1], or a count", std::to_string(options.fraction));
  return std::max<Index>(1, static_cast<Index>(std::llround(options.fraction * static_cast<double>(clients))));
}

/// The cohort of the clients at `positions`, sorted by id. ConfigError when two have the same id.
template <class C>
Cohort<C> cohort_of(const std::vector<C>& clients, std::span<const std::size_t> positions, std::uint64_t seed,
                    Index round) {
  Cohort<C> cohort{seed, round, {}};
  cohort.clients.reserve(positions.size());
  for (const std::size_t position : positions) cohort.clients.push_back(&clients[position]);
  std::sort(cohort.clients.begin(), cohort.clients.end(), [](const C* a, const C* b) { return a->id < b->id; });
  for (std::size_t i = 1; i < cohort.clients.size(); ++i)
    if (cohort.clients[i - 1]->id == cohort.clients[i]->id)
      fail<ConfigError>("sampling", "clients with different ids",
                        "two with id " + std::to_string(cohort.clients[i]->id));
  return cohort;
}

}  // namespace detail

/// Draws clients uniformly without replacement (the first steps of a Fisher–Yates shuffle, keyed by seed and round).
template <class C>
Cohort<C> sample_uniform(const std::vector<C>& clients, const SampleOptions& options) {
  const auto count = static_cast<std::size_t>(detail::cohort_size(static_cast<Index>(clients.size()), options));
  std::vector<std::size_t> order(clients.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  RandomSequence random(derive_key(options.seed, Purpose::sample_clients, options.round));
  for (std::size_t i = 0; i < count; ++i) {
    const auto other = i + static_cast<std::size_t>(random.below(order.size() - i));
    std::swap(order[i], order[other]);
  }
  return detail::cohort_of(clients, std::span(order).first(count), options.seed, options.round);
}

/// Draws clients without replacement, each next one with probability proportional to its number of examples among those
/// left: the `count` largest of log(u_k) / n_k (Efraimidis and Spirakis 2006). u_k is addressed by the client's id, so
/// that a client's luck does not depend on who else is registered.
template <class C>
Cohort<C> sample_weighted(const std::vector<C>& clients, const SampleOptions& options) {
  const auto count = static_cast<std::size_t>(detail::cohort_size(static_cast<Index>(clients.size()), options));
  std::vector<std::pair<double, std::size_t>> keys;
  keys.reserve(clients.size());
  for (std::size_t k = 0; k < clients.size(); ++k) {
    const auto examples = static_cast<double>(clients[k].num_examples());
    if (!(examples > 0))
      fail<ConfigError>("sample_weighted, client " + std::to_string(clients[k].id), "at least one example", "none");
    RandomSequence random(derive_key(options.seed, Purpose::sample_clients, options.round, clients[k].id));
    keys.emplace_back(-std::log(1.0 - random.uniform()) / examples, k);
  }
  std::partial_sort(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(count), keys.end());
  std::vector<std::size_t> chosen(count);
  for (std::size_t i = 0; i < count; ++i) chosen[i] = keys[i].second;
  return detail::cohort_of(clients, chosen, options.seed, options.round);
}

/// Everybody.
template <class C>
Cohort<C> all_clients(const std::vector<C>& clients, std::uint64_t seed, Index round) {
  if (clients.empty()) fail<ConfigError>("sampling", "at least one client", "0");
  std::vector<std::size_t> order(clients.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  return detail::cohort_of(clients, order, seed, round);
}

/// A cohort refers to its clients, which therefore cannot be a temporary.
template <class C>
Cohort<C> sample_uniform(const std::vector<C>&&, const SampleOptions&) = delete;
template <class C>
Cohort<C> sample_weighted(const std::vector<C>&&, const SampleOptions&) = delete;
template <class C>
Cohort<C> all_clients(const std::vector<C>&&, std::uint64_t, Index) = delete;

}  // namespace fedlora
