// SPDX-License-Identifier: Apache-2.0
// Added tokens: strings found in the text before anything else is done with it, special ones ([CLS], <s>, …) among
// them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer/normalizer.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"
#include "fedlora/data/tokenizer/vocabulary.hpp"

namespace fedlora {

/// A token beside the model's own pieces, with the flags of Hugging Face's AddedToken.
struct AddedToken {
  std::string content;
  bool special = false;      ///< left out by decode() on request
  bool single_word = false;  ///< not inside of a word
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< and after it
  bool normalized = false;   ///< is looked for in the normalised text, in its normalised form
};

namespace detail {

/// Strings to look for, the leftmost and then the longest: a trie of bytes.
class TokenTrie {
 public:
  bool empty() const { return nodes_.empty(); }

  /// The earlier of two equal strings stays; an empty one is never found.
  void insert(std::string_view text, std::int32_t id) {
    if (text.empty()) return;
    std::int32_t node = child(-1, text[0]);
    for (const char byte : text.substr(1)) node = child(node, byte);
    std::int32_t& found = nodes_[static_cast<std::size_t>(node)].id;
    if (found < 0) found = id;
  }

  struct Found {
    std::size_t begin, end;
    std::int32_t id;
  };

  /// The first match that begins at `from` or later.
  std::optional<Found> find(std::string_view text, std::size_t from) const {
    for (std::size_t begin = from; begin < text.size(); ++begin) {
      std::int32_t node = roots_[static_cast<unsigned char>(text[begin])];
      std::optional<Found> best;
      for (std::size_t i = begin; node >= 0;) {
        const Node& at = nodes_[static_cast<std::size_t>(node)];
        if (at.byte != text[i]) {
          node = at.sibling;
          continue;
        }
        ++i;
        if (at.id >= 0) best = Found{begin, i, at.id};
        if (i == text.size()) break;
        node = at.child;
      }
      if (best) return best;
    }
    return std::nullopt;
  }

 private:
  struct Node {
    char byte;
    std::int32_t child, sibling, id;
  };

  /// The node below `parent` (-1: at the root) for a byte, made if it is not there.
  std::int32_t child(std::int32_t parent, char byte) {
    std::int32_t& first =
        parent < 0 ? roots_[static_cast<unsigned char>(byte)] : nodes_[static_cast<std::size_t>(parent)].child;
    for (std::int32_t node = first; node >= 0; node = nodes_[static_cast<std::size_t>(node)].sibling) {
      if (nodes_[static_cast<std::size_t>(node)].byte == byte) return node;
    }
    const auto made = static_cast<std::int32_t>(nodes_.size());
    const std::int32_t sibling = std::exchange(first, made);
    nodes_.push_back({byte, -1, sibling, -1});
    return made;
  }

  static constexpr std::array<std::int32_t, 256> no_roots = [] {
    std::array<std::int32_t, 256> table{};
    for (auto& entry : table) entry = -1;
    return table;
  }();

  std::array<std::int32_t, 256> roots_ = no_roots;
  std::vector<Node> nodes_;
};

/// A part of a text: an added token, or text between two of them (id -1).
struct TokenSpan {
  std::size_t begin, end;
  std::int32_t id;
};

/// The added tokens of one tokenizer.
class AddedTokens {
 public:
  AddedTokens() = default;

  /// A token that the vocabulary has keeps its id there; the others are numbered from the vocabulary's size on, in the
  /// order given. \throws FormatError naming `where` when such a number is taken.
  AddedTokens(const std::vector<AddedToken>& tokens, const Vocabulary& vocabulary,
              const std::vector<Normalizer>& normalizers, std::string_view where) {
    auto next = static_cast<std::int32_t>(vocabulary.size());
    for (const AddedToken& token : tokens) {
      if (token.content.empty()) continue;
      std::int32_t id = find(token.content);
      if (id < 0) {
        id = vocabulary.find(token.content);
        if (id < 0) {
          id = next++;
          if (const auto taken = vocabulary.piece_of(id)) {
            fail<FormatError>(
                where,
                "a vocabulary numbered without gaps, so that \"" + token.content + "\" can be " + std::to_string(id),
                "\"" + std::string(*taken) + "\" with that id");
          }
          ++beyond_vocabulary_;
        }
        ids_.insert(token.content, id);
      }
      Entry entry{token, token.content};
      if (token.normalized) {
        bool starts = true;
        for (const Normalizer& step : normalizers) normalize(step, entry.written, starts);
      }
      if (token.special) special_.insert(token.content, id);
      tokens_.insert_or_assign(id, std::move(entry));
    }
    for (const auto& [id, entry] : tokens_)
      (entry.token.normalized ? normalized_ : verbatim_).insert(entry.written, id);
  }

  bool searches_normalized() const { return !normalized_.empty(); }
  std::vector<TokenSpan> find_verbatim(std::string_view text) const { return spans(text, verbatim_); }
  std::vector<TokenSpan> find_normalized(std::string_view text) const { return spans(text, normalized_); }

  /// The id of a token by its content, or -1.
  std::int32_t find(std::string_view content) const { return ids_.find(content); }
  bool is_special(std::string_view text) const { return special_.find(text) >= 0; }

  const std::string* content_of(std::int32_t id) const {
    const auto at = tokens_.find(id);
    return at == tokens_.end() ? nullptr : &at->second.token.content;
  }
  /// What decoding begins with: the normalised form of a normalised token.
  const std::string* written_form_of(std::int32_t id) const {
    const auto at = tokens_.find(id);
    return at == tokens_.end() ? nullptr : &at->second.written;
  }

  std::size_t beyond_vocabulary() const { return beyond_vocabulary_; }  ///< tokens that the model's vocabulary lacks

 private:
  struct Entry {
    AddedToken token;
    std::string written;
  };

  std::vector<TokenSpan> spans(std::string_view text, const TokenTrie& trie) const {
    std::vector<TokenSpan> out;
    std::size_t done = 0;
    for (std::size_t from = 0; !trie.empty();) {
      const auto found = trie.find(text, from);
      if (!found) break;
      from = found->end;
      auto [begin, end, id] = *found;
      const AddedToken& token = tokens_.find(id)->second.token;
      if (token.single_word) {
        std::size_t before = begin;
        if ((begin > 0 && is_word(previous_code_point(text, before))) ||
            (end < text.size() && is_word(code_point_at(text, end))))
          continue;
      }
      if (token.rstrip) {
        for (std::size_t at = end; at < text.size() && is_space(next_code_point(text, at));) end = at;
      }
      if (token.lstrip) {
        for (std::size_t at = begin; at > done && is_space(previous_code_point(text, at));) begin = at;
        begin = std::max(begin, done);
        if (begin >= end) continue;  // the token before it has taken all of it, being white space
      }
      if (done < begin) out.push_back({done, begin, -1});
      out.push_back({begin, end, id});
      done = end;
    }
    if (done < text.size()) out.push_back({done, text.size(), -1});
    return out;
  }

  std::map<std::int32_t, Entry> tokens_;
  PieceMap ids_, special_;
  TokenTrie verbatim_, normalized_;
  std::size_t beyond_vocabulary_ = 0;
};

}  // namespace detail
}  // namespace fedlora
