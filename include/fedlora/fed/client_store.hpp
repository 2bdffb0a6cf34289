// SPDX-License-Identifier: Apache-2.0
// What clients remember from one round to the next, as a value: optimizer moments, and any other named tensors.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/optim/concepts.hpp"

namespace fedlora {

/// One client's memory, stamped with the round that wrote it.
template <class T>
struct ClientEntry {
  Index round = 0;
  Index steps = 0;  ///< optimizer steps taken so far
  std::map<std::string, std::vector<T>> tensors;

  friend bool operator==(const ClientEntry&, const ClientEntry&) = default;
};

/// Entries by client, in memory. Clients that never took part have none and cost nothing.
template <class T>
class ClientStore {
 public:
  const ClientEntry<T>* find(Index client) const {
    const auto found = entries_.find(client);
    return found == entries_.end() ? nullptr : &found->second;
  }
  void put(Index client, ClientEntry<T> entry) { entries_.insert_or_assign(client, std::move(entry)); }
  const std::map<Index, ClientEntry<T>>& entries() const { return entries_; }
  friend bool operator==(const ClientStore&, const ClientStore&) = default;

 private:
  std::map<Index, ClientEntry<T>> entries_;
};

/// An optimizer's state as an entry, and back.
template <class T, OptimizerState<T> State>
ClientEntry<T> entry_of(State state, Index round) {
  ClientEntry<T> entry{round, state.steps, {}};
  state.for_each([&](std::string_view name, std::vector<T>& tensor) {
    if (!tensor.empty()) entry.tensors.emplace(std::string(name), std::move(tensor));
  });
  return entry;
}

/// \throws ConfigError when the entry was written by another kind of optimizer or for an adapter of another size.
template <class T, OptimizerState<T> State>
State state_of(const ClientEntry<T>& entry, std::size_t parameters, const std::string& where) {
  State state;
  state.steps = entry.steps;
  std::size_t taken = 0;
  state.for_each([&](std::string_view name, std::vector<T>& tensor) {
    const auto found = entry.tensors.find(std::string(name));
    if (found == entry.tensors.end()) return;
    if (found->second.size() != parameters)
      fail<ConfigError>(where + ", optimizer state " + std::string(name), std::to_string(parameters) + " numbers",
                        std::to_string(found->second.size()));
    tensor = found->second;
    ++taken;
  });
  if (taken != entry.tensors.size())
    fail<ConfigError>(where + ", optimizer state", "tensors of this optimizer",
                      "'" + entry.tensors.begin()->first + "' among others");
  return state;
}

}  // namespace fedlora
