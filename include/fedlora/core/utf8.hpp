// SPDX-License-Identifier: Apache-2.0
// Whether bytes are UTF-8: for everything that reads text from a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace fedlora::detail {

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

}  // namespace fedlora::detail
