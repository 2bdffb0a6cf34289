// SPDX-License-Identifier: Apache-2.0
// Added tokens: strings found in the text before anything else is done with it, special ones ([CLS], <s>, …) among
// them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"
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
  std::string source = {};   ///< the file and field that name it, for messages
};

namespace detail {

/// Strings to look for, the leftmost and then the longest: a trie of bytes.
class TokenTrie {
 public:
  bool empty() const { return nodes_.empty(); }

  /// The earlier of two equal strings stays: false then. An empty one is never found.
  bool insert(std::string_view text, std::int32_t id) {
    if (text.empty()) return true;
    std::int32_t node = child(-1, text[0]);
    for (const char byte : text.substr(1)) node = child(node, byte);
    std::int32_t& found = nodes_[static_cast<std::size_t>(node)].id;
    if (found >= 0) return false;
    found = id;
    return true;
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
  /// Adds tokens in the order given. One that is there already takes over the new flags, but stays special once it was;
  /// one that the vocabulary has keeps its id there; the others are numbered on, from the vocabulary's size or from
  /// beyond the largest added id: as in Hugging Face's tokenizers, where a vocabulary with gaps may have a piece of
  /// such a number. \throws FormatError naming `where` when an id is too large.
  void add(const std::vector<AddedToken>& tokens, const Vocabulary& vocabulary,
           const std::vector<Normalizer>& normalizers, std::string_view where) {
    std::int64_t next = static_cast<std::int64_t>(vocabulary.size());
    if (!tokens_.empty()) next = std::max(next, std::int64_t{tokens_.rbegin()->first} + 1);
    for (const AddedToken& token : tokens) {
      if (token.content.empty()) continue;
      std::int32_t id = find(token.content);
      if (id < 0) {
        id = vocabulary.find(token.content);
        if (id < 0) {
          if (next > std::numeric_limits<std::int32_t>::max())
            fail<FormatError>(where, "ids up to 2147483647", in_quotes(token.content) + " beyond them");
          id = static_cast<std::int32_t>(next++);
          ++beyond_vocabulary_;
        }
        ids_.insert(token.content, id);
      }
      const auto [at, is_new] = tokens_.try_emplace(id, Entry{token, token.content});
      if (!is_new) {
        std::string source = std::move(at->second.token.source);
        at->second.token = token;
        if (!source.empty()) at->second.token.source = std::move(source);  // who came first gave it its number
      }
      if (token.normalized) {
        std::string form = token.content;
        bool starts = true;
        for (const Normalizer& step : normalizers) normalize(step, form, starts, rewritten_limit(token.content.size()));
        if (form != token.content) at->second.written = std::move(form);
      }
      if (token.special) special_.insert(token.content, id);
    }
    verbatim_ = {};
    normalized_ = {};
    never_found_.clear();
    for (const auto& [id, entry] : tokens_) {
      if (!entry.token.normalized) {
        verbatim_.insert(entry.token.content, id);
      } else if (!normalized_.insert(entry.written, id)) {
        never_found_.push_back(id);
      }
    }
  }

  /// Special tokens in a text are read as text.
  void split_special_tokens(bool yes) { split_special_ = yes; }

  bool searches_normalized() const { return !normalized_.empty(); }
  std::vector<TokenSpan> find_verbatim(std::string_view text) const { return spans(text, verbatim_); }
  std::vector<TokenSpan> find_normalized(std::string_view text) const { return spans(text, normalized_); }

  /// The id of a token by its content, or -1.
  std::int32_t find(std::string_view content) const { return ids_.find(content); }
  bool is_special(std::string_view text) const { return special_.find(text) >= 0; }

  const AddedToken* token_of(std::int32_t id) const {
    const auto at = tokens_.find(id);
    return at == tokens_.end() ? nullptr : &at->second.token;
  }
  /// What decoding begins with: the normalised form of a token that was added as a normalised one.
  const std::string* written_form_of(std::int32_t id) const {
    const auto at = tokens_.find(id);
    return at == tokens_.end() ? nullptr : &at->second.written;
  }

  std::size_t beyond_vocabulary() const { return beyond_vocabulary_; }  ///< tokens that the model's vocabulary lacks
  /// Tokens whose normalised form another token of a smaller id has. (Which of them Hugging Face's tokenizers finds
  /// changes from run to run.)
  const std::vector<std::int32_t>& never_found() const { return never_found_; }
  /// The largest id, or -1.
  std::int32_t largest_id() const { return tokens_.empty() ? -1 : tokens_.rbegin()->first; }

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
      if (split_special_ && is_special(token.content)) continue;
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
  std::vector<std::int32_t> never_found_;
  PieceMap ids_, special_;
  TokenTrie verbatim_, normalized_;
  std::size_t beyond_vocabulary_ = 0;
  bool split_special_ = false;
};

}  // namespace detail
}  // namespace fedlora
