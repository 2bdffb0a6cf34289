// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, with the same ids as Hugging Face tokenizers: added tokens are found first, the text
// between them is normalised, cut into words, and each word goes through WordPiece or byte-pair encoding; special
// tokens come last. Files that describe a tokenizer are read by hf/tokenizer_files.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/data/tokenizer/added_tokens.hpp"
#include "fedlora/data/tokenizer/bpe.hpp"
#include "fedlora/data/tokenizer/decoder.hpp"
#include "fedlora/data/tokenizer/normalizer.hpp"
#include "fedlora/data/tokenizer/post_processor.hpp"
#include "fedlora/data/tokenizer/pre_tokenizer.hpp"
#include "fedlora/data/tokenizer/vocabulary.hpp"
#include "fedlora/data/tokenizer/wordpiece.hpp"

namespace fedlora {

struct EncodeOptions {
  Index max_tokens = 0;        ///< at most this many tokens, special ones included; 0: no limit
  bool special_tokens = true;  ///< put [CLS], <s>, … where the model expects them
};

/// What a tokenizer consists of, stage by stage.
struct TokenizerParts {
  std::vector<detail::Normalizer> normalizers;
  std::vector<detail::PreTokenizer> pre_tokenizers;
  std::variant<detail::WordPiece, detail::Bpe> model;
  detail::AddedTokens added_tokens = {};
  std::vector<detail::PostProcessor> post_processors = {};
  std::optional<std::vector<detail::Decoder>> decoders = {};  ///< none: tokens joined by spaces
  std::string vocabulary_source = {};      ///< the file (and field) of the model's pieces, for messages
  bool cuts_beginning = false;             ///< a text that is too long loses its beginning, not its end
  bool has_token_types = true;             ///< false: every token type is 0, whichever text the token is of
  bool cleans_up_spaces = false;           ///< decode() takes spaces before punctuation and contractions away
  std::vector<std::string> warnings = {};  ///< about the files, for whoever loads them

  const detail::Vocabulary& vocabulary() const {
    return std::visit([](const auto& part) -> const detail::Vocabulary& { return part.vocabulary(); }, model);
  }
  /// Adds tokens beside the model's pieces: see AddedTokens::add. The normalizers must stand.
  void add(const std::vector<AddedToken>& tokens, std::string_view where) {
    added_tokens.add(tokens, vocabulary(), normalizers, where);
  }
  /// The id of an added token or a piece, or -1.
  std::int32_t find(std::string_view token) const {
    const std::int32_t id = added_tokens.find(token);
    return id < 0 ? vocabulary().find(token) : id;
  }
};

/// Encodes and decodes. Cheap to copy; every method may be called from many threads at once.
class Tokenizer {
 public:
  explicit Tokenizer(TokenizerParts parts) : parts_(std::make_shared<const TokenizerParts>(std::move(parts))) {}

  /// One text. Too many tokens are cut off at its end (or beginning, where the files say so). \throws FormatError for
  /// text that is not UTF-8, naming the offset of the byte, or that needs an unknown token where there is none;
  /// ConfigError when `max_tokens` is negative or leaves no room for the special tokens.
  Encoding encode(std::string_view text, EncodeOptions options = {}) const {
    const Index room = room_for_text(options, false);
    std::vector<Encoding> parts;
    parts.push_back(encode_part(text, "text", 0, room));
    return finish(std::move(parts), options);
  }

  /// A pair of texts. Too many tokens are cut off at that end of the longer one until both have the same length, then
  /// of both.
  Encoding encode(std::string_view text, std::string_view pair, EncodeOptions options) const {
    const Index room = room_for_text(options, true);
    std::vector<Encoding> parts;
    parts.push_back(encode_part(text, "text", 0, no_limit));
    parts.push_back(encode_part(pair, "text pair", 1, no_limit));
    const auto size = [](const Encoding& part) { return static_cast<Index>(part.ids.size()); };
    const auto [first, second] = detail::truncated_lengths(size(parts[0]), size(parts[1]), room);
    cut(parts[0], first);
    cut(parts[1], second);
    return finish(std::move(parts), options);
  }

  /// The text of some tokens; ids that no token has are passed over. \throws FormatError when the files ask for a text
  /// that is many times as long.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens = true) const {
    std::vector<std::string> tokens;
    tokens.reserve(ids.size());
    for (const std::int32_t id : ids) {
      const std::string* added = parts_->added_tokens.written_form_of(id);
      const std::optional<std::string_view> token =
          added != nullptr ? std::optional<std::string_view>(*added) : parts_->vocabulary().piece_of(id);
      if (token && !(skip_special_tokens && parts_->added_tokens.is_special(*token))) tokens.emplace_back(*token);
    }
    std::string out;
    if (parts_->decoders) {
      std::size_t bytes = 0;
      for (const std::string& token : tokens) bytes += token.size();
      for (const detail::Decoder& step : *parts_->decoders)
        detail::decode_step(step, tokens, detail::rewritten_limit(bytes));
      for (const std::string& token : tokens) out += token;
    } else {
      for (std::size_t i = 0; i < tokens.size(); ++i) out.append(i == 0 ? "" : " ").append(tokens[i]);
    }
    return parts_->cleans_up_spaces ? detail::without_spaces_before_punctuation(std::move(out)) : out;
  }

  /// How many different tokens there are, added ones included.
  Index vocab_size() const {
    return static_cast<Index>(parts_->vocabulary().size() + parts_->added_tokens.beyond_vocabulary());
  }

  /// The largest id that a token has, or -1.
  std::int32_t largest_id() const {
    return std::max(parts_->vocabulary().largest_id(), parts_->added_tokens.largest_id());
  }

  std::optional<std::int32_t> token_to_id(std::string_view token) const {
    const std::int32_t id = parts_->find(token);
    return id < 0 ? std::nullopt : std::optional(id);
  }

  std::optional<std::string> id_to_token(std::int32_t id) const {
    if (const AddedToken* added = parts_->added_tokens.token_of(id)) return added->content;
    const auto piece = parts_->vocabulary().piece_of(id);
    return piece ? std::optional<std::string>(*piece) : std::nullopt;
  }

  /// The file and field that a token has its id from, for messages; empty where that is not known.
  std::string source_of(std::int32_t id) const {
    const AddedToken* added = parts_->added_tokens.token_of(id);
    return added != nullptr && parts_->vocabulary().find(added->content) < 0 ? added->source
                                                                             : parts_->vocabulary_source;
  }

  /// What was odd about the files that the tokenizer comes from, a sentence each.
  const std::vector<std::string>& warnings() const { return parts_->warnings; }

 private:
  static constexpr Index no_limit = Index{1} << 40;
  static constexpr std::size_t max_text_bytes = std::size_t{1} << 30;

  /// How many tokens of text fit beside the special ones.
  Index room_for_text(const EncodeOptions& options, bool pair) const {
    if (options.max_tokens == 0) return no_limit;
    Index special = 0;
    if (options.special_tokens) {
      for (const auto& step : parts_->post_processors) special += detail::special_token_count(step, pair);
    }
    if (options.max_tokens < special || options.max_tokens < 0) {
      fail<ConfigError>("max_tokens",
                        "0 (no limit) or at least " + std::to_string(special) + ", the number of special tokens",
                        std::to_string(options.max_tokens));
    }
    return options.max_tokens - special;
  }

  void cut(Encoding& part, Index length) const {
    const Index excess = static_cast<Index>(part.ids.size()) - length;
    if (excess <= 0) return;
    if (parts_->cuts_beginning) {
      part.ids.erase(part.ids.begin(), part.ids.begin() + excess);
    } else {
      part.ids.resize(static_cast<std::size_t>(length));
    }
    part.token_types.resize(static_cast<std::size_t>(length));  // they are all the same
  }

  /// The first two stages: added tokens and words.
  detail::PieceText split(std::string_view text) const {
    detail::PieceText out;
    out.text.reserve(text.size() + text.size() / 8);
    const std::size_t limit = detail::rewritten_limit(text.size());
    std::string normalized;
    for (const detail::TokenSpan& span : parts_->added_tokens.find_verbatim(text)) {
      if (span.id >= 0) {
        out.pieces.push_back({out.text.size(), out.text.size(), span.id, false});
        continue;
      }
      normalized.assign(text.substr(span.begin, span.end - span.begin));
      bool starts = span.begin == 0;
      for (const detail::Normalizer& step : parts_->normalizers) detail::normalize(step, normalized, starts, limit);
      if (normalized.empty()) continue;
      const std::size_t offset = out.text.size();
      out.text += normalized;
      detail::check_rewritten(out.text.size(), limit);
      if (!parts_->added_tokens.searches_normalized()) {
        out.pieces.push_back({offset, out.text.size(), -1, starts});
        continue;
      }
      for (const detail::TokenSpan& part : parts_->added_tokens.find_normalized(normalized))
        out.pieces.push_back({offset + part.begin, offset + part.end, part.id, starts && part.begin == 0});
    }
    for (const detail::PreTokenizer& step : parts_->pre_tokenizers) {
      detail::pre_tokenize(step, out);
      detail::check_rewritten(out.text.size(), limit);
    }
    return out;
  }

  /// The tokens of one text without special ones; no more than `limit`.
  Encoding encode_part(std::string_view text, const char* name, std::int32_t type, Index limit) const {
    if (text.size() > max_text_bytes) fail<FormatError>(name, "at most 1 GiB", std::to_string(text.size()) + " bytes");
    if (const std::size_t bad = detail::first_invalid_utf8(text); bad != std::string_view::npos) {
      static constexpr char digits[] = "0123456789abcdef";
      const auto byte = static_cast<unsigned char>(text[bad]);
      fail<FormatError>(std::string(name) + ", byte " + std::to_string(bad), "valid UTF-8",
                        std::string("the byte 0x") + digits[byte / 16] + digits[byte % 16]);
    }
    const detail::PieceText words = split(text);
    Encoding out;
    out.ids.reserve(words.text.size() / 3 + 8);
    std::visit(
        [&](const auto& model) {
          typename std::decay_t<decltype(model)>::Scratch scratch;
          for (const detail::Piece& piece : words.pieces) {
            if (static_cast<Index>(out.ids.size()) >= limit && !parts_->cuts_beginning) break;
            if (piece.id >= 0) {
              out.ids.push_back(piece.id);
            } else {
              model.encode(words.view(piece), scratch, out.ids);
            }
          }
        },
        parts_->model);
    out.token_types.assign(out.ids.size(), type);
    cut(out, limit);
    return out;
  }

  Encoding finish(std::vector<Encoding> parts, const EncodeOptions& options) const {
    for (const auto& step : parts_->post_processors) detail::post_process(step, parts, options.special_tokens);
    Encoding out;
    for (Encoding& part : parts) {
      if (out.ids.empty()) {
        out = std::move(part);
        continue;
      }
      out.ids.insert(out.ids.end(), part.ids.begin(), part.ids.end());
      out.token_types.insert(out.token_types.end(), part.token_types.begin(), part.token_types.end());
    }
    if (!parts_->has_token_types) std::fill(out.token_types.begin(), out.token_types.end(), 0);
    return out;
  }

  std::shared_ptr<const TokenizerParts> parts_;
};

}  // namespace fedlora
