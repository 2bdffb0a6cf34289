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
using LabelNames = std::vector<std::string>;
using RowNumbers = std::vector<Index>;

LabelMatch matched(const LabelNames& head, const LabelNames& labels) { return fedlora::match_labels(head, labels); }

LabelNames numbered(Index rows) { return fedlora::row_names({}, rows); }

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
  LabelNames labels = {"ä", "10", "b", "9", "-1", "Z", "2.0", "02"};
  std::sort(labels.begin(), labels.end(), fedlora::LabelOrder{});
  CHECK(labels == LabelNames{"-1", "02", "2.0", "9", "10", "Z", "b", "ä"});
}

TEST_CASE("labels: rows are found by name, in the head's order, and not every row needs a label") {
  const LabelNames head = {"contradiction", "neutral", "entailment"};
  const LabelMatch all = matched(head, {"entailment", "contradiction", "neutral"});
  CHECK(all.rule == LabelRule::name);
  CHECK(all.rows == RowNumbers{2, 0, 1});
  CHECK(all.names == head);
  const LabelMatch some = matched(head, {"entailment"});
  CHECK(some.rule == LabelRule::name);
  CHECK(some.rows == RowNumbers{2});
  CHECK(some.names == head);
  CHECK(matched({"1", "2", "3"}, {"2", "1"}).rows == RowNumbers{1, 0});
}

TEST_CASE("labels: names may differ in letter case and outer spaces where that leaves no doubt") {
  const LabelMatch folded = matched({"POSITIVE", "NÉGATIF"}, {"négatif", " Positive"});
  CHECK(folded.rule == LabelRule::letter_case);
  CHECK(folded.rows == RowNumbers{1, 0});
  CHECK(folded.names == LabelNames{"POSITIVE", "NÉGATIF"});
  CHECK_FALSE(matched({"yes", "YES"}, {"Yes", "yes"}));
  CHECK_FALSE(matched({"yes", "no"}, {"Yes", "yes"}));
  CHECK(matched({"\xff", "a"}, {"\xff", "A"}).rule == LabelRule::letter_case);
}

TEST_CASE("labels: numbers take the row that says the same number") {
  LabelNames labels;
  for (int i = 11; i >= 0; --i) labels.push_back(std::to_string(i));
  const LabelMatch twelve = matched(numbered(12), labels);
  CHECK(twelve.rule == LabelRule::number);
  CHECK(twelve.rows == RowNumbers{11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0});
  CHECK(twelve.names == numbered(12));
  CHECK(matched(numbered(3), {"2.0", "0.0"}).rows == RowNumbers{2, 0});
  CHECK(matched({"LABEL_1", "LABEL_0"}, {"0", "1"}).rows ==
        RowNumbers{1, 0});  // the name says the number, not the place
  CHECK(matched({"1", "2", "3"}, {"3.0", "1.0", "2.0"}).rows == RowNumbers{2, 0, 1});
  CHECK(matched({"1 star", "2 stars", "3 stars"}, {"3", "2"}).rows == RowNumbers{2, 1});

  const LabelMatch words = matched({"NEGATIVE", "POSITIVE"}, {"1", "0"});
  CHECK(words.rule == LabelRule::number);
  CHECK(words.rows == RowNumbers{1, 0});
  CHECK(words.names == LabelNames{"NEGATIVE", "POSITIVE"});
}

TEST_CASE("labels: rows go by order where nothing says which is which, and carry the labels from then on") {
  const LabelMatch words = matched(numbered(2), {"spam", "ham"});
  CHECK(words.rule == LabelRule::order);
  CHECK(words.rows == RowNumbers{0, 1});
  CHECK(words.names == LabelNames{"spam", "ham"});
  CHECK(matched({"0", "1"}, {"spam", "ham"}).rule == LabelRule::order);
  CHECK(matched(numbered(2), {"1", "-1"}).names == LabelNames{"-1", "1"});
  CHECK(matched(numbered(3), {"10", "9", "30"}).names == LabelNames{"9", "10", "30"});
  CHECK(matched(numbered(2), {"1", "1.0"}).rule == LabelRule::order);  // one number twice tells nothing

  const LabelMatch from_one = matched({"World", "Sports", "Business"}, {"2", "3", "1"});
  CHECK(from_one.rule == LabelRule::order);
  CHECK(from_one.rows == RowNumbers{1, 2, 0});
  CHECK(from_one.names == LabelNames{"1", "2", "3"});
  CHECK(matched({"similarity"}, {"score"}).names == LabelNames{"score"});
  CHECK(matched({"1 star", "2 stars", "3 stars"}, {"0", "2", "1"}).rows == RowNumbers{0, 2, 1});
}

TEST_CASE("labels: a head for other labels is not taken for these") {
  CHECK_FALSE(matched({"positive", "negative"}, {"good", "bad"}));
  CHECK_FALSE(matched({"positive", "negative"}, {"positive", "neutral"}));
  CHECK_FALSE(matched({"positive", "negative"}, {"positive", "negative", "neutral"}));
  CHECK_FALSE(matched({"positive", "negative"}, {"-1", "1"}));
  CHECK_FALSE(matched({"positive", "negative", "neutral"}, {"2", "3"}));
  CHECK_FALSE(matched(numbered(3), {"spam", "ham"}));
  CHECK_FALSE(matched(numbered(3), {"2", "3"}));
  CHECK_FALSE(matched({}, {"a"}));
  CHECK_FALSE(matched(numbered(2), {}));
}

TEST_CASE("labels: rows without names of their own are called as transformers calls them") {
  CHECK(fedlora::row_names({"a", "b"}, 2) == LabelNames{"a", "b"});
  CHECK(fedlora::row_names({"a", "b"}, 3) == LabelNames{"LABEL_0", "LABEL_1", "LABEL_2"});
  CHECK(fedlora::row_names({"a", "a"}, 2) == LabelNames{"LABEL_0", "LABEL_1"});
}

TEST_CASE("labels: a person is told which label became which row") {
  const LabelNames head = {"NEGATIVE", "POSITIVE"}, labels = {"0", "1"};
  CHECK(fedlora::label_rows_text(matched(head, labels), head, labels) ==
        "'0' = row 0 (NEGATIVE), '1' = row 1 (POSITIVE)");
  CHECK(fedlora::label_rows_text(matched(head, labels), head, labels, 1) == "'0' = row 0 (NEGATIVE) and 1 more");
}
