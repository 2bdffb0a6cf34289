// SPDX-License-Identifier: Apache-2.0
// What a person is told of two tables, and that ordinary ones give no occasion.
#include "fedlora/data/table_notes.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support.hpp"

namespace {

using fedlora::Table;
using fedlora::tests::has;
using NotedRow = std::pair<std::string, std::string>;  // text and label

Table noted_table(const std::vector<NotedRow>& rows, const std::string& source = "train.csv") {
  Table table;
  table.source = source;
  for (const auto& [text, label] : rows) {
    table.text.push_back(text);
    table.label.push_back(label);
  }
  return table;
}

std::string notes_of(const Table& train, const Table& test) {
  std::string lines;
  for (const std::string& note : fedlora::table_notes(train, test)) lines += (lines.empty() ? "" : "\n") + note;
  return lines;
}

const Table noted_ordinary = noted_table({{"a", "x"}, {"b", "y"}, {"c", "x"}});
const Table noted_other = noted_table({{"d", "x"}, {"e", "y"}}, "test.csv");

}  // namespace

TEST_CASE("table notes: ordinary tables have none") {
  CHECK(notes_of(noted_ordinary, noted_other).empty());
  Table few = noted_ordinary, unlabelled = noted_other;
  few.text.push_back("d");  // seen before, among many that were not
  few.label.push_back("x");
  for (int i = 0; i < 20; ++i) {
    unlabelled.text.push_back(std::to_string(i));
    unlabelled.label.push_back("y");
  }
  CHECK(notes_of(few, unlabelled).empty());
  few.label.clear();
  unlabelled.label.clear();
  CHECK(notes_of(few, unlabelled).empty());
}

TEST_CASE("table notes: one label alone makes figures empty") {
  const Table one = noted_table({{"a", "x"}, {"b", "x"}});
  CHECK(notes_of(one, noted_other) ==
        "all 2 examples for training have the label 'x': there is nothing to tell apart, and an accuracy of 1 says "
        "nothing");
  CHECK(notes_of(noted_ordinary, noted_table({{"d", "y"}, {"e", "y"}})) ==
        "all 2 examples for testing have the label 'y': accuracy and macro F1 say nothing about the other labels");
}

TEST_CASE("table notes: labels that a person hardly means apart") {
  const std::string notes = notes_of(
      noted_table(
          {{"a", "Money"}, {"b", "money "}, {"c", "1"}, {"d", "1.0"}, {"e", "01"}, {"f", "true"}, {"g", "cat"}}),
      noted_table({{"h", "cat"}, {"i", "1"}}));
  CHECK(has(notes,
            "differ only in letter case, spaces or the way a number is written: '01', '1', '1.0'; 'Money', 'money '"));
  CHECK_FALSE(has(notes, "true"));
}

TEST_CASE("table notes: texts in the place of labels") {
  std::vector<NotedRow> rows;
  for (int i = 0; i < 20; ++i) rows.push_back({i % 2 == 0 ? "x" : "y", "text " + std::to_string(i)});
  CHECK(has(notes_of(noted_table(rows), noted_table(rows)), "20 different values in 20 rows"));
  CHECK(fedlora::unlikely_labels(noted_table(rows)).has_value());
  for (int i = 0; i < 10; ++i) rows[static_cast<std::size_t>(i)].second = "text";
  CHECK(fedlora::unlikely_labels(noted_table(rows)).has_value());  // 11 of 20
  rows[10].second = "text";
  CHECK_FALSE(fedlora::unlikely_labels(noted_table(rows)).has_value());
}

TEST_CASE("table notes: empty texts, and texts that were trained on") {
  CHECK(notes_of(noted_table({{"a", "x"}, {" \t", "y"}, {"", "x"}}), noted_other) ==
        "2 of the 3 texts for training are empty");
  CHECK(notes_of(noted_ordinary, noted_table({{"a", "x"}, {"e", "y"}})) ==
        "1 of the 2 texts for testing are also among those for training");
  CHECK(notes_of(noted_ordinary, noted_ordinary) ==
        "every text for testing is also one for training: figures say how well these are remembered");
  Table pairs = noted_ordinary, others = noted_ordinary;
  pairs.text_pair = {"1", "2", ""};
  others.text_pair = {"2", "1", "3"};
  CHECK(notes_of(pairs, others).empty());
}

TEST_CASE("sets of labels that are all empty are told apart") {
  fedlora::Table none = noted_table({}), some;
  none.text = {"a", "b"};
  none.label_sets = {{}, {}};
  some = none;
  some.text = {"c", "d"};
  some.label_sets = {{}, {"x"}};
  CHECK(notes_of(some, none) == "none of the 2 texts for testing has a label: F1 is 0 whatever is predicted");
  CHECK(notes_of(none, some).starts_with("none of the 2 texts for training has a label"));
}

TEST_CASE("a table of one label alone is told apart") {
  CHECK(fedlora::one_label_note(noted_table({{"a", "x"}, {"b", "y"}})).empty());
  CHECK(fedlora::one_label_note(noted_table({{"a", "x"}, {"b", "x"}})) ==
        "all 2 examples have the label 'x': accuracy and macro F1 say nothing about the other labels");
}

TEST_CASE("a table of one number alone is told apart") {
  Table table = noted_table({{"a", ""}, {"b", ""}});
  table.label.clear();
  table.targets = {0.5, 0.5};
  CHECK(fedlora::one_label_note(table) == "all 2 examples have the number 0.5: Pearson and Spearman are undefined");
  table.targets = {0.5, 1};
  CHECK(fedlora::one_label_note(table).empty());
  table.targets = {0.5, 2, 1, 2};
  CHECK(has(fedlora::one_label_note(table), "have the number 2.0 in place 2 of 2:"));
}

TEST_CASE("texts that reach the limit are counted: longer ones were cut") {
  fedlora::Dataset data;
  using Ids = std::vector<std::int32_t>;
  for (const Ids& ids : {Ids{1, 2}, Ids{1, 2, 3}, Ids{3, 2, 1}}) data.append(ids, Ids(ids.size(), 0));
  CHECK(fedlora::cut_note(data, 4).empty());
  CHECK(fedlora::cut_note(data, 3) == "2 of the 3 texts reach the limit of 3 tokens, where longer ones are cut");
}
