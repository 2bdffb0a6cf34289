// SPDX-License-Identifier: Apache-2.0
// The patterns of tokenizer files: plain strings, one repeated character class, and the word regular expressions of
// GPT-2, Llama 3 and Qwen 2, recognised by their text and matched by hand. There is no regular expression engine here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/data/tokenizer/unicode.hpp"

namespace fedlora::detail {

/// The classes that the word regular expressions tell apart: \s, \p{L}, \p{N}, and what is left.
enum class WordClass : std::uint8_t { space, letter, number, other };

inline constexpr std::array<WordClass, 128> ascii_word_class = [] {
  std::array<WordClass, 128> table{};
  for (char32_t c = 0; c < 128; ++c) {
    table[c] = is_space(c)          ? WordClass::space
               : is_ascii_letter(c) ? WordClass::letter
               : is_ascii_digit(c)  ? WordClass::number
                                    : WordClass::other;
  }
  return table;
}();

inline WordClass word_class(char32_t c) {
  if (c < 0x80) return ascii_word_class[c];
  return is_letter(c)   ? WordClass::letter
         : is_number(c) ? WordClass::number
         : is_space(c)  ? WordClass::space
                        : WordClass::other;
}

/// The end of the run of characters of one class that begins at `position`, at most `limit` of them.
inline std::size_t run_end(std::string_view text, std::size_t position, WordClass wanted,
                           std::size_t limit = std::numeric_limits<std::size_t>::max()) {
  for (; position < text.size() && limit > 0; --limit) {
    std::size_t next = position;
    if (word_class(next_code_point(text, next)) != wanted) break;
    position = next;
  }
  return position;
}

/// `\s+(?!\S)|\s+` at the beginning of a run of white space: all of it at the end of the text, else all but its last
/// character, which may belong to the next word; a lone one whole.
inline std::size_t white_space_end(std::string_view text, std::size_t begin) {
  const std::size_t end = run_end(text, begin, WordClass::space);
  if (end == text.size()) return end;
  std::size_t last = end;
  previous_code_point(text, last);
  return last > begin ? last : end;
}

/// Calls `emit(begin, end)` for every match of GPT-2's regular expression; together they cover the text.
template <class Emit>
void for_each_gpt2_word(std::string_view text, Emit&& emit) {
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin;
    const std::string_view rest = text.substr(begin);
    if (rest.starts_with("'s") || rest.starts_with("'t") || rest.starts_with("'m") || rest.starts_with("'d")) {
      end = begin + 2;
    } else if (rest.starts_with("'re") || rest.starts_with("'ve") || rest.starts_with("'ll")) {
      end = begin + 3;
    } else {
      std::size_t first = begin;
      if (rest.size() > 1 && rest[0] == ' ' && word_class(code_point_at(rest, 1)) != WordClass::space) ++first;
      const WordClass kind = word_class(code_point_at(text, first));
      end = kind == WordClass::space ? white_space_end(text, begin) : run_end(text, first, kind);
    }
    emit(begin, end);
    begin = end;
  }
}

/// The bytes of an apostrophe with s, t, re, ve, m, ll or d in any case at the beginning of the text, or 0.
inline std::size_t contraction_length(std::string_view text) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  const auto lower = [&](std::size_t i) {
    const char c = i < text.size() ? text[i] : '\0';
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char a = lower(1), b = lower(2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
  if (text.substr(1).starts_with("\u017F")) return 3;  // the long s, which folds to s
  return 0;
}

/// Calls `emit(begin, end)` for every match of Llama 3's regular expression (Qwen 2's with numbers of one digit); they
/// cover the text.
template <class Emit>
void for_each_llama3_word(std::string_view text, std::size_t max_digits, Emit&& emit) {
  const auto is_newline = [&](std::size_t i) { return i < text.size() && (text[i] == '\r' || text[i] == '\n'); };
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin;
    std::size_t next = begin;
    const char32_t c = next_code_point(text, next);
    const WordClass kind = word_class(c);
    const WordClass following = next < text.size() ? word_class(code_point_at(text, next)) : WordClass::space;
    if (const std::size_t contraction = contraction_length(text.substr(begin)); contraction > 0) {
      end = begin + contraction;
    } else if (kind == WordClass::letter) {
      end = run_end(text, begin, WordClass::letter);
    } else if (following == WordClass::letter && kind != WordClass::number && !is_newline(begin)) {
      end = run_end(text, next, WordClass::letter);
    } else if (kind == WordClass::number) {
      end = run_end(text, begin, WordClass::number, max_digits);
    } else if (kind == WordClass::other || (c == ' ' && following == WordClass::other)) {
      end = run_end(text, kind == WordClass::other ? begin : next, WordClass::other);
      while (is_newline(end)) ++end;
    } else {
      // `\s*[\r\n]+`: up to the last line end of this white space, if it has one.
      end = run_end(text, begin, WordClass::space);
      while (end > begin && !is_newline(end - 1)) previous_code_point(text, end);
      if (end == begin) end = white_space_end(text, begin);
    }
    emit(begin, end);
    begin = end;
  }
}

/// A part of a text, which the pattern matches or not.
struct Match {
  std::size_t begin, end;
  bool matched;
};

/// A pattern: finds the parts of a text.
class Pattern {
 public:
  /// A plain string.
  static Pattern literal(std::string text) { return Pattern(Literal{std::move(text)}); }

  /// A regular expression, if it is one of those known here: a plain string with escapes; one character or one of \s \d
  /// \w \p{L} \p{N}, once or repeated by + {m} {m,} {m,n}; or the word expressions of GPT-2, Llama 3 and Qwen 2 as
  /// their authors wrote them.
  static std::optional<Pattern> regex(std::string_view text) {
    static constexpr std::string_view gpt2 =
        R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
    static constexpr std::string_view llama3_head = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)";
    static constexpr std::string_view llama3_tail = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    if (text == gpt2) return Pattern(Gpt2Words{});
    if (text.starts_with(llama3_head) && text.ends_with(llama3_tail) &&
        text.size() > llama3_head.size() + llama3_tail.size()) {
      const std::string_view digits =
          text.substr(llama3_head.size(), text.size() - llama3_head.size() - llama3_tail.size());
      if (digits == R"(\p{N}{1,3})") return Pattern(Llama3Words{3});
      if (digits == R"(\p{N})") return Pattern(Llama3Words{1});
      return std::nullopt;
    }
    return simple(text);
  }

  /// The parts of `text`, in order; together they cover it.
  std::vector<Match> find(std::string_view text) const {
    std::vector<Match> out;
    std::size_t done = 0;
    const auto found = [&](std::size_t begin, std::size_t end) {
      if (done < begin) out.push_back({done, begin, false});
      out.push_back({begin, end, true});
      done = end;
    };
    std::visit([&](const auto& kind) { kind.find(text, found); }, kind_);
    if (done < text.size()) out.push_back({done, text.size(), false});
    return out;
  }

  /// `text` with `content` in place of every match.
  std::string replace(std::string_view text, std::string_view content) const {
    std::string out;
    out.reserve(text.size() + text.size() / 4);
    std::size_t done = 0;
    const auto found = [&](std::size_t begin, std::size_t end) {
      out.append(text.substr(done, begin - done)).append(content);
      done = end;
    };
    std::visit([&](const auto& kind) { kind.find(text, found); }, kind_);
    return out.append(text.substr(done));
  }

 private:
  struct Literal {
    std::string text;

    template <class Found>
    void find(std::string_view in, Found&& found) const {
      for (std::size_t at = in.find(text); at != std::string_view::npos; at = in.find(text, at + text.size()))
        found(at, at + text.size());
    }
  };

  struct Gpt2Words {
    template <class Found>
    void find(std::string_view in, Found&& found) const {
      for_each_gpt2_word(in, found);
    }
  };

  struct Llama3Words {
    std::size_t max_digits;

    template <class Found>
    void find(std::string_view in, Found&& found) const {
      for_each_llama3_word(in, max_digits, found);
    }
  };

  /// One character, or one class, `least` to `most` times.
  struct Repeated {
    char32_t character = 0;
    char group = 0;  ///< 's', 'd', 'L', 'N', or 0: the character itself
    std::size_t least = 1, most = 1;

    bool accepts(char32_t c) const {
      switch (group) {
        case 's':
          return is_space(c);
        case 'd':
          return category(c) == UTF8PROC_CATEGORY_ND || in_ranges(number_added, c);  // all of these are decimal digits
        case 'L':
          return is_letter(c);
        case 'N':
          return is_number(c);
        default:
          return c == character;
      }
    }

    template <class Found>
    void find(std::string_view in, Found&& found) const {
      for (std::size_t at = 0; at < in.size();) {
        std::size_t end = at, count = 0;
        while (end < in.size() && count < most) {
          std::size_t next = end;
          if (!accepts(next_code_point(in, next))) break;
          end = next;
          ++count;
        }
        if (count >= least) found(at, end);
        at = count > 0 ? end : at + utf8_length(in[at]);
      }
    }
  };

  /// Reads one character or class of a simple expression.
  static bool read_atom(std::string_view& rest, Repeated& atom) {
    static constexpr std::string_view special = ".^$|()[]{}*+?";
    std::size_t used = 0;
    const char32_t c = next_code_point(rest, used);
    rest.remove_prefix(used);
    atom = Repeated{};
    if (c != '\\') {
      atom.character = c;
      return c >= 0x80 || special.find(static_cast<char>(c)) == std::string_view::npos;
    }
    if (rest.empty()) return false;
    const char escaped = rest[0];
    if (rest.starts_with("p{L}") || rest.starts_with("p{N}")) {
      atom.group = rest[2];
      rest.remove_prefix(4);
      return true;
    }
    rest.remove_prefix(1);
    if (escaped == 's' || escaped == 'd') {
      atom.group = escaped;
      return true;
    }
    if (escaped == 'n' || escaped == 'r' || escaped == 't') {
      atom.character = escaped == 'n' ? U'\n' : escaped == 'r' ? U'\r' : U'\t';
      return true;
    }
    atom.character = static_cast<char32_t>(escaped);
    const auto byte = static_cast<unsigned char>(escaped);
    return byte < 0x80 && !is_ascii_letter(byte) && !is_ascii_digit(byte);
  }

  /// Reads `+`, `{m}`, `{m,}` or `{m,n}`, numbers of at most three digits, to the end of the expression.
  static bool read_repetition(std::string_view rest, Repeated& atom) {
    if (rest == "+") {
      atom.most = std::numeric_limits<std::size_t>::max();
      return true;
    }
    if (!rest.starts_with('{') || !rest.ends_with('}')) return false;
    rest = rest.substr(1, rest.size() - 2);
    const auto number = [&](std::size_t& value) {
      std::size_t digits = 0;
      value = 0;
      while (digits < rest.size() && digits < 3 && is_ascii_digit(static_cast<unsigned char>(rest[digits])))
        value = value * 10 + static_cast<std::size_t>(rest[digits++] - '0');
      rest.remove_prefix(digits);
      return digits > 0;
    };
    if (!number(atom.least)) return false;
    atom.most = atom.least;
    if (rest.starts_with(',')) {
      rest.remove_prefix(1);
      if (rest.empty()) {
        atom.most = std::numeric_limits<std::size_t>::max();
      } else if (!number(atom.most)) {
        return false;
      }
    }
    return rest.empty() && atom.least > 0 && atom.least <= atom.most;
  }

  static std::optional<Pattern> simple(std::string_view text) {
    if (text.empty()) return std::nullopt;
    Repeated first;
    std::string_view rest = text;
    if (!read_atom(rest, first)) return std::nullopt;
    if (rest.empty() || read_repetition(rest, first)) return Pattern(first);
    std::string plain;
    for (rest = text; !rest.empty();) {
      if (!read_atom(rest, first) || first.group != 0) return std::nullopt;
      append_utf8(plain, first.character);
    }
    return literal(std::move(plain));
  }

  using Kind = std::variant<Literal, Gpt2Words, Llama3Words, Repeated>;
  explicit Pattern(Kind kind) : kind_(std::move(kind)) {}
  Kind kind_;
};

}  // namespace fedlora::detail
