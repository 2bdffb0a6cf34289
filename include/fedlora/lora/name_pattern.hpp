// SPDX-License-Identifier: Apache-2.0
// Regular expressions over the names of modules, as the configurations of adapters have them. They come from anywhere,
// and every module is held against each: an expression is compiled once, one that is a plain name is compared as it is,
// and the size of the others and the work for a name are bounded.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/data/tokenizer/pattern_program.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"
#include "fedlora/lora/name_expression.hpp"

namespace fedlora::detail {

/// One expression.
class NamePattern {
 public:
  /// What it must match: the whole name (PEFT's target_modules), or the whole of what follows a dot, or the beginning,
  /// up to the end (rank_pattern, alpha_pattern).
  enum class Place { whole, end };

  /// What a name may cost, for one expression or many.
  struct Work {
    PatternScratch scratch;
    std::uint64_t steps_left = most_steps;
  };

  /// \throws ConfigError with `where` for an expression that is none, is not read (name_expression.hpp) or too long,
  /// and FormatError for one of too many steps.
  NamePattern(const std::string& pattern, Place place, const std::string& where)
      : place_(place), text_(pattern), where_(where) {
    constexpr std::size_t longest = 8192;
    if (pattern.size() > longest)
      fail<ConfigError>(where, "a regular expression of at most " + std::to_string(longest) + " characters",
                        std::to_string(pattern.size()));
    plain_ = plain_name(pattern);
    if (plain_) return;
    const Expression expression = NameExpressionReader::read(pattern, place == Place::end, where);
    program_ = std::make_shared<const PatternProgram>(expression, where);
  }

  /// Of valid UTF-8. \throws ConfigError when the work left is not enough.
  bool matches(std::string_view name, Work& work) const {
    if (!plain_) {
      if (const auto found = program_->matches(name, work.scratch, work.steps_left)) return *found;
      fail<ConfigError>(where_,
                        "regular expressions that need no more than " + std::to_string(most_steps) +
                            " steps for a name, which is " + in_quotes(name, 200),
                        in_quotes(text_, 200));
    }
    const std::size_t length = plain_->size();
    if (name.size() < length || (place_ == Place::whole && name.size() > length)) return false;
    if (name.size() > length && name[name.size() - length - 1] != '.') return false;
    const std::string_view end = name.substr(name.size() - length);
    return std::equal(end.begin(), end.end(), plain_->begin(), [](char c, char p) { return p == any || p == c; });
  }
  bool matches(std::string_view name) const {
    Work work;
    return matches(name, work);
  }

  /// Its instructions; 0 for a plain one.
  std::size_t size() const { return program_ ? program_->size() : 0; }

 private:
  static constexpr std::uint64_t most_steps = std::uint64_t{1} << 20;
  static constexpr char any = '\0';

  /// The characters of an expression that is nothing but characters, `any` for a dot.
  static std::optional<std::string> plain_name(std::string_view pattern) {
    std::string name;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
      char c = pattern[i];
      if (c == '.') {
        c = any;
      } else if (c == '\\') {
        if (++i == pattern.size() || pattern[i] != '.') return std::nullopt;
        c = '.';
      } else if (!is_ascii_letter(static_cast<unsigned char>(c)) && !is_ascii_digit(static_cast<unsigned char>(c)) &&
                 c != '_' && c != '-') {
        return std::nullopt;
      }
      name.push_back(c);
    }
    return name;
  }

  Place place_;
  std::string text_, where_;
  std::optional<std::string> plain_;
  std::shared_ptr<const PatternProgram> program_;  ///< of one that is not plain
};

/// Values by expression over the ends of names: PEFT's rank_pattern and alpha_pattern, in an order of one's own.
template <class V>
class PatternValues {
 public:
  /// \throws ConfigError with `where`, also for more expressions than can be held against every module.
  template <class Entries>
  PatternValues(const Entries& entries, const std::string& where) {
    constexpr std::size_t most = 65536;
    std::size_t size = 0;
    for (const auto& [pattern, value] : entries) {
      patterns_.emplace_back(NamePattern(pattern, NamePattern::Place::end, where), value);
      size += patterns_.back().first.size();
      if (size > most)
        fail<ConfigError>(where, "plain names, or regular expressions of " + std::to_string(most) + " steps in all",
                          "more");
    }
  }

  /// The value of the first that matches. \throws ConfigError when that takes too much work.
  std::optional<V> find(std::string_view name) const {
    NamePattern::Work work;
    for (const auto& [pattern, value] : patterns_)
      if (pattern.matches(name, work)) return value;
    return std::nullopt;
  }

 private:
  std::vector<std::pair<NamePattern, V>> patterns_;
};

/// PEFT's test for an entry of a list of modules: the name, or its end from a dot on.
inline bool is_named(std::string_view name, std::string_view entry) {
  return name == entry ||
         (name.size() > entry.size() && name.ends_with(entry) && name[name.size() - entry.size() - 1] == '.');
}

}  // namespace fedlora::detail
