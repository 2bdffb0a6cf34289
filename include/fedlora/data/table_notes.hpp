// SPDX-License-Identifier: Apache-2.0
// What a person should know of two tables before a classifier is trained on one and measured on the other: nothing of
// it is an error, and each makes a figure mean something else than it seems to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/shape.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/data/labels.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora {

/// Why the labels of a table look like its texts, if they do: more than half of twenty rows or more have a label of
/// their own.
inline std::optional<std::string> unlikely_labels(const Table& table) {
  const std::size_t names = std::set<std::string_view>(table.label.begin(), table.label.end()).size();
  if (table.size() < 20 || 2 * static_cast<Index>(names) <= table.size()) return std::nullopt;
  return "the label column has " + std::to_string(names) + " different values in " + std::to_string(table.size()) +
         " rows (are the columns of text and label exchanged?)";
}

namespace detail {

/// Labels that a person hardly means apart: equal but for letter case, outer spaces, or the way a number is written.
inline std::string labels_alike(const std::vector<std::string>& names) {
  std::map<std::string, std::vector<std::string>> alike;
  for (const std::string& name : names) {
    const auto number = whole_number(name);
    alike[number ? std::to_string(*number) : folded_label(name)].push_back(name);
  }
  std::string text;
  for (const auto& [key, same] : alike)
    if (same.size() > 1) text += (text.empty() ? "" : "; ") + quoted_list(same, 4);
  return text;
}

inline Index count_blank(const Table& table) {
  Index count = 0;
  for (std::size_t i = 0; i < table.text.size(); ++i)
    count += is_blank(table.text[i]) && (table.text_pair.empty() || is_blank(table.text_pair[i])) ? 1 : 0;
  return count;
}

/// How many examples of `test` stand in `train`, text and pair alike.
inline Index count_shared(const Table& train, const Table& test) {
  const auto key = [](const Table& table, std::size_t i) {
    return std::pair<std::string_view, std::string_view>(
        table.text[i], table.text_pair.empty() ? std::string_view() : std::string_view(table.text_pair[i]));
  };
  std::set<std::pair<std::string_view, std::string_view>> seen;
  for (std::size_t i = 0; i < train.text.size(); ++i) seen.insert(key(train, i));
  Index count = 0;
  for (std::size_t i = 0; i < test.text.size(); ++i) count += seen.contains(key(test, i)) ? 1 : 0;
  return count;
}

}  // namespace detail

/// How many texts are as long as texts may be, of which the longer ones were cut; empty when none is.
inline std::string cut_note(const Dataset& data, Index max_tokens) {
  Index at_limit = 0;
  for (Index i = 0; i < data.size(); ++i) at_limit += data.length(i) == max_tokens ? 1 : 0;
  if (at_limit == 0) return "";
  return std::to_string(at_limit) + " of the " + std::to_string(data.size()) + " texts reach the limit of " +
         std::to_string(max_tokens) + " tokens, where longer ones are cut";
}

namespace detail {

/// The number that all examples have, in the first place where they have one: "3", "3 in place 2 of 4". Empty: nowhere.
inline std::string constant_target(const Table& table) {
  const std::size_t outputs = table.size() > 0 ? table.targets.size() / table.text.size() : 0;
  for (std::size_t output = 0; output < outputs; ++output) {
    std::size_t i = output;
    while (i < table.targets.size() && table.targets[i] == table.targets[output]) i += outputs;
    if (i >= table.targets.size())
      return Json(table.targets[output]).dump() +
             (outputs == 1 ? "" : " in place " + std::to_string(output + 1) + " of " + std::to_string(outputs));
  }
  return "";
}

}  // namespace detail

/// That all examples have one label, or one number, which makes figures of a test mean little; empty where they do not.
inline std::string one_label_note(const Table& table) {
  if (const std::string number = detail::constant_target(table); !number.empty())
    return "all " + std::to_string(table.size()) + " examples have the number " + number +
           ": Pearson and Spearman are undefined";
  const std::vector<std::string> names = table.label_names();
  if (names.size() != 1 || !table.label_sets.empty()) return "";
  return "all " + std::to_string(table.size()) + " examples have the label " + detail::in_quotes(names[0]) +
         ": accuracy and macro F1 say nothing about the other labels";
}

/// A sentence for each thing: one label or number alone, in training or in testing; labels that differ in letter case,
/// spaces or the way a number is written; a label of their own for most examples; texts without a character; test
/// examples that were trained on, when they are a twentieth or more. Tables without labels have none of what concerns
/// them.
inline std::vector<std::string> table_notes(const Table& train, const Table& test) {
  std::vector<std::string> notes;
  for (const auto& [table, use] : {std::pair(&train, "training"), std::pair(&test, "testing")}) {
    const std::vector<std::string> names = table->label_names();
    if (names.size() == 1 && table->label_sets.empty())
      notes.push_back("all " + std::to_string(table->size()) + " examples for " + use + " have the label " +
                      detail::in_quotes(names[0]) +
                      (table == &train ? ": there is nothing to tell apart, and an accuracy of 1 says nothing"
                                       : ": accuracy and macro F1 say nothing about the other labels"));
    if (!table->label_sets.empty() && std::all_of(table->label_sets.begin(), table->label_sets.end(),
                                                  [](const auto& labels) { return labels.empty(); }))
      notes.push_back("none of the " + std::to_string(table->size()) + " texts for " + use +
                      " has a label: F1 is 0 whatever is predicted");
    if (const std::string number = detail::constant_target(*table); !number.empty())
      notes.push_back("all " + std::to_string(table->size()) + " examples for " + use + " have the number " + number +
                      (table == &train ? ": there is nothing to tell apart" : ": Pearson and Spearman are undefined"));
    if (const Index blank = detail::count_blank(*table); blank > 0)
      notes.push_back(std::to_string(blank) + " of the " + std::to_string(table->size()) + " texts for " + use +
                      " are empty");
  }
  if (const auto unlikely = unlikely_labels(train)) notes.push_back(train.source + ": " + *unlikely);
  if (const std::string alike = detail::labels_alike(train.label_names()); !alike.empty())
    notes.push_back(
        train.source +
        " has labels that count as different and differ only in letter case, spaces or the way a number is written: " +
        alike);
  const Index shared = detail::count_shared(train, test);
  if (shared == test.size() && shared > 0)
    notes.push_back("every text for testing is also one for training: figures say how well these are remembered");
  else if (20 * shared >= test.size() && shared > 0)
    notes.push_back(std::to_string(shared) + " of the " + std::to_string(test.size()) +
                    " texts for testing are also among those for training");
  return notes;
}

}  // namespace fedlora
