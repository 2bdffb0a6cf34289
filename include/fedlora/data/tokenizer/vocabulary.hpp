// SPDX-License-Identifier: Apache-2.0
// Pieces and their ids, both ways; looked up without allocation.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"

namespace fedlora::detail {

/// A hash that grows byte by byte, so that all beginnings of a word are hashed in one pass (FNV-1a, 64 bits).
inline constexpr std::uint64_t piece_hash_start = 0xcbf29ce484222325u;
constexpr std::uint64_t piece_hash_step(std::uint64_t hash, char c) {
  return (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
}
constexpr std::uint64_t piece_hash(std::string_view text) {
  std::uint64_t hash = piece_hash_start;
  for (const char c : text) hash = piece_hash_step(hash, c);
  return hash;
}

/// From strings to ids: open addressing over one block of text.
class PieceMap {
 public:
  PieceMap() = default;

  void reserve(std::size_t pieces) { rehash(std::bit_ceil(std::max<std::size_t>(16, 2 * pieces))); }

  /// Adds a piece that is not there yet; returns false, changing nothing, when it is.
  bool insert(std::string_view piece, std::int32_t id) {
    if (2 * (entries_.size() + 1) > slots_.size()) rehash(std::max<std::size_t>(16, 2 * slots_.size()));
    const std::uint64_t hash = piece_hash(piece);
    const std::size_t slot = locate(piece, hash);
    if (slots_[slot] != 0) return false;
    entries_.push_back({hash, text_.size(), piece.size(), id});
    text_.append(piece);
    slots_[slot] = static_cast<std::uint32_t>(entries_.size());
    longest_ = std::max(longest_, piece.size());
    return true;
  }

  /// The id of a piece, or -1.
  std::int32_t find(std::string_view piece) const { return find(piece, piece_hash(piece)); }
  std::int32_t find(std::string_view piece, std::uint64_t hash) const {
    if (slots_.empty()) return -1;
    const std::uint32_t entry = slots_[locate(piece, hash)];
    return entry == 0 ? -1 : entries_[entry - 1].id;
  }

  std::size_t size() const { return entries_.size(); }
  std::size_t longest() const { return longest_; }  ///< bytes
  std::string_view piece(std::size_t i) const {
    return std::string_view(text_).substr(entries_[i].begin, entries_[i].length);
  }
  std::int32_t id(std::size_t i) const { return entries_[i].id; }

 private:
  struct Entry {
    std::uint64_t hash;
    std::size_t begin, length;
    std::int32_t id;
  };

  static std::size_t spread(std::uint64_t hash) {
    return static_cast<std::size_t>((hash ^ (hash >> 32)) * 0x9E3779B97F4A7C15u >> 20);
  }

  std::size_t locate(std::string_view piece, std::uint64_t hash) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = spread(hash) & mask;
    while (slots_[slot] != 0) {
      const Entry& entry = entries_[slots_[slot] - 1];
      if (entry.hash == hash && std::string_view(text_).substr(entry.begin, entry.length) == piece) break;
      slot = (slot + 1) & mask;
    }
    return slot;
  }

  void rehash(std::size_t slots) {
    if (slots <= slots_.size()) return;
    slots_.assign(slots, 0);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      std::size_t slot = spread(entries_[i].hash) & (slots - 1);
      while (slots_[slot] != 0) slot = (slot + 1) & (slots - 1);
      slots_[slot] = static_cast<std::uint32_t>(i + 1);
    }
  }

  std::vector<Entry> entries_;
  std::vector<std::uint32_t> slots_;  ///< number of the entry plus 1; 0: free
  std::string text_;
  std::size_t longest_ = 0;
};

/// A model's pieces. Ids need not be dense; each belongs to one piece.
class Vocabulary {
 public:
  /// \throws FormatError naming `where` when an id is negative or comes twice, or a piece comes twice.
  Vocabulary(const std::vector<std::pair<std::string, std::int32_t>>& pieces, std::string_view where) {
    map_.reserve(pieces.size());
    by_id_.reserve(pieces.size());
    for (const auto& [piece, id] : pieces) {
      if (id < 0) fail<FormatError>(where, "ids from 0", std::to_string(id) + " for \"" + piece + "\"");
      if (!map_.insert(piece, id)) fail<FormatError>(where, "every piece once", "\"" + piece + "\" twice");
      by_id_.emplace_back(id, static_cast<std::uint32_t>(by_id_.size()));
    }
    std::sort(by_id_.begin(), by_id_.end());
    const auto twice =
        std::adjacent_find(by_id_.begin(), by_id_.end(), [](auto& a, auto& b) { return a.first == b.first; });
    if (twice != by_id_.end()) {
      fail<FormatError>(where, "every id once",
                        std::to_string(twice->first) + " for \"" + std::string(map_.piece(twice->second)) +
                            "\" and \"" + std::string(map_.piece(std::next(twice)->second)) + "\"");
    }
  }

  std::int32_t find(std::string_view piece) const { return map_.find(piece); }
  std::int32_t find(std::string_view piece, std::uint64_t hash) const { return map_.find(piece, hash); }

  std::optional<std::string_view> piece_of(std::int32_t id) const {
    const auto at = std::lower_bound(by_id_.begin(), by_id_.end(), std::pair<std::int32_t, std::uint32_t>(id, 0));
    if (at == by_id_.end() || at->first != id) return std::nullopt;
    return map_.piece(at->second);
  }

  std::size_t size() const { return map_.size(); }
  std::int32_t largest_id() const { return by_id_.empty() ? -1 : by_id_.back().first; }  ///< -1: no pieces
  const PieceMap& map() const { return map_; }

 private:
  PieceMap map_;
  std::vector<std::pair<std::int32_t, std::uint32_t>> by_id_;
};

}  // namespace fedlora::detail
