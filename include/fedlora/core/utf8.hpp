// SPDX-License-Identifier: Apache-2.0
// Whether bytes are UTF-8, and how somebody's bytes stand in a message: for everything that reads text from a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "fedlora/core/standard.hpp"

namespace fedlora::detail {

inline std::string_view without_outer_spaces(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

/// The byte offset of the first byte that is not part of well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms,
/// no surrogates, nothing above U+10FFFF), or npos.
inline std::size_t first_invalid_utf8(std::string_view text) {
  const std::size_t n = text.size();
  const auto byte = [&](std::size_t i) { return i < n ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto within = [](unsigned value, unsigned low, unsigned high) { return value >= low && value <= high; };
  std::size_t i = 0;
  while (i < n) {
    if (n - i >= 8) {
      std::uint64_t eight;
      std::memcpy(&eight, text.data() + i, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        i += 8;
        continue;
      }
    }
    const unsigned lead = byte(i);
    if (lead < 0x80) {
      ++i;
    } else if (within(lead, 0xC2, 0xDF) && within(byte(i + 1), 0x80, 0xBF)) {
      i += 2;
    } else if (within(lead, 0xE0, 0xEF) &&
               within(byte(i + 1), lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF) &&
               within(byte(i + 2), 0x80, 0xBF)) {
      i += 3;
    } else if (within(lead, 0xF0, 0xF4) &&
               within(byte(i + 1), lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF) &&
               within(byte(i + 2), 0x80, 0xBF) && within(byte(i + 3), 0x80, 0xBF)) {
      i += 4;
    } else {
      return i;
    }
  }
  return std::string_view::npos;
}

/// `text` fit for a message: control characters and bytes that are not UTF-8 as \xNN (a hostile name must not steer a
/// terminal), and cut after about `longest` bytes, never within a character.
inline std::string printable(std::string_view text, std::size_t longest = 120) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string shown;
  std::size_t i = 0;
  while (i < text.size() && i < longest) {
    std::size_t length = 1;  // of the character that starts here
    while (length <= 4 && (i + length > text.size() || first_invalid_utf8(text.substr(i, length)) < length)) ++length;
    const auto byte = static_cast<unsigned char>(text[i]);
    if (length > 4 || byte < 0x20 || byte == 0x7f) {
      shown.append("\\x").append(1, digits[byte >> 4]).append(1, digits[byte & 15]);
      ++i;
    } else {
      shown.append(text.substr(i, length));
      i += length;
    }
  }
  if (i < text.size()) shown.append("…");
  return shown;
}

/// The same in single quotes.
inline std::string in_quotes(std::string_view text, std::size_t longest = 120) {
  return "'" + printable(text, longest) + "'";
}

}  // namespace fedlora::detail
