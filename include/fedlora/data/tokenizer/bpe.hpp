// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding (Sennrich et al., 2016): a word begins as characters; of all neighbours that merge, those of the
// lowest rank do, the leftmost first, until none is left. A heap keeps this at O(n log n) for a word of n characters.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"
#include "fedlora/data/tokenizer/vocabulary.hpp"

namespace fedlora::detail {

/// From pairs of ids to what they merge into: open addressing.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank;
    std::int32_t id;
  };

  explicit MergeTable(std::size_t merges) : slots_(std::bit_ceil(std::max<std::size_t>(16, 2 * merges + 2))) {}

  /// A later merge of the same pair takes the place of the earlier. At most as many pairs as were announced.
  void set(std::int32_t left, std::int32_t right, Merge merge) {
    slots_[locate(key(left, right))] = {key(left, right), merge};
  }

  const Merge* find(std::int32_t left, std::int32_t right) const {
    const Slot& slot = slots_[locate(key(left, right))];
    return slot.key == free_key ? nullptr : &slot.merge;
  }

 private:
  static constexpr std::uint64_t free_key = ~std::uint64_t{0};  // ids are not negative, so no pair has it
  struct Slot {
    std::uint64_t key = free_key;
    Merge merge{};
  };

  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
  }

  std::size_t locate(std::uint64_t wanted) const {
    const std::size_t mask = slots_.size() - 1;
    std::uint64_t mixed = wanted * 0x9E3779B97F4A7C15u;
    mixed ^= mixed >> 32;
    std::size_t slot = static_cast<std::size_t>(mixed * 0xD6E8FEB86659FD93u >> 24) & mask;
    while (slots_[slot].key != wanted && slots_[slot].key != free_key) slot = (slot + 1) & mask;
    return slot;
  }

  std::vector<Slot> slots_;
};

class Bpe {
 public:
  struct Options {
    std::optional<std::string> unknown = {};
    std::string continuation_prefix = {};  ///< before every character but a word's first
    std::string end_suffix = {};           ///< after a word's last character
    bool fuse_unknown = false;             ///< neighbouring unknown characters become one unknown token
    bool byte_fallback = false;            ///< an unknown character becomes pieces <0x00> … <0xFF>
    bool ignore_merges = false;            ///< a word that is a piece is that piece, merges or not
    bool whole_words = true;         ///< remember which pieces a word can become in one step: worth it for short words
    std::string unknown_where = {};  ///< where the unknown token is named, for messages
    std::string merges_where = {};   ///< where the merges are
  };
  using Merges = std::vector<std::pair<std::string, std::string>>;  ///< by rank

  /// \throws FormatError when a merge refers to a piece that is not in the vocabulary.
  Bpe(Vocabulary vocabulary, const Merges& merges, Options options)
      : vocabulary_(std::move(vocabulary)), options_(std::move(options)), merges_(merges.size()) {
    if (options_.unknown) unknown_ = vocabulary_.find(*options_.unknown);
    const std::string_view prefix = options_.continuation_prefix;
    std::string merged;
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const auto& [left, right] = merges[rank];
      const auto known = [&](std::string_view piece) {
        const std::int32_t id = vocabulary_.find(piece);
        if (id < 0) {
          fail<FormatError>(options_.merges_where + "[" + std::to_string(rank) + "]", "pieces of the vocabulary",
                            "\"" + std::string(piece) + "\"");
        }
        return id;
      };
      const std::int32_t left_id = known(left), right_id = known(right);
      merged.assign(left).append(right.substr(std::min(prefix.size(), right.size())));
      merges_.set(left_id, right_id, {static_cast<std::uint32_t>(rank), known(merged)});
    }
    std::string character;
    for (std::size_t c = 0; c < simple_.size(); ++c) {
      character.clear();
      append_utf8(character, static_cast<char32_t>(c));
      simple_[c] = vocabulary_.find(character);
    }
    if (options_.byte_fallback) {
      static constexpr char digits[] = "0123456789ABCDEF";
      for (std::size_t b = 0; b < 256; ++b)
        bytes_[b] = vocabulary_.find(std::string{'<', '0', 'x', digits[b / 16], digits[b % 16], '>'});
    }
    if (options_.whole_words) find_whole_words();
  }

  const Vocabulary& vocabulary() const { return vocabulary_; }

  struct Symbol {
    std::int32_t id;
    std::int32_t previous, next;  ///< positions; -1: none
    std::int32_t bytes;           ///< 0: merged into the one before it
  };
  struct Candidate {
    std::uint32_t rank;
    std::int32_t position;
    std::int32_t id;
  };
  /// What encode() keeps between words of one text.
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  /// Appends the ids of one word. A character that the vocabulary lacks becomes its bytes, the unknown token, or
  /// nothing. \throws FormatError when the unknown token itself is not in the vocabulary.
  void encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
    if (word.size() > max_word_bytes)
      fail<FormatError>("text", "words of less than 2 GiB", std::to_string(word.size()));
    if (options_.ignore_merges || !whole_.empty()) {
      const std::int32_t id = vocabulary_.find(word);
      if (id >= 0 && (options_.ignore_merges || is_whole(id))) {
        ids.push_back(id);
        return;
      }
    }
    merge(word, scratch);
    for (const Symbol& symbol : scratch.symbols) {
      if (symbol.bytes != 0) ids.push_back(symbol.id);
    }
  }

 private:
  static constexpr std::size_t max_word_bytes = 0x7fffffff;  // positions have 31 bits

  /// A word that is a piece is encoded as that piece if its merges lead there: found once for all pieces, so that no
  /// table of seen words is needed.
  void find_whole_words() {
    std::int32_t largest = -1;
    for (std::size_t i = 0; i < vocabulary_.size(); ++i) largest = std::max(largest, vocabulary_.map().id(i));
    if (static_cast<std::size_t>(largest) + 1 > 4 * vocabulary_.size() + 1024) return;  // ids too sparse for a bit each
    std::vector<bool> whole(static_cast<std::size_t>(largest) + 1);
    Scratch scratch;
    for (std::size_t i = 0; i < vocabulary_.size(); ++i) {
      const std::string_view piece = vocabulary_.map().piece(i);
      if (piece.empty() || piece.size() > 64) continue;
      merge(piece, scratch, false);
      const bool one = std::count_if(scratch.symbols.begin(), scratch.symbols.end(),
                                     [](const Symbol& s) { return s.bytes != 0; }) == 1;
      whole[static_cast<std::size_t>(vocabulary_.map().id(i))] =
          one && scratch.symbols[0].id == vocabulary_.map().id(i);
    }
    whole_ = std::move(whole);
  }

  bool is_whole(std::int32_t id) const {
    return static_cast<std::size_t>(id) < whole_.size() && whole_[static_cast<std::size_t>(id)];
  }

  static void add(std::vector<Symbol>& symbols, std::int32_t id, std::size_t bytes) {
    const auto position = static_cast<std::int32_t>(symbols.size());
    if (position > 0) symbols.back().next = position;
    symbols.push_back({id, position - 1, -1, static_cast<std::int32_t>(bytes)});
  }

  /// The characters of the word as symbols. Unknown tokens come late on purpose: with byte fallback the reference lets
  /// bytes overtake one.
  void split(std::string_view word, std::vector<Symbol>& symbols, bool strict) const {
    symbols.clear();
    const bool decorated = !options_.continuation_prefix.empty() || !options_.end_suffix.empty();
    std::size_t unknown_bytes = 0;
    const auto flush = [&] {
      if (unknown_bytes > 0) add(symbols, unknown_, unknown_bytes);
      unknown_bytes = 0;
    };
    std::string written;
    for (std::size_t i = 0; i < word.size();) {
      const std::size_t begin = i;
      const char32_t c = next_code_point(word, i);
      std::string_view character = word.substr(begin, i - begin);
      std::int32_t id;
      if (decorated) {
        written.assign(begin > 0 ? options_.continuation_prefix : "")
            .append(character)
            .append(i == word.size() ? options_.end_suffix : "");
        character = written;
        id = vocabulary_.find(character);
      } else {
        id = c < simple_.size() ? simple_[c] : vocabulary_.find(character);
      }
      if (id >= 0) {
        flush();
        add(symbols, id, i - begin);
        continue;
      }
      if (options_.byte_fallback && std::all_of(character.begin(), character.end(),
                                                [&](char b) { return bytes_[static_cast<unsigned char>(b)] >= 0; })) {
        for (const char b : character) add(symbols, bytes_[static_cast<unsigned char>(b)], 1);
        continue;
      }
      if (!options_.unknown) continue;
      if (unknown_ < 0) {
        if (!strict) continue;
        fail<FormatError>(options_.unknown_where, "a piece of the vocabulary", "\"" + *options_.unknown + "\"");
      }
      if (!options_.fuse_unknown) flush();
      unknown_bytes += i - begin;
    }
    flush();
  }

  void merge(std::string_view word, Scratch& scratch, bool strict = true) const {
    std::vector<Symbol>& symbols = scratch.symbols;
    std::vector<Candidate>& heap = scratch.heap;
    split(word, symbols, strict);
    heap.clear();
    const auto after = [](const Candidate& a, const Candidate& b) {
      return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
    };
    const auto consider = [&](std::int32_t left, std::int32_t right) {
      const MergeTable::Merge* found =
          merges_.find(symbols[static_cast<std::size_t>(left)].id, symbols[static_cast<std::size_t>(right)].id);
      if (found != nullptr) heap.push_back({found->rank, left, found->id});
      return found != nullptr;
    };
    for (std::int32_t i = 0; i + 1 < static_cast<std::int32_t>(symbols.size()); ++i) consider(i, i + 1);
    std::make_heap(heap.begin(), heap.end(), after);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), after);
      const Candidate top = heap.back();
      heap.pop_back();
      Symbol& left = symbols[static_cast<std::size_t>(top.position)];
      if (left.bytes == 0 || left.next < 0) continue;
      Symbol& right = symbols[static_cast<std::size_t>(left.next)];
      // Either of the two may have merged with another neighbour since.
      const MergeTable::Merge* current = merges_.find(left.id, right.id);
      if (current == nullptr || current->id != top.id) continue;
      left.id = top.id;
      left.bytes += right.bytes;
      left.next = right.next;
      right.bytes = 0;
      if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = top.position;
      if (left.previous >= 0 && consider(left.previous, top.position)) std::push_heap(heap.begin(), heap.end(), after);
      if (left.next >= 0 && consider(top.position, left.next)) std::push_heap(heap.begin(), heap.end(), after);
    }
  }

  Vocabulary vocabulary_;
  Options options_;
  MergeTable merges_;
  std::int32_t unknown_ = -1;
  std::array<std::int32_t, 0x180> simple_{};  ///< ids of single characters, which hold the whole byte-level alphabet
  std::array<std::int32_t, 256> bytes_{};     ///< ids of <0x00> … <0xFF>
  std::vector<bool> whole_;
};

}  // namespace fedlora::detail
