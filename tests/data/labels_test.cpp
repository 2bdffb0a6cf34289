// SPDX-License-Identifier: Apache-2.0
#include "fedlora/data/labels.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace {

using fedlora::Index;
using fedlora::LabelMatch;
using fedlora::LabelRule;
using Names = std::vector<std::string>;
using Rows = std::vector<Index>;

LabelMatch match(const Names& head, const Names& labels) { return fedlora::match_labels(head, labels); }

Names numbered(Index rows) { return fedlora::row_names({}, rows); }

}  // namespace

TEST_CASE("labels: whole numbers are what tables write for them") {
  using fedlora::whole_number;
  for (const char* three : {"3", "03", "+3", " 3", "3 ", "3.0", "3.", "3.000"}) CHECK(whole_number(three) == 3);
  CHECK(whole_number("-12") == -12);
  CHECK(whole_number("-0") == 0);
  CHECK(whole_number("999999999999999999") == 999999999999999999);
  for (const char* other :
       {"", " ", "-", "3.5", "1e3", "0x3", "3 stars", "three", ".0", "3-", "--3", "1,000", "1000000000000000000"})
    CHECK_FALSE(whole_number(other).has_value());
}

TEST_CASE("labels: numbers are sorted by value and before all others, which go by bytes") {
  Names labels = {"ä", "10", "b", "9", "-1", "Z", "2.0", "02"};
  std::sort(labels.begin(), labels.end(), fedlora::LabelOrder{});
  CHECK(labels == Names{"-1", "02", "2.0", "9", "10", "Z", "b", "ä"});
}

TEST_CASE("labels: rows are found by name, in the head's order, and not every row needs a label") {
  const Names head = {"contradiction", "neutral", "entailment"};
  const LabelMatch all = match(head, {"entailment", "contradiction", "neutral"});
  CHECK(all.rule == LabelRule::name);
  CHECK(all.rows == Rows{2, 0, 1});
  CHECK(all.names == head);
  const LabelMatch some = match(head, {"entailment"});
  CHECK(some.rule == LabelRule::name);
  CHECK(some.rows == Rows{2});
  CHECK(some.names == head);
  CHECK(match({"1", "2", "3"}, {"2", "1"}).rows == Rows{1, 0});
}

TEST_CASE("labels: names may differ in letter case and outer spaces where that leaves no doubt") {
  const LabelMatch folded = match({"POSITIVE", "NÉGATIF"}, {"négatif", " Positive"});
  CHECK(folded.rule == LabelRule::letter_case);
  CHECK(folded.rows == Rows{1, 0});
  CHECK(folded.names == Names{"POSITIVE", "NÉGATIF"});
  CHECK_FALSE(match({"yes", "YES"}, {"Yes", "yes"}));
  CHECK_FALSE(match({"yes", "no"}, {"Yes", "yes"}));
  CHECK(match({"\xff", "a"}, {"\xff", "A"}).rule == LabelRule::letter_case);
}

TEST_CASE("labels: numbers take the row that says the same number") {
  Names labels;
  for (int i = 11; i >= 0; --i) labels.push_back(std::to_string(i));
  const LabelMatch twelve = match(numbered(12), labels);
  CHECK(twelve.rule == LabelRule::number);
  CHECK(twelve.rows == Rows{11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0});
  CHECK(twelve.names == numbered(12));
  CHECK(match(numbered(3), {"2.0", "0.0"}).rows == Rows{2, 0});
  CHECK(match({"LABEL_1", "LABEL_0"}, {"0", "1"}).rows == Rows{1, 0});  // the name says the number, not the place
  CHECK(match({"1", "2", "3"}, {"3.0", "1.0", "2.0"}).rows == Rows{2, 0, 1});
  CHECK(match({"1 star", "2 stars", "3 stars"}, {"3", "2"}).rows == Rows{2, 1});

  const LabelMatch words = match({"NEGATIVE", "POSITIVE"}, {"1", "0"});
  CHECK(words.rule == LabelRule::number);
  CHECK(words.rows == Rows{1, 0});
  CHECK(words.names == Names{"NEGATIVE", "POSITIVE"});
}

TEST_CASE("labels: rows go by order where nothing says which is which, and carry the labels from then on") {
  const LabelMatch words = match(numbered(2), {"spam", "ham"});
  CHECK(words.rule == LabelRule::order);
  CHECK(words.rows == Rows{1, 0});
  CHECK(words.names == Names{"ham", "spam"});
  CHECK(match({"0", "1"}, {"spam", "ham"}).rule == LabelRule::order);
  CHECK(match(numbered(2), {"1", "-1"}).names == Names{"-1", "1"});
  CHECK(match(numbered(3), {"10", "9", "30"}).names == Names{"9", "10", "30"});
  CHECK(match(numbered(2), {"1", "1.0"}).rule == LabelRule::order);  // one number twice tells nothing

  const LabelMatch from_one = match({"World", "Sports", "Business"}, {"2", "3", "1"});
  CHECK(from_one.rule == LabelRule::order);
  CHECK(from_one.rows == Rows{1, 2, 0});
  CHECK(from_one.names == Names{"1", "2", "3"});
  CHECK(match({"1 star", "2 stars", "3 stars"}, {"0", "2", "1"}).rows == Rows{0, 2, 1});
}

TEST_CASE("labels: a head for other labels is not taken for these") {
  CHECK_FALSE(match({"positive", "negative"}, {"good", "bad"}));
  CHECK_FALSE(match({"positive", "negative"}, {"positive", "neutral"}));
  CHECK_FALSE(match({"positive", "negative"}, {"positive", "negative", "neutral"}));
  CHECK_FALSE(match({"positive", "negative"}, {"-1", "1"}));
  CHECK_FALSE(match({"positive", "negative", "neutral"}, {"2", "3"}));
  CHECK_FALSE(match(numbered(3), {"spam", "ham"}));
  CHECK_FALSE(match(numbered(3), {"2", "3"}));
  CHECK_FALSE(match({}, {"a"}));
  CHECK_FALSE(match(numbered(2), {}));
}

TEST_CASE("labels: rows without names of their own are called as transformers calls them") {
  CHECK(fedlora::row_names({"a", "b"}, 2) == Names{"a", "b"});
  CHECK(fedlora::row_names({"a", "b"}, 3) == Names{"LABEL_0", "LABEL_1", "LABEL_2"});
  CHECK(fedlora::row_names({"a", "a"}, 2) == Names{"LABEL_0", "LABEL_1"});
}

TEST_CASE("labels: a person is told which label became which row") {
  const Names head = {"NEGATIVE", "POSITIVE"}, labels = {"0", "1"};
  CHECK(fedlora::label_rows_text(match(head, labels), head, labels) ==
        "'0' = row 0 (NEGATIVE), '1' = row 1 (POSITIVE)");
  CHECK(fedlora::label_rows_text(match(head, labels), head, labels, 1) == "'0' = row 0 (NEGATIVE) and 1 more");
}
