// SPDX-License-Identifier: Apache-2.0
// What fields of a table say where an example has no single label: a number, a flag, a set of labels.
#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"

namespace fedlora::detail {

/// The number that a field spells: a finite one, in decimal digits with or without an exponent, as JSON and CSV writers
/// have it; one too small for a double is 0. \throws FormatError at `place`
inline double number_in_field(std::string_view field, const std::string& place) {
  std::string_view text = without_outer_spaces(field);
  if (text.starts_with('+') && text.find_first_of("+-", 1) != 1) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool tiny = error == std::errc::result_out_of_range &&
                    (text.find("e-") != text.npos || text.find("E-") != text.npos || text.find("0.") <= 1);
  if ((error != std::errc() && !tiny) || end != text.data() + text.size() || !std::isfinite(value))
    fail<FormatError>(place, "a finite number", field.empty() ? "an empty field" : in_quotes(field, 60));
  return value;
}

/// 1, 1.0 or true; 0, 0.0 or false; nothing for all else.
inline std::optional<bool> flag_of(std::string_view field) {
  const std::string_view text = without_outer_spaces(field);
  for (const char* yes : {"1", "1.0", "true", "True", "TRUE"})
    if (text == yes) return true;
  for (const char* no : {"0", "0.0", "false", "False", "FALSE"})
    if (text == no) return false;
  return std::nullopt;
}

/// Whether a text has a column's label. \throws FormatError at `place`; `more` follows what was expected
inline bool flag_in_field(std::string_view field, const std::string& place, const char* more = "") {
  if (const auto flag = flag_of(field)) return *flag;
  fail<FormatError>(place, std::string("0 or 1 (true or false): whether the text has this label") + more,
                    field.empty() ? "an empty field" : in_quotes(field, 60));
}

/// The labels that a field names: the elements of an array (JsonlField), or what stands between separators, without
/// outer spaces; nothing between two names none. \throws FormatError at `place` for a label that comes twice, and for
/// a text where nothing says what separates labels.
inline std::vector<std::string> labels_in_field(std::string_view field, std::string_view separator,
                                                const std::string& place) {
  const bool array = field.find('\0') != std::string_view::npos;
  if (!array && separator.empty() && !field.empty())
    fail<FormatError>(
        place,
        "an array of labels, or a separator (TableColumns::label_separator, --label-separator) to tell those in "
        "a text apart (or 0 and 1 alone: whether a text has the label that the column is called like)",
        in_quotes(field, 60));
  const std::string_view between = array ? std::string_view("\0", 1) : separator;
  std::vector<std::string> labels;
  std::set<std::string_view> seen;
  while (!field.empty()) {
    const std::size_t end = field.find(between);
    std::string_view label = field.substr(0, end);
    field.remove_prefix(end == std::string_view::npos ? field.size() : end + between.size());
    if (!array) label = without_outer_spaces(label);
    if (label.empty() && !array) continue;
    if (label.empty()) fail<FormatError>(place, "labels", "an empty text among them");
    if (!seen.insert(label).second)
      fail<FormatError>(place, "every label once (flags of 0 and 1 go into a column for each label)",
                        in_quotes(label, 60) + " twice");
    labels.emplace_back(label);
  }
  return labels;
}

}  // namespace fedlora::detail
