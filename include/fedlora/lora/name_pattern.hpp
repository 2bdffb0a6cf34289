// SPDX-License-Identifier: Apache-2.0
// Regular expressions over the names of modules, as the configurations of adapters have them. They come from anywhere,
// and every module is held against each: an expression is compiled once, one that is a plain name is compared as it is,
// the size of the others is bounded, and where the standard library can, matching takes polynomial time whatever they
// are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"

namespace fedlora::detail {

/// One expression.
class NamePattern {
 public:
  /// What it must match: the whole name (PEFT's target_modules), or the whole of what follows a dot, or the beginning,
  /// up to the end (rank_pattern, alpha_pattern).
  enum class Place { whole, end };

  /// \throws ConfigError with `where` for an expression that is none, too large, or means something to Python alone.
  NamePattern(const std::string& pattern, Place place, const std::string& where) : place_(place) {
    if (pattern.size() > longest)
      fail<ConfigError>(where, "a regular expression of at most " + std::to_string(longest) + " characters",
                        std::to_string(pattern.size()));
    if (const std::string_view part = misread_part(pattern); !part.empty())
      fail<ConfigError>(where, "a regular expression without " + in_quotes(part) + ", which Python alone reads so",
                        in_quotes(pattern));
    if ((plain_ = plain_name(pattern))) return;
    steps_ = steps_of(pattern);
    if (steps_ > most_steps)
      fail<ConfigError>(where,
                        "a regular expression of at most " + std::to_string(most_steps) +
                            " characters, sets and repetitions, counted as often as they are to be repeated",
                        in_quotes(pattern));
    if (std::count(pattern.begin(), pattern.end(), '(') > 256)
      fail<ConfigError>(where, "a regular expression with at most 256 groups", "more");
    auto syntax = std::regex::ECMAScript;
#if defined(__GLIBCXX__)
    syntax |= std::regex_constants::__polynomial;
#endif
    try {
      regex_.emplace(place == Place::whole ? pattern : "(.*\\.)?(" + pattern + ")", syntax);
    } catch (const std::regex_error& error) {
      fail<ConfigError>(where, "a regular expression", in_quotes(pattern) + " (" + error.what() + ")");
    }
  }

  bool matches(std::string_view name) const {
    if (!plain_) return std::regex_match(name.begin(), name.end(), *regex_);
    const std::size_t length = plain_->size();
    if (name.size() < length || (place_ == Place::whole && name.size() > length)) return false;
    if (name.size() > length && name[name.size() - length - 1] != '.') return false;
    const std::string_view end = name.substr(name.size() - length);
    return std::equal(end.begin(), end.end(), plain_->begin(), [](char c, char p) { return p == any || p == c; });
  }

  /// What it costs to hold a name against it: 0 for a plain one.
  std::size_t steps() const { return steps_; }

 private:
  static constexpr std::size_t longest = 8192, most_steps = 4096;
  static constexpr char any = '\0';

  /// The first part of an expression that Python reads and ECMAScript reads otherwise, so that it would match other
  /// modules in silence; empty without one: escaped letters that Python alone knows (\A, \Z), possessive quantifiers,
  /// classes that begin with ']' or hold "[:".
  static std::string_view misread_part(std::string_view pattern) {
    bool in_class = false;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
      const char c = pattern[i];
      const char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
      if (c == '\\') {
        if (is_letter(next) && std::string_view("bBdDsSwWfnrtvxu").find(next) == std::string_view::npos)
          return pattern.substr(i, 2);
        ++i;
      } else if (in_class) {
        if (c == '[' && next == ':') return pattern.substr(i, 2);
        in_class = c != ']';
      } else if (c == '[') {
        const std::size_t first = i + (next == '^' ? 2 : 1);
        if (first < pattern.size() && pattern[first] == ']') return pattern.substr(i, first + 1 - i);
        if (first + 1 < pattern.size() && pattern.substr(first, 2) == "[:") return pattern.substr(first, 2);
        in_class = true;
      } else if (std::string_view("*+?}").find(c) != std::string_view::npos && (next == '+' || next == '*')) {
        return pattern.substr(i, 2);
      }
    }
    return {};
  }

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
      } else if (!is_letter(c) && !is_digit(c) && c != '_' && c != '-') {
        return std::nullopt;
      }
      name.push_back(c);
    }
    return name;
  }

  /// Characters, sets and signs, those that a {count} repeats as often as it says.
  static std::size_t steps_of(std::string_view pattern) {
    constexpr std::size_t most = 1'000'000;
    std::vector<std::size_t> groups = {0};
    std::size_t last = 0;  // of what a count would repeat; it is part of groups.back()
    const auto add = [&](std::size_t steps) {
      last = steps;
      groups.back() = std::min(most, groups.back() + steps);
    };
    for (std::size_t i = 0; i < pattern.size(); ++i) {
      const char c = pattern[i];
      if (c == '\\') {
        ++i;
        add(1);
      } else if (c == '[') {
        for (++i; i < pattern.size() && pattern[i] != ']'; ++i)
          if (pattern[i] == '\\') ++i;
        add(1);
      } else if (c == '(') {
        groups.push_back(0);
      } else if (c == ')' && groups.size() > 1) {
        const std::size_t inner = groups.back();
        groups.pop_back();
        add(inner + 1);
      } else if (c == '{') {
        std::size_t count = 0, largest = 1;
        for (++i; i < pattern.size() && pattern[i] != '}'; ++i) {
          count = is_digit(pattern[i]) ? std::min(most, count * 10 + static_cast<std::size_t>(pattern[i] - '0')) : 0;
          largest = std::max(largest, count);
        }
        add(std::min(most, last * (largest - 1)));
      } else {
        add(1);
      }
    }
    std::size_t all = 0;
    for (const std::size_t steps : groups) all += steps;
    return all;
  }

  static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  Place place_;
  std::optional<std::string> plain_;
  std::size_t steps_ = 0;
  std::optional<std::regex> regex_;
};

/// Values by expression over the ends of names: PEFT's rank_pattern and alpha_pattern, in an order of one's own.
template <class V>
class PatternValues {
 public:
  /// \throws ConfigError with `where`, also for more expressions than can be held against every module.
  template <class Entries>
  PatternValues(const Entries& entries, const std::string& where) {
    constexpr std::size_t most_steps = 20000;
    std::size_t steps = 0;
    for (const auto& [pattern, value] : entries) {
      patterns_.emplace_back(NamePattern(pattern, NamePattern::Place::end, where), value);
      steps += patterns_.back().first.steps();
    }
    if (steps > most_steps)
      fail<ConfigError>(where,
                        "plain names, or regular expressions of " + std::to_string(most_steps) +
                            " characters, sets and repetitions in all",
                        std::to_string(steps));
  }

  /// The value of the first that matches.
  std::optional<V> find(std::string_view name) const {
    for (const auto& [pattern, value] : patterns_)
      if (pattern.matches(name)) return value;
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
