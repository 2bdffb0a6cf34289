// SPDX-License-Identifier: Apache-2.0
// Sets of characters, and those that have a name in a regular expression: \p{...}, [[:...:]], \w, \d, \s, and the
// letters that are one when case is ignored. As Oniguruma has them (unicode_properties.hpp), by which Hugging Face
// tokenizers match expressions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/data/tokenizer/unicode.hpp"
#include "fedlora/data/tokenizer/unicode_properties.hpp"

namespace fedlora::detail {

inline constexpr std::uint32_t last_code_point = 0x10FFFF;

/// A set of code points: ranges in order, which do not touch.
class CharacterSet {
 public:
  CharacterSet() = default;
  CharacterSet(char32_t first, char32_t last) : ranges_{{first, last}} {}
  /// Ranges in any order.
  explicit CharacterSet(std::vector<CodePointRange> ranges) {
    std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const CodePointRange& range : ranges) {
      if (!ranges_.empty() && range.first <= ranges_.back().last + 1) {
        ranges_.back().last = std::max(ranges_.back().last, range.last);
      } else {
        ranges_.push_back(range);
      }
    }
  }

  const std::vector<CodePointRange>& ranges() const { return ranges_; }
  bool contains(char32_t c) const { return in_ranges(ranges_, c); }
  bool operator==(const CharacterSet& other) const {
    return std::equal(ranges_.begin(), ranges_.end(), other.ranges_.begin(), other.ranges_.end(),
                      [](const auto& a, const auto& b) { return a.first == b.first && a.last == b.last; });
  }

  CharacterSet operator|(const CharacterSet& other) const {
    std::vector<CodePointRange> both = ranges_;
    both.insert(both.end(), other.ranges_.begin(), other.ranges_.end());
    return CharacterSet(std::move(both));
  }
  CharacterSet operator~() const {
    CharacterSet out;
    std::uint32_t next = 0;
    for (const CodePointRange& range : ranges_) {
      if (next < range.first) out.ranges_.push_back({next, range.first - 1});
      next = range.last + 1;
    }
    if (next <= last_code_point) out.ranges_.push_back({next, last_code_point});
    return out;
  }
  CharacterSet operator&(const CharacterSet& other) const { return ~(~*this | ~other); }

 private:
  std::vector<CodePointRange> ranges_;
};

/// All code points by their general category, in order.
inline const std::vector<CategoryRange>& general_categories() {
  static const std::vector<CategoryRange> runs = [] {
    std::vector<CategoryRange> out;
    const CategoryRange* correction = std::begin(category_corrections);
    for (std::uint32_t c = 0; c <= last_code_point; ++c) {
      while (correction != std::end(category_corrections) && correction->last < c) ++correction;
      const bool corrected = correction != std::end(category_corrections) && correction->first <= c;
      const auto kind = corrected ? correction->category : static_cast<std::uint8_t>(category(c));
      if (!out.empty() && out.back().category == kind) {
        out.back().last = c;
      } else {
        out.push_back({c, c, kind});
      }
    }
    return out;
  }();
  return runs;
}

/// The characters of some general categories, bit 1 << utf8proc_category_t each.
inline CharacterSet characters_of(std::uint32_t categories) {
  std::vector<CodePointRange> ranges;
  for (const CategoryRange& run : general_categories()) {
    if ((categories >> run.category & 1) != 0) ranges.push_back({run.first, run.last});
  }
  return CharacterSet(std::move(ranges));
}

/// What \p{name} stands for, if the name is known; capitals, spaces, hyphens and underscores do not count.
inline std::optional<CharacterSet> characters_named(std::string_view name) {
  std::string plain;
  for (const char c : name) {
    if (c == ' ' || c == '-' || c == '_') continue;
    plain.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c);
  }
  const auto named = [](std::string_view known) { return *characters_named(known); };
  if (plain == "alnum") return named("alphabetic") | named("nd");
  if (plain == "word") return named("alphabetic") | named("m") | named("nd") | named("pc");
  if (plain == "graph") return ~(named("space") | named("cc") | named("cn"));
  if (plain == "print") return named("graph") | named("zs");
  for (const CharacterProperty& property : character_properties) {
    if (plain.empty() || (plain != property.name && plain != property.short_name)) continue;
    const CharacterSet listed = characters_of(property.categories),
                       flipped(std::vector<CodePointRange>(property.flipped.begin(), property.flipped.end()));
    return (listed & ~flipped) | (flipped & ~listed);
  }
  return std::nullopt;
}

/// Which letters are one when case is ignored.
struct CaseFolding {
  std::vector<std::pair<char32_t, char32_t>> equals;  ///< what a letter folds to, and the letter; sorted
  std::vector<char32_t> expanding;                    ///< letters that are also one with several (ß and ss); sorted
  std::vector<std::pair<char32_t, char32_t>>
      beginnings;  ///< the first two of several letters that are also one; sorted
};

inline const CaseFolding& case_folding() {
  static const CaseFolding folding = [] {
    CaseFolding out;
    const auto fold = [](char32_t c) {
      if (c == 0x130 || c == 0x131) return c;  // the dotted and the dotless i are letters of their own
      std::u32string lower;
      append_lower(lower, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
      return lower[0];
    };
    for (const CategoryRange& run : general_categories()) {  // what has no case is most of Unicode
      if (run.category == UTF8PROC_CATEGORY_CN || run.category == UTF8PROC_CATEGORY_CO ||
          run.category == UTF8PROC_CATEGORY_LO)
        continue;
      for (char32_t c = run.first; c <= run.last; ++c) {
        if (const char32_t folded = fold(c); folded != c) {
          out.equals.emplace_back(folded, c);
          out.equals.emplace_back(folded, folded);
        }
        utf8proc_int32_t parts[4];
        int boundary = 0;
        if (utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 4, UTF8PROC_CASEFOLD, &boundary) < 2)
          continue;
        out.expanding.push_back(c);
        out.beginnings.emplace_back(static_cast<char32_t>(parts[0]), static_cast<char32_t>(parts[1]));
      }
    }
    for (auto* pairs : {&out.equals, &out.beginnings}) {
      std::sort(pairs->begin(), pairs->end());
      pairs->erase(std::unique(pairs->begin(), pairs->end()), pairs->end());
    }
    return out;
  }();
  return folding;
}

/// The set with every letter that is one with a member when case is ignored.
inline CharacterSet with_other_cases(const CharacterSet& set) {
  std::vector<CodePointRange> ranges = set.ranges();
  const auto& equals = case_folding().equals;
  for (auto group = equals.begin(); group != equals.end();) {
    const auto end = std::find_if(group, equals.end(), [&](const auto& pair) { return pair.first != group->first; });
    if (std::any_of(group, end, [&](const auto& pair) { return set.contains(pair.second); })) {
      for (auto pair = group; pair != end; ++pair) ranges.push_back({pair->second, pair->second});
    }
    group = end;
  }
  return CharacterSet(std::move(ranges));
}

/// What a letter folds to when case is ignored.
inline char32_t folded_case(char32_t c) {
  for (const auto& [folded, letter] : case_folding().equals) {
    if (letter == c) return folded;
  }
  return c;
}

}  // namespace fedlora::detail
