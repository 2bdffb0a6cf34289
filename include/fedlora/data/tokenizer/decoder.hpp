// SPDX-License-Identifier: Apache-2.0
// From tokens back to text: a chain of steps that rewrite a list of strings, which is joined at the end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/data/tokenizer/normalizer.hpp"
#include "fedlora/data/tokenizer/pattern.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"

namespace fedlora::detail {

struct WordPieceDecoder {
  std::string prefix = "##";
  bool cleanup = true;  ///< takes spaces before punctuation and English contractions away
};
struct ByteLevelDecoder {};
struct MetaspaceDecoder {
  std::string replacement = "\u2581";
  bool drops_first = true;  ///< the marker before the first word is not a space of the text
};
struct BpeDecoder {
  std::string suffix = "</w>";
};
struct ByteFallbackDecoder {};
struct FuseDecoder {};
struct StripDecoder {
  char32_t character = U' ';
  std::size_t start = 0, stop = 0;  ///< at most this many at either end of each string
};
struct ReplaceDecoder {
  Pattern pattern;
  std::string content;
};

using Decoder = std::variant<WordPieceDecoder, ByteLevelDecoder, MetaspaceDecoder, BpeDecoder, ByteFallbackDecoder,
                             FuseDecoder, StripDecoder, ReplaceDecoder>;

inline std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  std::size_t done = 0;
  for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, done)) {
    out.append(text.substr(done, at - done)).append(to);
    done = at + from.size();
  }
  return out.append(text.substr(done));
}

/// The byte that a byte-level character stands for, or -1.
inline int byte_of_level_character(char32_t c) {
  static constexpr std::array<std::int16_t, 0x150> table = [] {
    std::array<std::int16_t, 0x150> bytes{};
    for (auto& entry : bytes) entry = -1;
    for (std::size_t b = 0; b < 256; ++b) bytes[byte_level_characters[b]] = static_cast<std::int16_t>(b);
    return bytes;
  }();
  return c < table.size() ? table[c] : -1;
}

/// The byte that a token like <0x0A> stands for.
inline std::optional<char> byte_of_fallback_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  unsigned value = 0;
  for (const char c : token.substr(3, 2)) {
    const char lower = c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c;
    if (lower >= '0' && lower <= '9') {
      value = value * 16 + static_cast<unsigned>(lower - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      value = value * 16 + static_cast<unsigned>(lower - 'a' + 10);
    } else {
      return std::nullopt;
    }
  }
  return static_cast<char>(static_cast<unsigned char>(value));
}

inline void decode_word_pieces(const WordPieceDecoder& options, std::vector<std::string>& tokens) {
  static constexpr std::pair<std::string_view, std::string_view> cleanups[] = {
      {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) {
      if (std::string_view(tokens[i]).starts_with(options.prefix)) {
        tokens[i].erase(0, options.prefix.size());
      } else {
        tokens[i].insert(0, 1, ' ');
      }
    }
    if (options.cleanup) {
      for (const auto& [from, to] : cleanups) tokens[i] = replace_all(tokens[i], from, to);
    }
  }
}

inline void decode_byte_level(std::vector<std::string>& tokens) {
  std::string bytes, decoded;
  for (const std::string& token : tokens) {
    decoded.clear();
    for (std::size_t i = 0; i < token.size();) {
      const int byte = byte_of_level_character(next_code_point(token, i));
      if (byte < 0) {  // not from the byte-level alphabet: an added token, which stands for itself
        decoded = token;
        break;
      }
      decoded.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
    }
    bytes += decoded;
  }
  tokens.assign(1, repaired_utf8(bytes));
}

inline void decode_byte_fallback(std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string bytes;
  const auto flush = [&] {
    if (first_invalid_utf8(bytes) == std::string_view::npos) {
      if (!bytes.empty()) out.push_back(bytes);
    } else {
      out.insert(out.end(), bytes.size(), "\uFFFD");
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const auto byte = byte_of_fallback_token(token)) {
      bytes.push_back(*byte);
    } else {
      flush();
      out.push_back(std::move(token));
    }
  }
  flush();
  tokens = std::move(out);
}

/// What transformers makes of a whole decoded text when told to clean up: English punctuation and contractions join the
/// word before.
inline std::string without_spaces_before_punctuation(std::string text) {
  static constexpr std::pair<std::string_view, std::string_view> cleanups[] = {
      {" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
      {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : cleanups) text = replace_all(text, from, to);
  return text;
}

/// Applies one step. \throws FormatError when the tokens become longer than `limit` bytes in all.
inline void decode_step(const Decoder& decoder, std::vector<std::string>& tokens, std::size_t limit) {
  const auto apply = [&](const auto& kind) {
    using Kind = std::decay_t<decltype(kind)>;
    if constexpr (std::is_same_v<Kind, WordPieceDecoder>) {
      decode_word_pieces(kind, tokens);
    } else if constexpr (std::is_same_v<Kind, ByteLevelDecoder>) {
      decode_byte_level(tokens);
    } else if constexpr (std::is_same_v<Kind, MetaspaceDecoder>) {
      for (std::size_t i = 0; i < tokens.size(); ++i)
        tokens[i] = replace_all(tokens[i], kind.replacement, i == 0 && kind.drops_first ? "" : " ");
    } else if constexpr (std::is_same_v<Kind, BpeDecoder>) {
      for (std::size_t i = 0; i < tokens.size(); ++i)
        tokens[i] = replace_all(tokens[i], kind.suffix, i + 1 == tokens.size() ? "" : " ");
    } else if constexpr (std::is_same_v<Kind, ByteFallbackDecoder>) {
      decode_byte_fallback(tokens);
    } else if constexpr (std::is_same_v<Kind, FuseDecoder>) {
      std::string whole;
      for (const std::string& token : tokens) whole += token;
      tokens.assign(1, std::move(whole));
    } else if constexpr (std::is_same_v<Kind, StripDecoder>) {
      for (std::string& token : tokens) {
        std::size_t begin = 0, end = token.size();
        std::size_t at = 0;
        for (std::size_t n = 0; n < kind.start && at < end && next_code_point(token, at) == kind.character; ++n)
          begin = at;
        at = end;
        for (std::size_t n = 0; n < kind.stop && at > begin && previous_code_point(token, at) == kind.character; ++n)
          end = at;
        token = token.substr(begin, end - begin);
      }
    } else {
      static_assert(std::is_same_v<Kind, ReplaceDecoder>);
      std::size_t bytes = 0;
      for (std::string& token : tokens) {
        token = kind.pattern.replace(token, kind.content, limit);
        check_rewritten(bytes += token.size(), limit);
      }
    }
  };
  std::visit(apply, decoder);
}

}  // namespace fedlora::detail
