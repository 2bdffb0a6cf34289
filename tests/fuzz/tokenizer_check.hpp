// SPDX-License-Identifier: Apache-2.0
// What must hold of a tokenizer, wherever its files came from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/data/tokenizer.hpp"
#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

/// Tokens that are no tokens, ids and types that do not go together, a length that does not hold.
inline void require_sound(const Tokenizer& tokenizer, const Encoding& encoding, std::string_view text) {
  require(encoding.ids.size() == encoding.token_types.size(), "every token has a type");
  for (const std::int32_t id : encoding.ids) {
    const auto token = tokenizer.id_to_token(id);
    require(token.has_value(), "an id of the vocabulary: " + std::to_string(id));
    require(tokenizer.token_to_id(*token) == id, "a token's id is its own: " + std::to_string(id));
  }
  for (const std::int32_t type : encoding.token_types) require(type >= 0, "types are not negative");
  // What a text may grow to, twice for a pair, and the special tokens that an input has room for.
  require(
      encoding.ids.size() <= 2 * detail::rewritten_limit(text.size()) + 10000,
      "a text of " + std::to_string(text.size()) + " bytes gives " + std::to_string(encoding.ids.size()) + " tokens");
}

/// The text of tokens, without special ones; nothing where that would be too long.
inline std::optional<std::string> check_decoding(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
  std::optional<std::string> texts[2];
  for (const bool skip : {false, true}) {
    texts[skip] = unless_refused("", [&] { return tokenizer.decode(ids, skip); });
    if (texts[skip]) require(detail::first_invalid_utf8(*texts[skip]) == std::string::npos, "decoded text is UTF-8");
  }
  return texts[1];
}

/// Encodes and decodes `text`.
inline void check_text(const Tokenizer& tokenizer, std::string_view text) {
  const auto encoding = unless_refused("", [&] { return tokenizer.encode(text); });
  if (!encoding) return;
  require_sound(tokenizer, *encoding, text);
  require(tokenizer.encode(text).ids == encoding->ids, "equal texts give equal tokens");
  const auto decoded = check_decoding(tokenizer, encoding->ids);

  std::vector<std::int32_t> strangers = encoding->ids;
  strangers.insert(strangers.begin() + static_cast<std::ptrdiff_t>(strangers.size() / 2), 0x7ffffff0);
  strangers.insert(strangers.begin(), -1);
  if (decoded && !tokenizer.id_to_token(0x7ffffff0))
    require(tokenizer.decode(strangers) == *decoded, "ids that no token has are passed over");

  if (const auto plain = unless_refused("", [&] { return tokenizer.encode(text, {.special_tokens = false}); })) {
    require_sound(tokenizer, *plain, text);
    for (const Index limit : {1, 2, 7}) {
      const auto cut =
          unless_refused("", [&] { return tokenizer.encode(text, {.max_tokens = limit, .special_tokens = false}); });
      require(
          cut && static_cast<Index>(cut->ids.size()) == std::min<Index>(limit, static_cast<Index>(plain->ids.size())) &&
              (std::equal(cut->ids.begin(), cut->ids.end(), plain->ids.begin()) ||
               std::equal(cut->ids.rbegin(), cut->ids.rend(), plain->ids.rbegin())),
          "a limit cuts an end off");
    }
  }
  const auto cut = unless_refused("", [&] { return tokenizer.encode(text, {.max_tokens = 9}); });
  if (cut) require(cut->ids.size() <= 9, "a limit counts special tokens");
  const std::string_view pair = text.substr(std::min<std::size_t>(text.size(), 3));
  if (detail::first_invalid_utf8(pair) == pair.npos) {
    if (const auto both = unless_refused("", [&] { return tokenizer.encode(text, pair, {}); }))
      require_sound(tokenizer, *both, text);
    const auto short_pair = unless_refused("", [&] { return tokenizer.encode(text, pair, {.max_tokens = 11}); });
    if (short_pair) require(short_pair->ids.size() <= 11, "a limit holds for pairs");
  }
}

/// A tokenizer over the texts of an input and some of our own.
inline void check_tokenizer(const Tokenizer& tokenizer, std::string_view texts) {
  require(tokenizer.vocab_size() >= 0, "a size is not negative");
  for (const char* const text : {"", "Hello, wörld! It's 2024.", "  a\tb\n\nc  ", "中文 e\u0301 \U0001F600 [MASK]</s>"})
    check_text(tokenizer, text);
  for (int lines = 0; !texts.empty() && lines < 4; ++lines) check_text(tokenizer, lines < 3 ? take_line(texts) : texts);

  // The first ids there are, as a model may produce them in any order.
  std::vector<std::int32_t> ids;
  for (std::int32_t id = 0; id < 64; ++id) ids.push_back((id * 29 + 7) % 64);
  check_decoding(tokenizer, ids);
}

}  // namespace fedlora::fuzz
