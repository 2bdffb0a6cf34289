// SPDX-License-Identifier: Apache-2.0
// The first stage of a tokenizer: rewriting the text (BERT's clean-up, lower case, Unicode's normalisation forms,
// replacements).
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer/pattern.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"

namespace fedlora::detail {

/// BERT's normalisation: control characters dropped and white space made plain, CJK characters set apart by spaces,
/// accents stripped, lower case; in this order.
struct BertNormalizer {
  bool clean_text = true;
  bool cjk_spacing = true;
  bool strip_accents = true;
  bool lower_case = true;
};
struct LowercaseNormalizer {};
struct StripNormalizer {
  bool left = true;
  bool right = true;
};
struct StripAccentsNormalizer {};
struct UnicodeForm {
  bool compatibility = false;  ///< K
  bool compose = true;         ///< C rather than D
};
struct PrependNormalizer {
  std::string text;
};
struct ReplaceNormalizer {
  Pattern pattern;
  std::string content;
};
/// Bytes written as the characters that byte-level vocabularies use for them.
struct ByteLevelNormalizer {};

using Normalizer = std::variant<BertNormalizer, LowercaseNormalizer, StripNormalizer, StripAccentsNormalizer,
                                UnicodeForm, PrependNormalizer, ReplaceNormalizer, ByteLevelNormalizer>;

/// The character by which byte-level vocabularies (GPT-2) write a byte: itself where it is printable, else one from
/// U+0100 on.
inline constexpr std::array<char32_t, 256> byte_level_characters = [] {
  std::array<char32_t, 256> table{};
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    table[byte] = printable ? byte : next++;
  }
  return table;
}();

/// Appends `text` with every byte as its byte-level character.
inline void append_byte_level(std::string& out, std::string_view text) {
  for (const char c : text) append_utf8(out, byte_level_characters[static_cast<unsigned char>(c)]);
}

/// How long a text of so many bytes may become while it is rewritten: a short file can ask for thirty steps that double
/// it each. No known tokenizer makes more than a few times as much of a text.
constexpr std::size_t rewritten_limit(std::size_t bytes) { return 64 * bytes + 65536; }

/// \throws FormatError
inline void check_rewritten(std::size_t bytes, std::size_t limit) {
  if (bytes > limit)
    fail<FormatError>("text", "at most " + std::to_string(limit) + " bytes when the tokenizer has rewritten it",
                      std::to_string(bytes));
}

/// Rewrites `text`. Clears `starts` when what stood at the beginning was dropped: the pre-tokenizer Metaspace asks for
/// it. \throws FormatError when it becomes longer than `limit`.
inline void normalize(const Normalizer& normalizer, std::string& text, bool& starts, std::size_t limit) {
  const auto filter = [&](auto&& dropped) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t begin = i;
      if (dropped(next_code_point(text, i))) {
        if (begin == 0) starts = false;
      } else {
        out.append(text, begin, i - begin);
      }
    }
    text = std::move(out);
  };
  const auto bert = [&](const BertNormalizer& options) {
    if (is_ascii(text)) {  // nothing to decompose, to strip or to set apart
      std::size_t kept = 0;
      for (char c : text) {
        const auto code = static_cast<char32_t>(c);
        if (options.clean_text) {
          if (is_dropped_by_bert(code)) {
            if (kept == 0) starts = false;
            continue;
          }
          if (is_space(code)) c = ' ';
        }
        if (options.lower_case && c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
        text[kept++] = c;
      }
      text.resize(kept);
      return;
    }
    std::u32string wide;
    wide.reserve(text.size());
    for (std::size_t i = 0; i < text.size();) {
      char32_t c = next_code_point(text, i);
      if (options.clean_text) {
        if (is_dropped_by_bert(c)) {
          if (wide.empty()) starts = false;
          continue;
        }
        if (is_space(c)) c = ' ';
      }
      if (options.cjk_spacing && is_cjk(c)) {
        wide.append({U' ', c, U' '});
      } else {
        wide.push_back(c);
      }
    }
    if (options.strip_accents) {
      wide = normalisation_form(wide, false, false);
      if (!wide.empty() && is_nonspacing_mark(wide.front())) starts = false;
      std::erase_if(wide, is_nonspacing_mark);
    }
    if (options.lower_case) {
      std::u32string lowered;
      lowered.reserve(wide.size());
      for (const char32_t c : wide) append_lower(lowered, c);
      wide = std::move(lowered);
    }
    text = to_utf8(wide);
  };
  const auto apply = [&](const auto& kind) {
    using Kind = std::decay_t<decltype(kind)>;
    if constexpr (std::is_same_v<Kind, BertNormalizer>) {
      bert(kind);
    } else if constexpr (std::is_same_v<Kind, LowercaseNormalizer>) {
      bert({.clean_text = false, .cjk_spacing = false, .strip_accents = false, .lower_case = true});
    } else if constexpr (std::is_same_v<Kind, StripNormalizer>) {
      std::size_t begin = 0, end = text.size();
      for (std::size_t next = 0; kind.left && next < end && is_space(next_code_point(text, next));) begin = next;
      for (std::size_t last = end; kind.right && last > begin && is_space(previous_code_point(text, last));) end = last;
      if (begin > 0) starts = false;
      text = text.substr(begin, end - begin);
    } else if constexpr (std::is_same_v<Kind, StripAccentsNormalizer>) {
      filter(is_mark);
    } else if constexpr (std::is_same_v<Kind, UnicodeForm>) {
      if (!is_ascii(text)) text = to_utf8(normalisation_form(to_utf32(text), kind.compatibility, kind.compose));
    } else if constexpr (std::is_same_v<Kind, PrependNormalizer>) {
      if (!text.empty()) text.insert(0, kind.text);
    } else if constexpr (std::is_same_v<Kind, ReplaceNormalizer>) {
      text = kind.pattern.replace(text, kind.content, limit);
    } else {
      static_assert(std::is_same_v<Kind, ByteLevelNormalizer>);
      std::string out;
      out.reserve(text.size() + text.size() / 2);
      append_byte_level(out, text);
      text = std::move(out);
    }
  };
  std::visit(apply, normalizer);
  check_rewritten(text.size(), limit);
}

}  // namespace fedlora::detail
