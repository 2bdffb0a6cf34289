// SPDX-License-Identifier: Apache-2.0
// Tables whose texts have numbers or sets of labels: every form people have them in, and what is refused.
#include "fedlora/data/targets.hpp"

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "fedlora/data/partition.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/data/table_notes.hpp"

namespace fedlora::tests {
namespace {

using Names = std::vector<std::string>;
using Sets = std::vector<Names>;

Table answers_of(const std::string& text, const TableColumns& columns, const std::string& name = "t.csv") {
  return read_table(bytes_of(text, name), columns);
}

void refuses_answers(const std::string& text, const TableColumns& columns, const std::string& name,
                     std::initializer_list<std::string_view> parts) {
  CAPTURE(text);
  check_error<FormatError>([&] { answers_of(text, columns, name); }, parts);
}

}  // namespace

TEST_CASE("targets are numbers in one column or several, of any kind of table") {
  const Table one = answers_of("text,score\na,3\nb, -1.5e-3 \nc,+.5\n", {.text = {"text"}, .targets = {"score"}});
  CHECK(one.targets == std::vector<double>{3, -0.0015, 0.5});
  CHECK(answers_of("a\t1\t2\nb\t3\t4\n", {.text = {"1"}, .targets = {"3", "2"}}, "t.tsv").targets ==
        std::vector<double>{2, 1, 4, 3});
  const Table lines = answers_of("{\"t\":\"a\",\"u\":\"b\",\"y\":1e2,\"z\":\"7\"}\n",
                                 {.text = {"t"}, .text_pair = "u", .targets = {"y", "z"}}, "t.jsonl");
  CHECK(lines.targets == std::vector<double>{100, 7});
  CHECK(lines.text_pair == Names{"b"});
  const Index some[] = {2, 0};
  CHECK(one.select(some).targets == std::vector<double>{0.5, 3});
}

TEST_CASE("a number too small for a double is nought, as readers of decimal digits have it") {
  const std::string tiny = "0." + std::string(400, '0') + "1";
  CHECK(answers_of("text,score\na,1e-400\nb,-2E-999\nc," + tiny + "\n", {.text = {"text"}, .targets = {"score"}})
            .targets == std::vector<double>{0, 0, 0});
}

TEST_CASE("what is no finite number is no target") {
  for (const char* text :
       {"", "n/a", "nan", "inf", "-Infinity", "3,5", "1.2.3", "0x10", "1e999", "4 5", "+-1", "++1"}) {
    const std::string field = text;
    refuses_answers("text,score\na,1\nb,\"" + field + "\"\n", {.text = {"text"}, .targets = {"score"}}, "t.csv",
                    {"t.csv, line 3, column score", "a finite number", field.empty() ? "an empty field" : field});
  }
  refuses_answers("{\"t\":\"a\",\"y\":[1]}\n", {.text = {"t"}, .targets = {"y"}}, "t.jsonl",
                  {"line 1, field y", "an array"});
  refuses_answers("{\"t\":\"a\",\"y\":true}\n", {.text = {"t"}, .targets = {"y"}}, "t.jsonl",
                  {"a finite number", "'true'"});
  for (const char* text : {"NaN", "Infinity", "-Infinity", "1e400"})
    refuses_answers(std::string("{\"t\":\"a\",\"y\":") + text + "}\n", {.text = {"t"}, .targets = {"y"}}, "t.jsonl",
                    {"t.jsonl, line 1, ", " y]", "a finite number", text});
}

TEST_CASE("sets of labels: arrays, texts with a separator, columns of 0 and 1") {
  const Sets expected = {{"b", "a"}, {}, {"10"}};
  const TableColumns array{.text = {"t"}, .labels = {"y"}};
  const Table arrays = answers_of(
      "{\"t\":\"1\",\"y\":[\"b\",\"a\"]}\n{\"t\":\"2\",\"y\":[]}\n{\"t\":\"3\",\"y\":[10]}\n", array, "t.jsonl");
  CHECK(arrays.label_sets == expected);
  CHECK(arrays.label_names() == Names{"10", "a", "b"});
  CHECK(answers_of("{\"t\":\"1\",\"y\":[\"x;y \"]}\n", array, "t.jsonl").label_sets == Sets{{"x;y "}});

  TableColumns separated{.text = {"t"}, .labels = {"y"}, .label_separator = ";"};
  CHECK(answers_of("t,y\n1,b; a\n2,\n3,10;\n", separated).label_sets == expected);
  CHECK(answers_of("{\"t\":\"1\",\"y\":\"b;a\"}\n{\"t\":\"2\",\"y\":[\"b;a\"]}\n", separated, "t.jsonl").label_sets ==
        Sets{{"b", "a"}, {"b;a"}});
  separated.label_separator = ", ";
  CHECK(answers_of("t,y\n1,\"b, a\"\n", separated).label_sets == Sets{{"b", "a"}});

  const TableColumns flags{.text = {"t"}, .labels = {"b", "a", "never"}};
  const Table columns = answers_of("t,a,b,never\n1,1,1,0\n2,0,0.0,False\n3,true,0,0\n", flags);
  CHECK(columns.label_sets == Sets{{"b", "a"}, {}, {"a"}});
  CHECK(columns.label_names() == Names{"b", "a", "never"});
  CHECK(answers_of("{\"t\":\"1\",\"a\":true,\"b\":0,\"never\":1}\n", flags, "t.jsonl").label_sets ==
        Sets{{"a", "never"}});
  const Index some[] = {2, 2};
  CHECK(columns.select(some).label_sets == Sets{{"a"}, {"a"}});
  CHECK(columns.select(some).label_names() == Names{"b", "a", "never"});
}

TEST_CASE("one column of 0 and 1 is the label it is called like") {
  TableColumns toxic{.text = {"t"}, .labels = {"toxic"}};
  for (const auto& [text, name] :
       {std::pair("t,toxic\na,1\nb,0\nc,True\n", "t.csv"), std::pair("toxic\tt\n1\ta\n0.0\tb\ntrue\tc\n", "t.tsv"),
        std::pair("{\"t\":\"a\",\"toxic\":1}\n{\"t\":\"b\",\"toxic\":false}\n{\"t\":\"c\",\"toxic\":\"1\"}\n",
                  "t.jsonl")}) {
    const Table table = answers_of(text, toxic, name);
    CHECK(table.label_sets == Sets{{"toxic"}, {}, {"toxic"}});
    CHECK(table.label_names() == Names{"toxic"});
    CHECK(table.label_set_ids(Names{"toxic"}).offsets == std::vector<Index>{0, 1, 1, 2});
    CHECK(table_notes(table, table).size() == 1);  // the same texts; but not that all had one label
  }
  refuses_answers("t,toxic\na,1\nb,a;b\n", toxic, "t.csv",
                  {"t.csv, line 3, column toxic", "0 or 1", "separator, or arrays", "'a;b'"});
  refuses_answers("t,toxic\na,1\nb,2\n", toxic, "t.csv", {"line 3", "0 or 1", "'2'"});
  refuses_answers("t,toxic\na,1\nb,\n", toxic, "t.csv", {"line 3", "an empty field"});
  refuses_answers("{\"t\":\"a\",\"toxic\":1}\n{\"t\":\"b\",\"toxic\":[\"x\"]}\n", toxic, "t.jsonl",
                  {"t.jsonl, line 2, column toxic", "0 or 1"});
  refuses_answers("{\"t\":\"a\",\"toxic\":[]}\n{\"t\":\"b\",\"toxic\":1}\n", toxic, "t.jsonl",
                  {"line 2, column toxic", "an array of labels", "'1'"});
  toxic.label_separator = ";";
  CHECK(answers_of("t,toxic\na,1\nb,0\n", toxic).label_sets == Sets{{"1"}, {"0"}});  // a person who says so
}

TEST_CASE("sets of labels that could mean something else are refused, with file, line and column") {
  const TableColumns one{.text = {"t"}, .labels = {"y"}},
      separated{.text = {"t"}, .labels = {"y"}, .label_separator = "|"}, flags{.text = {"t"}, .labels = {"a", "b"}};
  refuses_answers("t,y\n1,a;b\n", one, "t.csv", {"t.csv, line 2, column y", "separator", "'a;b'"});
  refuses_answers("{\"t\":\"1\",\"y\":\"a\"}\n", one, "t.jsonl", {"line 1, column y", "an array of labels", "'a'"});
  refuses_answers("t,y\n1,a|b|a\n", separated, "t.csv", {"line 2, column y", "every label once", "'a' twice"});
  refuses_answers("{\"t\":\"1\",\"y\":[0,1,0]}\n", one, "t.jsonl", {"flags of 0 and 1", "'0' twice"});
  refuses_answers("{\"t\":\"1\",\"y\":[\"\"]}\n", one, "t.jsonl", {"an empty text"});
  refuses_answers("{\"t\":\"1\",\"y\":[null]}\n", one, "t.jsonl", {"field y", "or an array of them", "null"});
  refuses_answers("{\"t\":\"1\",\"y\":[\"a\",NaN]}\n", one, "t.jsonl",
                  {"t.jsonl, line 1, field y", "a finite number", "an array of them", "got NaN"});
  refuses_answers("{\"t\":\"1\",\"y\":[[1]]}\n", one, "t.jsonl", {"field y", "an array within an array"});
  refuses_answers("{\"t\":\"1\",\"y\":{\"a\":1}}\n", one, "t.jsonl", {"field y", "an object"});
  refuses_answers("{\"t\":[\"1\"],\"y\":[1]}\n", one, "t.jsonl", {"field t", "a string", "an array"});
  for (const char* bad : {"", "2", "-1", "yes", "0.5"})
    refuses_answers(std::string("t,a,b\n1,1,") + bad + "\n", flags, "t.csv", {"line 2, column b", "0 or 1"});
  check_error<ConfigError>([] { answers_of("t,a\n1,1\n", {.text = {"t"}, .label = "a", .targets = {"a"}}); },
                           {"t.csv", "one kind of answer", "several"});
  check_error<ConfigError>(
      [] {
        answers_of("t,a\n1,1\n", {.text = {"t"}, .targets = {"a", "a"}});
      },
      {"label columns", "distinct", "'a' twice"});
}

TEST_CASE("sets become numbers in ascending order, and unknown labels are named with their line") {
  const Table table = answers_of("t,y\n1,c;a\n2,\n3,b\n", {.text = {"t"}, .labels = {"y"}, .label_separator = ";"});
  const Names names = table.label_names(), few = {"a", "c"};
  const auto [labels, offsets] = table.label_set_ids(names);
  CHECK(labels == std::vector<std::int32_t>{0, 2, 1});
  CHECK(offsets == std::vector<Index>{0, 2, 2, 3});
  check_error<FormatError>([&] { table.label_set_ids(few); }, {"t.csv, line 4, label", "'a', 'c'", "'b'"});
  check_error<ConfigError>([&] { table.label_ids(names); }, {"t.csv", "a label column", "sets of labels"});
  const Table flags = answers_of("t,a,b\n1,1,0\n", {.text = {"t"}, .labels = {"a", "b"}});
  check_error<FormatError>([&] { flags.label_set_ids(names); }, {"t.csv", "a column for the label 'c'", "'a', 'b'"});

  Table renamed = flags;
  const Names was = {"a", "b"};
  renamed.name_labels(was, {LabelRule::order, {1, 0}, {"x", "y"}});
  CHECK(renamed.label_sets == Sets{{"y"}});
  CHECK(renamed.label_names() == Names{"y", "x"});
}

TEST_CASE("numbers are grouped by quantiles, equal ones together") {
  using Groups = std::vector<std::int32_t>;
  CHECK(quantile_groups(std::vector<double>{5, 1, 4, 2, 3, 0}, 3) == Groups{2, 0, 2, 1, 1, 0});
  CHECK(quantile_groups(std::vector<double>{0, 0, 0, 0, 1, 2}, 3) == Groups{0, 0, 0, 0, 1, 1});
  CHECK(quantile_groups(std::vector<double>{0, 0, 0, 7}, 10) == Groups{0, 0, 0, 1});
  CHECK(quantile_groups(std::vector<double>{2, 2, 2}) == Groups{0, 0, 0});
  CHECK(quantile_groups({}).empty());
  std::vector<double> hundred;
  for (int i = 0; i < 100; ++i) hundred.push_back(37 * i % 100);
  const Groups groups = quantile_groups(hundred);
  for (std::size_t i = 0; i < 100; ++i) CHECK(groups[i] == static_cast<std::int32_t>(hundred[i] / 10));
  check_error<ConfigError>([] { quantile_groups(std::vector<double>{1, std::nan("")}); }, {"number 1", "finite"});
  check_error<ConfigError>([] { quantile_groups({}, 0); }, {"at least 1"});
}

TEST_CASE("a set counts under its rarest label, and one without any apart") {
  const std::vector<std::int32_t> labels = {0, 1, 0, 2, 1, 0};  // {0, 1}, {}, {0, 2}, {1}, {0}
  const std::vector<Index> offsets = {0, 2, 2, 4, 5, 6};
  CHECK(rarest_labels(labels, offsets, 4) == std::vector<std::int32_t>{1, 4, 2, 1, 0});
  CHECK(rarest_labels(std::vector<std::int32_t>{1, 0}, std::vector<Index>{0, 2}, 2) == std::vector<std::int32_t>{0});
  check_error<ShapeError>([&] { rarest_labels(labels, offsets, 2); }, {"[0, 2)", "2"});
}

}  // namespace fedlora::tests
