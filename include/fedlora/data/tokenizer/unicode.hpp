// SPDX-License-Identifier: Apache-2.0
// Unicode as tokenizers see it: UTF-8, character classes, lower case and normalisation forms. Data from utf8proc,
// corrected where Hugging Face's reference takes another version of Unicode (unicode_exceptions.hpp).
#pragma once

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/utf8.hpp"
#include "fedlora/data/tokenizer/unicode_exceptions.hpp"

// The corrections are written against its Unicode 15.0: later versions add characters, earlier ones lack some that
// texts have.
#if UTF8PROC_VERSION_MAJOR < 2 || (UTF8PROC_VERSION_MAJOR == 2 && UTF8PROC_VERSION_MINOR < 8)
#error "fedlora needs utf8proc 2.8 (Unicode 15) or newer"
#endif

namespace fedlora::detail {

/// Bytes of the character that begins with this byte of valid UTF-8.
constexpr std::size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

/// The character at `position`, which moves on. The text is valid UTF-8 and `position` lies at the beginning of a
/// character.
inline char32_t next_code_point(std::string_view text, std::size_t& position) {
  const auto byte = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[position + i]));
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) {
    position += 1;
    return lead;
  }
  char32_t result;
  if (lead < 0xE0) {
    result = ((lead & 0x1F) << 6) | (byte(1) & 0x3F);
    position += 2;
  } else if (lead < 0xF0) {
    result = ((lead & 0x0F) << 12) | ((byte(1) & 0x3F) << 6) | (byte(2) & 0x3F);
    position += 3;
  } else {
    result = ((lead & 0x07) << 18) | ((byte(1) & 0x3F) << 12) | ((byte(2) & 0x3F) << 6) | (byte(3) & 0x3F);
    position += 4;
  }
  return result;
}

inline char32_t code_point_at(std::string_view text, std::size_t position) { return next_code_point(text, position); }

/// The character that ends right before `position`, which moves back to its beginning.
inline char32_t previous_code_point(std::string_view text, std::size_t& position) {
  do --position;
  while ((static_cast<unsigned char>(text[position]) & 0xC0) == 0x80);
  return code_point_at(text, position);
}

inline void append_utf8(std::string& out, char32_t c) {
  const auto put = [&](char32_t value) { out.push_back(static_cast<char>(static_cast<unsigned char>(value))); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6));
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3F));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

inline std::u32string to_utf32(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) out.push_back(next_code_point(text, i));
  return out;
}

inline std::string to_utf8(std::u32string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char32_t c : text) append_utf8(out, c);
  return out;
}

inline bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

/// Text for messages from bytes of any kind: every maximal ill-formed part becomes U+FFFD (Unicode, section 3.9).
inline std::string repaired_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (true) {
    const std::size_t bad = first_invalid_utf8(bytes);
    out.append(bytes.substr(0, bad));
    if (bad == std::string_view::npos) return out;
    bytes.remove_prefix(bad);
    // The part to replace is the longest beginning of some well-formed character, at least one byte.
    std::size_t skip = 1;
    const std::size_t length = std::min(utf8_length(bytes[0]), bytes.size());
    for (; skip < length; ++skip) {
      std::string completed(bytes.substr(0, skip + 1));
      completed.resize(utf8_length(bytes[0]), '\x80');
      if (first_invalid_utf8(completed) != std::string_view::npos) break;
    }
    append_utf8(out, 0xFFFD);
    bytes.remove_prefix(skip);
  }
}

inline bool in_ranges(std::span<const CodePointRange> ranges, char32_t c) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), c,
                                      [](char32_t value, const CodePointRange& range) { return value < range.first; });
  return after != ranges.begin() && c <= std::prev(after)->last;
}

inline utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

/// White_Space (PropList.txt), which has been the same since Unicode 6.3.
constexpr bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

constexpr bool is_ascii_letter(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
constexpr bool is_ascii_digit(char32_t c) { return c >= '0' && c <= '9'; }

/// \p{N}: what the pre-tokenizer Digits splits at.
inline bool is_numeric(char32_t c) {
  if (c < 0x80) return is_ascii_digit(c);
  const auto kind = category(c);
  return (kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO) || in_ranges(numeric_added, c);
}

/// \w of Unicode's regular expressions (UTS 18, annex C).
inline bool is_word(char32_t c) {
  if (c < 0x80) return is_ascii_letter(c) || is_ascii_digit(c) || c == '_';
  const auto kind = category(c);
  return (kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_NL) || kind == UTF8PROC_CATEGORY_PC ||
         in_ranges(word_added, c);
}

/// Punctuation for BERT: \p{P} and every ASCII character that is neither letter, digit, space nor control.
inline bool is_punctuation(char32_t c) {
  if (c < 0x80) return c > ' ' && c < 0x7F && !is_ascii_letter(c) && !is_ascii_digit(c);
  const auto kind = category(c);
  if (kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO) return !in_ranges(punctuation_removed, c);
  return in_ranges(punctuation_added, c);
}

/// What BERT's clean-up drops: controls (but tab, line feed, carriage return), formats, private use, U+0000 and U+FFFD.
inline bool is_dropped_by_bert(char32_t c) {
  if (c < 0x80) return (c < ' ' && c != '\t' && c != '\n' && c != '\r') || c == 0x7F;
  if (c == 0xFFFD) return true;
  const auto kind = category(c);
  return (kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF || kind == UTF8PROC_CATEGORY_CO) &&
         !in_ranges(control_removed, c);
}

/// The nonspacing marks that BERT strips as accents.
inline bool is_nonspacing_mark(char32_t c) {
  if (c < 0x300) return false;
  if (category(c) == UTF8PROC_CATEGORY_MN) return !in_ranges(nonspacing_removed, c);
  return in_ranges(nonspacing_added, c);
}

/// The marks that the normaliser StripAccents drops.
inline bool is_mark(char32_t c) {
  if (c < 0x300) return false;
  const auto kind = category(c);
  if (kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME) return !in_ranges(mark_removed, c);
  return in_ranges(mark_added, c);
}

/// The blocks around which BERT puts spaces.
constexpr bool is_cjk(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

/// Appends the lower case of one character, without context (no final sigma).
inline void append_lower(std::u32string& out, char32_t c) {
  if (c < 0x80) {
    out.push_back(c >= 'A' && c <= 'Z' ? c + 32 : c);
  } else if (c == 0x130) {  // the only character whose lower case is two
    out.append({0x69, 0x307});
  } else {
    for (const LowerCaseRange& range : lower_case_added) {
      if (c >= range.first && c <= range.last) {
        out.push_back(static_cast<char32_t>(static_cast<std::int64_t>(c) + range.offset));
        return;
      }
    }
    out.push_back(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

inline int combining_class(char32_t c) {
  if (c < 0x300) return 0;
  const int value = utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
  return value != 0 && in_ranges(treated_as_starters, c) ? 0 : value;
}

/// NFD (NFKD with `compatibility`), composed to NFC (NFKC) with `compose`.
inline std::u32string normalisation_form(std::u32string_view text, bool compatibility, bool compose) {
  std::u32string out;
  out.reserve(text.size() + 16);
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | (compatibility ? UTF8PROC_COMPAT : 0));
  for (const char32_t c : text) {
    if (c < 0x80 || in_ranges(never_decomposed, c)) {
      out.push_back(c);
      continue;
    }
    std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition has 18
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts.data(), 32, options, &boundary);
    if (count < 0 || count > 32) throw std::logic_error("utf8proc cannot decompose a character");
    for (utf8proc_ssize_t k = 0; k < count; ++k)
      out.push_back(static_cast<char32_t>(parts[static_cast<std::size_t>(k)]));
  }
  // Canonical ordering: runs of marks by their combining class.
  for (std::size_t i = 0; i < out.size();) {
    if (combining_class(out[i]) == 0) {
      ++i;
      continue;
    }
    std::size_t end = i + 1;
    while (end < out.size() && combining_class(out[end]) != 0) ++end;
    std::stable_sort(out.begin() + static_cast<std::ptrdiff_t>(i), out.begin() + static_cast<std::ptrdiff_t>(end),
                     [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
  if (compose) {
    static_assert(sizeof(char32_t) == sizeof(utf8proc_int32_t));
    std::vector<utf8proc_int32_t> buffer(out.begin(), out.end());
    const auto length = utf8proc_normalize_utf32(buffer.data(), static_cast<utf8proc_ssize_t>(buffer.size()),
                                                 static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    if (length < 0) throw std::logic_error("utf8proc cannot compose a text");
    out.assign(buffer.begin(), buffer.begin() + length);
  }
  return out;
}

}  // namespace fedlora::detail
