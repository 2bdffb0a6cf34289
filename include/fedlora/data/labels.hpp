// SPDX-License-Identifier: Apache-2.0
// Which label is which row of a classification head: one rule for everything that reads labelled tables, heads and
// adapters.
//
// A head that is trained already has a name for each of its rows: the id2label of the adapter it came with, else of
// config.json. Labels of a table find their rows
//   1. by name: every label is the name of a row (the table need not have all of them);
//   2. by name up to letter case and outer spaces, as transformers' run_glue reads POSITIVE for positive;
//   3. by number: labels that are whole numbers take the row whose name says the same number (LABEL_3, "3", "3 stars"),
//      or, where names say something else (NEGATIVE, POSITIVE), the row of that number, from 0;
//   4. by order, that of numbers where labels are numbers, else the one they are given in: as many labels as rows, and
//      nothing that tells which is which: the rows are called LABEL_0, LABEL_1, … or 0, 1, …, or the labels are 1 to n,
//      or there is but one. A guess, of which a person should be told.
// Otherwise they find none: the head is for other labels.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/shape.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"

namespace fedlora {

/// The whole number that a label spells ("7", "-1", "07", " 7", "7.0": as tables write numbers), if it is one of at
/// most 18 digits.
inline std::optional<std::int64_t> whole_number(std::string_view label) {
  label = detail::without_outer_spaces(label);
  const bool negative = label.starts_with('-');
  if (negative || label.starts_with('+')) label.remove_prefix(1);
  const std::size_t digits = std::min(label.find_first_not_of("0123456789"), label.size());
  const std::string_view rest = label.substr(digits);
  if (digits == 0 || digits > 18) return std::nullopt;
  if (!rest.empty() && (rest[0] != '.' || rest.find_first_not_of('0', 1) != std::string_view::npos))
    return std::nullopt;
  std::int64_t value = 0;
  std::from_chars(label.data(), label.data() + digits, value);
  return negative ? -value : value;
}

/// The order of labels: whole numbers by value ("9" before "10"), before all others, which go by bytes.
struct LabelOrder {
  bool operator()(std::string_view a, std::string_view b) const {
    const auto x = whole_number(a), y = whole_number(b);
    if (x && y && *x != *y) return *x < *y;
    if (x.has_value() != y.has_value()) return x.has_value();
    return a < b;
  }
};

/// How labels found the rows of a head; see above.
enum class LabelRule { none, name, letter_case, number, order };

/// The rows that labels found.
struct LabelMatch {
  LabelRule rule = LabelRule::none;
  std::vector<Index> rows;         ///< of every label, in the order of the labels; empty when they found none
  std::vector<std::string> names;  ///< of every row from here on: the head's, but the labels where they go by order

  explicit operator bool() const { return rule != LabelRule::none; }
};

/// The names of a head's rows: `id2label` when it names each of them and no two alike, else LABEL_0, LABEL_1, …, as
/// transformers calls rows without a name.
inline std::vector<std::string> row_names(const std::vector<std::string>& id2label, Index rows) {
  const std::set<std::string_view> distinct(id2label.begin(), id2label.end());
  if (static_cast<Index>(id2label.size()) == rows && static_cast<Index>(distinct.size()) == rows) return id2label;
  std::vector<std::string> names;
  for (Index row = 0; row < rows; ++row) names.push_back("LABEL_" + std::to_string(row));
  return names;
}

namespace detail {

/// "'a', 'b' and 3 more", for messages.
inline std::string quoted_list(std::span<const std::string> names, std::size_t limit = 40) {
  std::string list;
  for (std::size_t i = 0; i < names.size() && i < limit; ++i)
    list.append(i == 0 ? "" : ", ").append(in_quotes(names[i], 60));
  if (names.size() > limit) list.append(" and ").append(std::to_string(names.size() - limit)).append(" more");
  return list;
}

/// The name without outer spaces, in lower case.
inline std::string folded_label(std::string_view name) {
  name = without_outer_spaces(name);
  if (first_invalid_utf8(name) != std::string_view::npos) return std::string(name);
  std::u32string lower;
  for (const char32_t c : to_utf32(name)) append_lower(lower, c);
  return to_utf8(lower);
}

/// The number that a row's name says: "3", "LABEL_3" or "3 stars".
inline std::optional<std::int64_t> row_number(const std::string& name) {
  const std::string folded = folded_label(name);
  const std::string_view text = folded;
  return whole_number(text.starts_with("label_") ? text.substr(6) : text.substr(0, text.find(' ')));
}

/// Of every key its place in `among`, or nothing unless each has one and the keys, and those they are sought among, are
/// distinct.
template <class Key>
std::optional<std::vector<Index>> places(const std::vector<Key>& keys, const std::vector<Key>& among) {
  std::map<Key, Index> place;
  for (const Key& key : among)
    if (!place.emplace(key, static_cast<Index>(place.size())).second) return std::nullopt;
  if (std::set<Key>(keys.begin(), keys.end()).size() != keys.size()) return std::nullopt;
  std::vector<Index> found;
  for (const Key& key : keys) {
    const auto entry = place.find(key);
    if (entry == place.end()) return std::nullopt;
    found.push_back(entry->second);
  }
  return found;
}

/// The number of every name, or nothing when one has none.
template <class F>
std::optional<std::vector<std::int64_t>> all_numbers(std::span<const std::string> names, F&& number_of) {
  std::vector<std::int64_t> numbers;
  for (const std::string& name : names) {
    const auto number = number_of(name);
    if (!number) return std::nullopt;
    numbers.push_back(*number);
  }
  return numbers;
}

}  // namespace detail

/// The rows of `labels` (distinct; in any order, unless that is all there is to tell them apart) in a head whose rows
/// are called `head`.
inline LabelMatch match_labels(const std::vector<std::string>& head, std::span<const std::string> labels) {
  if (head.empty() || labels.empty() || labels.size() > head.size()) return {};
  std::vector<std::string> asked(labels.begin(), labels.end());
  if (auto rows = detail::places(asked, head)) return {LabelRule::name, std::move(*rows), head};

  std::vector<std::string> folded_asked, folded_head;
  for (const std::string& name : asked) folded_asked.push_back(detail::folded_label(name));
  for (const std::string& name : head) folded_head.push_back(detail::folded_label(name));
  if (auto rows = detail::places(folded_asked, folded_head)) return {LabelRule::letter_case, std::move(*rows), head};

  const auto numbers = detail::all_numbers(labels, whole_number);
  auto row_numbers = detail::all_numbers(head, detail::row_number);
  const bool named = !row_numbers.has_value();  // by words, which say something about a label
  if (named) {
    row_numbers.emplace();
    for (std::size_t row = 0; row < head.size(); ++row) row_numbers->push_back(static_cast<std::int64_t>(row));
  }
  if (numbers)
    if (auto rows = detail::places(*numbers, *row_numbers)) return {LabelRule::number, std::move(*rows), head};

  std::vector<std::string> sorted = asked;
  std::sort(sorted.begin(), sorted.end(), LabelOrder{});
  const bool from_one = numbers && whole_number(sorted.front()) == 1 &&
                        whole_number(sorted.back()) == static_cast<std::int64_t>(sorted.size());
  if (asked.size() == head.size() && (!named || from_one || head.size() == 1)) {
    const std::vector<std::string>& order = numbers ? sorted : asked;
    if (auto rows = detail::places(asked, order)) return {LabelRule::order, std::move(*rows), order};
  }
  return {};
}

/// The rows of numbers, which need no names, in a head with as many: by name, up to letter case, where every one has
/// its row so; else by their place.
inline std::vector<Index> match_numbers(const std::vector<std::string>& head, std::span<const std::string> numbers) {
  const LabelMatch match = match_labels(head, numbers);
  if (match.rule == LabelRule::name || match.rule == LabelRule::letter_case) return match.rows;
  std::vector<Index> rows;
  for (std::size_t row = 0; row < numbers.size(); ++row) rows.push_back(static_cast<Index>(row));
  return rows;
}

/// "'a' = row 0 (NEGATIVE), 'b' = row 1 (POSITIVE)": what a person should be told of labels that did not find their
/// rows by name.
inline std::string label_rows_text(const LabelMatch& match, const std::vector<std::string>& head,
                                   std::span<const std::string> labels, std::size_t limit = 40) {
  std::string text;
  for (std::size_t i = 0; i < labels.size() && i < limit; ++i) {
    const auto row = static_cast<std::size_t>(match.rows[i]);
    text += (i == 0 ? "" : ", ") + detail::in_quotes(labels[i], 60) + " = row " + std::to_string(row) + " (" +
            detail::printable(head[row], 60) + ")";
  }
  return labels.size() > limit ? text + " and " + std::to_string(labels.size() - limit) + " more" : text;
}

}  // namespace fedlora
