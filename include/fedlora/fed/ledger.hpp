// SPDX-License-Identifier: Apache-2.0
// The communication ledger: the bytes of every message, up and down, by round.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/fed/message.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora {

/// Messages in one direction.
struct Traffic {
  MessageSize bytes;
  std::int64_t messages = 0;

  Traffic& operator+=(const Traffic& other) {
    bytes += other.bytes;
    messages += other.messages;
    return *this;
  }
  friend bool operator==(const Traffic&, const Traffic&) = default;
};

/// Both directions; up is from a client to the server.
struct RoundTraffic {
  Traffic up;
  Traffic down;
  friend bool operator==(const RoundTraffic&, const RoundTraffic&) = default;
};

/// Counts what is sent. A value: it is saved with the run and goes on counting after a resume.
class CommunicationLedger {
 public:
  void record_up(Index round, const MessageSize& size) { rounds_[round].up += Traffic{size, 1}; }
  void record_down(Index round, const MessageSize& size) { rounds_[round].down += Traffic{size, 1}; }

  /// All rounds with traffic, in order.
  const std::map<Index, RoundTraffic>& rounds() const { return rounds_; }
  /// One round; nothing was sent in a round that is not there.
  RoundTraffic round(Index round) const {
    const auto found = rounds_.find(round);
    return found == rounds_.end() ? RoundTraffic{} : found->second;
  }
  RoundTraffic total() const {
    RoundTraffic sum;
    for (const auto& [round, traffic] : rounds_) {
      sum.up += traffic.up;
      sum.down += traffic.down;
    }
    return sum;
  }
  friend bool operator==(const CommunicationLedger&, const CommunicationLedger&) = default;

  /// [[round, up adapter, up head, up protocol, up messages, down adapter, …], …]
  Json to_json() const {
    Json rows = Json::array();
    for (const auto& [round, t] : rounds_)
      rows.push_back({round, t.up.bytes.adapter, t.up.bytes.head, t.up.bytes.protocol, t.up.messages,
                      t.down.bytes.adapter, t.down.bytes.head, t.down.bytes.protocol, t.down.messages});
    return rows;
  }

  /// \throws FormatError naming the file for rows of another form, negative numbers, or a round twice.
  static CommunicationLedger from_json(const Json& rows, const std::string& where) {
    CommunicationLedger ledger;
    const auto bad = [&](const std::string& got) {
      fail<FormatError>(where, "rows of nine whole numbers of at least 0, each round once", got);
    };
    if (!rows.is_array()) bad(rows.type_name());
    for (const Json& row : rows) {
      if (!row.is_array() || row.size() != 9) bad(row.is_array() ? std::to_string(row.size()) : row.type_name());
      std::int64_t numbers[9];
      for (std::size_t i = 0; i < 9; ++i) {
        // Totals are sums: a bound far below 2^63 keeps them from overflowing.
        if (!row[i].is_number_integer() ||
            (row[i].is_number_unsigned() && row[i].get<std::uint64_t>() > (1ull << 50)) ||
            row[i].get<std::int64_t>() < 0)
          bad(row[i].dump());
        numbers[i] = row[i].get<std::int64_t>();
      }
      const RoundTraffic traffic{{{numbers[1], numbers[2], numbers[3]}, numbers[4]},
                                 {{numbers[5], numbers[6], numbers[7]}, numbers[8]}};
      if (!ledger.rounds_.emplace(numbers[0], traffic).second) bad("round " + std::to_string(numbers[0]) + " twice");
    }
    return ledger;
  }

 private:
  std::map<Index, RoundTraffic> rounds_;
};

}  // namespace fedlora
