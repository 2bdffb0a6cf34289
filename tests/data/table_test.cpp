// SPDX-License-Identifier: Apache-2.0
// Tables: which columns are taken, how a header is told from data, labels, and the errors.
#include "fedlora/data/table.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "support.hpp"

namespace {

using fedlora::Bytes;
using fedlora::Index;
using fedlora::Table;
using fedlora::TableColumns;
using Strings = std::vector<std::string>;

Table table_of(const std::string& text, const TableColumns& columns, const std::string& name = "t.csv") {
  return fedlora::read_table(fedlora::bytes_of(text, name), columns);
}

template <class E = fedlora::FormatError>
std::string error_of(const std::string& text, const TableColumns& columns, const std::string& name = "t.csv") {
  try {
    table_of(text, columns, name);
  } catch (const E& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("table: columns by name") {
  const std::string text = "id,title,body,label,note\n7,T,\"B,\nb\",x,\n8,U,C,y,n\n";
  const Table table = table_of(text, {.text = {"title", "body"}, .text_pair = "note", .label = "label", .id = "id"});
  CHECK(table.source == "t.csv");
  CHECK(table.size() == 2);
  CHECK(table.text == Strings{"T B,\nb", "U C"});
  CHECK(table.text_pair == Strings{"", "n"});
  CHECK(table.label == Strings{"x", "y"});
  CHECK(table.id == Strings{"7", "8"});
  CHECK(table.line == std::vector<Index>{2, 4});

  const Table plain = table_of(text, {.text = {"body"}});
  CHECK(plain.text == Strings{"B,\nb", "C"});
  CHECK(plain.label.empty());
  CHECK(plain.text_pair.empty());
  CHECK(plain.id.empty());
  CHECK(table_of(text, {.text = {"title", "title"}}).text == Strings{"T T", "U U"});
}

TEST_CASE("table: columns by number mean a file without a header") {
  const Table table = table_of("3,T,B\n1,\"U\",C\n", {.text = {"2", "3"}, .label = "1"});
  CHECK(table.text == Strings{"T B", "U C"});
  CHECK(table.label == Strings{"3", "1"});
  CHECK(table.line == std::vector<Index>{1, 2});
  // The first row is data even when its fields happen to equal the numbers of columns.
  CHECK(table_of("3,T,B\n", {.text = {"3"}}).text == Strings{"B"});
  CHECK(table_of("1,2\n2,t\n", {.text = {"2"}, .label = "1"}).text ==
        Strings{"t"});  // all numbers, all asked: a header
}

TEST_CASE("table: a header of numbers is a header when the columns asked for are in it") {
  const std::string text = "0,1,2\nx,a,b\ny,c,d\n";
  const Table named = table_of(text, {.text = {"1"}, .label = "2"});
  CHECK(named.text == Strings{"a", "c"});
  CHECK(named.label == Strings{"b", "d"});
  CHECK(table_of(text, {.text = {"1"}, .label = "0"}).label == Strings{"x", "y"});
  // A 3 is not among the names, so these are numbers of columns.
  CHECK(table_of(text, {.text = {"3"}}).text == Strings{"2", "b", "d"});
  CHECK(table_of("1,1\n1,2\n", {.text = {"1"}}).size() == 2);  // names would differ from each other
  // Any name makes the first row the header, and then a number is a name too.
  CHECK(table_of("1,text\na,b\n", {.text = {"text"}, .label = "1"}).label == Strings{"a"});
  CHECK(error_of("label,text\na,b\n", {.text = {"text"}, .label = "1"}) ==
        "[t.csv, line 1] expected a column named '1' in the header (in a file without one, columns go by number), got "
        "'label', 'text'");
}

TEST_CASE("table: a header that would be read as data is an error, until somebody says what it is") {
  const TableColumns numbers{.text = {"2"}, .label = "1"};
  std::string rows;
  for (int i = 0; i < 4; ++i) rows += "5,\"a good one\"\n1,bad\n";
  std::string words;
  for (int i = 0; i < 4; ++i) words += "good,\"a good one\"\nbad,a bad one\n";
  for (const std::string header : {"label,text\n", "Sentiment,review_body\n", "x,sentence\n", "stars,body\n"})
    for (const std::string& below : {rows, words}) {
      INFO(header, below);
      const std::string error = error_of(header + below, numbers);
      CHECK(error.starts_with("[t.csv, line 1] expected a row of data, as columns go by number"));
      CHECK(error.find("TableColumns::header, --header,") != std::string::npos);
      TableColumns said = numbers;
      said.header = fedlora::TableHeader::yes;
      CHECK(table_of(header + below, said).size() == 8);
      CHECK(table_of(header + below, said).label[0] == below.substr(0, below.find(',')));
      said.header = fedlora::TableHeader::no;
      CHECK(table_of(header + below, said).size() == 9);
    }
  CHECK(error_of("value,line\n" + rows, numbers)
            .starts_with("[t.csv, line 1] expected a row of data"));  // others: numbers
  CHECK(error_of("text\nhello\n", {.text = {"1"}}).starts_with("[t.csv, line 1] expected a row of data"));

  // What may well be data: a label that comes again, a text of words, a rare label, other columns than those taken.
  for (const std::string first : {"good,text\n", "bad,review\n", "ugly,an ugly one\n", "label,this is a text\n"})
    CHECK(table_of(first + words, numbers).size() == 9);
  CHECK(table_of("ugly,one\ngood,two\nbad,three\n", numbers).size() == 3);
  CHECK(table_of("hello\ntext\ntext\n", {.text = {"1"}}).size() == 3);
  CHECK(table_of("text\ntext\n", {.text = {"1"}}).size() == 2);
  CHECK(table_of("3,T,label\n1,U,C\n", numbers).size() == 2);
}

TEST_CASE("table: with a header columns go by name or else by number, without one by number alone") {
  const std::string text = "a,b\n1,2\n3,4\n";
  using fedlora::TableHeader;
  const auto labels = [&](const std::string& label, TableHeader header) {
    return table_of(text, {.text = {"1"}, .label = label, .header = header}).label;
  };
  CHECK(labels("2", TableHeader::yes) == Strings{"2", "4"});
  CHECK(labels("b", TableHeader::yes) == Strings{"2", "4"});
  CHECK(labels("2", TableHeader::no) == Strings{"b", "2", "4"});
  CHECK(table_of("2,1\nx,y\n", {.text = {"1"}, .header = TableHeader::yes}).text == Strings{"y"});  // a name first
  CHECK(table_of("2,1\nx,y\n", {.text = {"1"}, .header = TableHeader::no}).text == Strings{"2", "x"});
  CHECK(error_of(text, {.text = {"3"}, .header = TableHeader::yes}) ==
        "[t.csv, line 1] expected a column 3, got 2 columns");
  CHECK(error_of<fedlora::ConfigError>(text, {.text = {"a"}, .header = TableHeader::no}) ==
        "[t.csv, column a] expected a number from 1, as the file is said to have no header, got a name");
}

TEST_CASE("table: what separates columns, and how a file is encoded, is said when it is something else") {
  const TableColumns names{.text = {"text"}, .label = "label"};
  const TableColumns numbers{.text = {"2"}, .label = "1"};
  const auto says = [](const std::string& error, const std::string& part) {
    INFO(error);
    CHECK(error.find(part) != std::string::npos);
  };
  says(error_of("label\ttext\na\tb\n", names), "got 'label\\x09text'; it holds tabs: is it a .tsv file?");
  says(error_of("a\tb\n", numbers), "got 1 column; it holds tabs: is it a .tsv file?");
  says(error_of("label,text\na,b\n", names, "t.tsv"), "it holds commas: is it a .csv file?");
  says(error_of("label;text\na;b\n", names), "it holds semicolons");
  says(error_of("\"label\";\"text\"\n", names),
       "expected columns apart by commas (or, in a .tsv file, by tabs), got a semicolon");
  says(error_of("\"label\"\t\"text\"\n", names), "got a tab");
  for (const std::string name : {"t.csv", "t.tsv", "t.jsonl"})
    for (const std::string mark : {"\xFF\xFE", "\xFE\xFF"})
      says(error_of(mark + "a", names, name), "expected UTF-8, got UTF-16");
}

TEST_CASE("table: TSV and JSON Lines, by extension in any case") {
  const Table tabs = table_of("text\tlabel\nsay \"hi\"\t1\r\n", {.text = {"text"}, .label = "label"}, "dir/t.TSV");
  CHECK(tabs.text == Strings{"say \"hi\""});
  CHECK(tabs.label == Strings{"1"});
  const Table lines = table_of("\n{\"q\":\"Q\",\"a\":\"A\",\"n\":1.0,\"who\":3}\n",
                               {.text = {"q", "a"}, .text_pair = "a", .label = "n", .id = "who"}, "t.jsonl");
  CHECK(lines.text == Strings{"Q A"});
  CHECK(lines.text_pair == Strings{"A"});
  CHECK(lines.label == Strings{"1.0"});
  CHECK(lines.id == Strings{"3"});
  CHECK(lines.line == std::vector<Index>{2});
  CHECK(error_of("a", {.text = {"1"}}, "t.txt") ==
        "[t.txt] expected a table named .csv, .tsv or .jsonl (an object on every line), got .txt");
  CHECK(error_of("a", {.text = {"1"}}, "table") ==
        "[table] expected a table named .csv, .tsv or .jsonl (an object on every line), got no extension");
}

TEST_CASE("table: read from a path") {
  const fedlora::tests::TemporaryDirectory directory;
  const auto path = directory.path() / "t.csv";
  fedlora::tests::write_text(path, "text,label\na,b\n");
  const Table table = fedlora::read_table(path, {.text = {"text"}, .label = "label"});
  CHECK(table.text == Strings{"a"});
  CHECK(table.source == path.string());
  CHECK_THROWS_AS(fedlora::read_table(directory.path() / "absent.csv", {.text = {"text"}}), fedlora::IoError);
}

TEST_CASE("table: errors name file, line and column") {
  const TableColumns columns{.text = {"text"}, .label = "label"};
  CHECK(error_of("text,category\na,b\n", columns) ==
        "[t.csv, line 1] expected a column named 'label' in the header (in a file without one, columns go by number), "
        "got 'text', 'category'");
  CHECK(error_of("text,label,text\na,b,c\n", columns) ==
        "[t.csv, line 1] expected one column named 'text', got 'text', 'label', 'text'");
  CHECK(table_of("text,label,x,x\na,b,c,d\n", columns).size() == 1);  // nobody asks for x
  CHECK(error_of("text,label\na,b\nc\n", columns) == "[t.csv, line 3] expected 2 columns, as in the first row, got 1");
  CHECK(error_of("text,label\n\"a\n\",b\nc,d,e\n", columns) ==
        "[t.csv, line 4] expected 2 columns, as in the first row, got 3");
  CHECK(error_of("a,b\nc\n", {.text = {"1"}}) == "[t.csv, line 2] expected 2 columns, as in the first row, got 1");
  CHECK(
      error_of("a,b\n", {.text = {"3"}}) ==
      "[t.csv, line 1] expected a column 3 (no column is asked for by name, so the file has no header), got 2 columns");
  CHECK(error_of("", columns) == "[t.csv] expected rows, got an empty file");
  CHECK(error_of("\xEF\xBB\xBF", columns) == "[t.csv] expected rows, got an empty file");
  CHECK(error_of("\r\n\n", columns) == "[t.csv] expected rows, got an empty file");
  CHECK(error_of("text,label\n", columns) == "[t.csv] expected rows, got a header and nothing below it");
  CHECK(error_of("\n", columns, "t.jsonl") == "[t.jsonl] expected rows, got an empty file");
  CHECK(error_of("{\"text\":\"a\"}", columns, "t.jsonl") ==
        "[t.jsonl, line 1] expected a field named 'label', got fields 'text'");
  CHECK(error_of("text,label\n\"a,b\n", columns) ==
        "[t.csv, line 2, column 1] expected a closing quote, got the end of the file");
  CHECK(error_of("text,label\na,b\nc,\n", columns) ==
        "[t.csv, line 3, column label] expected a label, got an empty field");
  CHECK(error_of("{\"text\":\"a\",\"label\":\" \"}", columns, "t.jsonl") ==
        "[t.jsonl, line 1, column label] expected a label, got an empty field");
  CHECK(error_of("text,who\na,\n", {.text = {"text"}, .id = "who"}) ==
        "[t.csv, line 2, column who] expected whom the example belongs to, got an empty field");
  CHECK(
      error_of("0,1\na,b\n", {.text = {"0"}, .label = "2"}).starts_with("[t.csv, line 1] expected a column named '2'"));
  CHECK(error_of("a,b\n", {.text = {"99999999999999999999"}}).find("a column named") != std::string::npos);
  CHECK(error_of("a,b\n", {.text = {"+1"}}).find("a column named '+1'") != std::string::npos);
  CHECK(error_of<fedlora::ConfigError>("a,b\n", {}) == "[t.csv] expected at least one text column, got none");
  CHECK(error_of<fedlora::ConfigError>("a,b\n", {.text = {"a", ""}}) ==
        "[t.csv, text column] expected a name or a number, got an empty name");
}

TEST_CASE("table: labels are numbered as the training file has them, whole numbers by value") {
  const Table train = table_of("a,10\nb,9\nc,Z\nd,ä\ne,a\nf,10\n", {.text = {"1"}, .label = "2"});
  const Strings names = train.label_names();
  CHECK(names == Strings{"9", "10", "Z", "a", "ä"});
  CHECK(train.label_ids(names) == std::vector<std::int32_t>{1, 0, 2, 4, 3, 1});
  CHECK(train.label_ids(Strings{"ä", "a", "Z", "9", "10"}) == std::vector<std::int32_t>{4, 3, 2, 0, 1, 4});

  const Table test = table_of("text,label\n\"x\ny\",10\nz,11\n", {.text = {"text"}, .label = "label"}, "test.csv");
  CHECK_THROWS_WITH_AS(test.label_ids(names),
                       "[test.csv, line 4, label] expected one of '9', '10', 'Z', 'a', 'ä', got '11'",
                       fedlora::FormatError);
  CHECK_THROWS_WITH_AS(test.label_ids(Strings{"10", "10"}),
                       "[test.csv, label names] expected distinct names, got '10' twice", fedlora::ConfigError);
  CHECK_THROWS_AS(table_of("a,b\n", {.text = {"1"}}).label_ids(names), fedlora::ConfigError);
  Table by_hand;
  by_hand.source = "memory";
  by_hand.text = {"a"};
  by_hand.label = {"q"};
  CHECK_THROWS_WITH_AS(by_hand.label_ids(Strings{"r"}), "[memory, example 0, label] expected one of 'r', got 'q'",
                       fedlora::FormatError);
}

TEST_CASE("table: labels can be called by the names of the rows they belong to") {
  Table table = table_of("a,1\nb,0\nc,1\nd,2\n", {.text = {"1"}, .label = "2"});
  const Strings labels = {"1", "0"};
  table.name_labels(labels, fedlora::match_labels({"no", "yes"}, labels));
  CHECK(table.label == Strings{"yes", "no", "yes", "2"});
}

TEST_CASE("table: a selection keeps everything of its rows") {
  const Table table = table_of("a,p,x\nb,q,y\nc,r,z\n", {.text = {"1"}, .text_pair = "2", .label = "3"});
  const Table chosen = table.select(std::vector<Index>{2, 0});
  CHECK(chosen.source == "t.csv");
  CHECK(chosen.text == Strings{"c", "a"});
  CHECK(chosen.text_pair == Strings{"r", "p"});
  CHECK(chosen.label == Strings{"z", "x"});
  CHECK(chosen.id.empty());
  CHECK(chosen.line == std::vector<Index>{3, 1});
  CHECK(table.select({}).size() == 0);
  CHECK_THROWS_AS(table.select(std::vector<Index>{3}), fedlora::ShapeError);
  CHECK_THROWS_AS(table.select(std::vector<Index>{-1}), fedlora::ShapeError);
}

TEST_CASE("table: random bytes give a table or an error of ours") {
  fedlora::RandomSequence random(fedlora::derive_key(10, fedlora::Purpose::user));
  const std::string_view likely = "12ab,,\"\n\n\t\r{}:[";
  std::size_t read = 0, refused = 0;
  for (int file = 0; file < 6000; ++file) {
    std::string text;
    for (auto n = random.below(24); n > 0; --n)
      text += random.below(200) == 0 ? static_cast<char>(random.below(256)) : likely[random.below(likely.size())];
    const std::string name = file % 3 == 0 ? "t.csv" : file % 3 == 1 ? "t.tsv" : "t.jsonl";
    try {
      const Table table = table_of(text, {.text = {"1"}}, name);
      REQUIRE(table.size() > 0);
      REQUIRE(table.line.size() == table.text.size());
      ++read;
    } catch (const fedlora::Error&) {
      ++refused;
    }
  }
  CHECK(read > 500);
  CHECK(refused > 1000);
}
