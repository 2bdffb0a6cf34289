// SPDX-License-Identifier: Apache-2.0
// WordPiece (Schuster and Nakajima, 2012; as in BERT): the longest known beginning, then the longest known
// continuation, and so on.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"
#include "fedlora/data/tokenizer/vocabulary.hpp"

namespace fedlora::detail {

class WordPiece {
 public:
  struct Options {
    std::string unknown = "[UNK]";
    std::string continuation_prefix = "##";
    std::size_t max_characters = 100;  ///< a longer word is unknown
    std::string unknown_where = {};    ///< where the unknown token is named, for messages
  };

  WordPiece(Vocabulary vocabulary, Options options)
      : vocabulary_(std::move(vocabulary)), options_(std::move(options)), unknown_(vocabulary_.find(options_.unknown)) {
    const std::string_view prefix = options_.continuation_prefix;
    for (std::size_t i = 0; i < vocabulary_.size(); ++i) {
      const std::string_view piece = vocabulary_.map().piece(i);
      if (piece.starts_with(prefix)) continuations_.insert(piece.substr(prefix.size()), vocabulary_.map().id(i));
    }
  }

  const Vocabulary& vocabulary() const { return vocabulary_; }

  /// What encode() keeps between words of one text.
  struct Scratch {
    std::vector<std::uint64_t> hashes;  ///< hashes[n]: of the first n bytes of what is left of the word
  };

  /// Appends the ids of one word: its pieces, or the unknown token alone. \throws FormatError when there is no unknown
  /// token.
  void encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
    const std::size_t before = ids.size();
    const auto characters = [&] {
      return static_cast<std::size_t>(std::count_if(
          word.begin(), word.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
    };
    if (word.size() > options_.max_characters && characters() > options_.max_characters) return unknown(before, ids);
    for (std::string_view rest = word; !rest.empty();) {
      const PieceMap& pieces = rest.size() == word.size() ? vocabulary_.map() : continuations_;
      const std::size_t longest = std::min(rest.size(), pieces.longest());
      std::vector<std::uint64_t>& hashes = scratch.hashes;
      if (hashes.size() <= longest) hashes.resize(longest + 1);
      hashes[0] = piece_hash_start;
      for (std::size_t n = 0; n < longest; ++n) hashes[n + 1] = piece_hash_step(hashes[n], rest[n]);
      std::size_t length = longest;
      std::int32_t id = -1;
      for (; length > 0; --length) {
        id = pieces.find(rest.substr(0, length), hashes[length]);
        if (id >= 0) break;
      }
      if (length == 0) return unknown(before, ids);
      ids.push_back(id);
      rest.remove_prefix(length);
    }
  }

 private:
  void unknown(std::size_t before, std::vector<std::int32_t>& ids) const {
    if (unknown_ < 0)
      fail<FormatError>(options_.unknown_where, "a piece of the vocabulary", "\"" + options_.unknown + "\"");
    ids.resize(before);
    ids.push_back(unknown_);
  }

  Vocabulary vocabulary_;
  Options options_;
  PieceMap continuations_;  ///< pieces that begin with the prefix, without it
  std::int32_t unknown_;
};

}  // namespace fedlora::detail
