// SPDX-License-Identifier: Apache-2.0
// The readers of delimited records: what they accept, what they refuse and how they say it, a round trip, and a fuzzer.
#include "fedlora/data/csv.hpp"

#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"

namespace {

using namespace std::string_literals;
using fedlora::FormatError;
using fedlora::Index;
using Rows = std::vector<std::vector<std::string>>;

template <class Reader>
Rows rows_of(std::string_view text, std::vector<Index>* lines = nullptr) {
  Reader reader(text, "t");
  fedlora::Record record;
  Rows rows;
  while (reader.next(record)) {
    rows.push_back(record.fields);
    if (lines != nullptr) lines->push_back(record.line);
  }
  return rows;
}

Rows csv(std::string_view text) { return rows_of<fedlora::CsvReader>(text); }
Rows tsv(std::string_view text) { return rows_of<fedlora::TsvReader>(text); }

template <class Reader>
std::string error_of(std::string_view text) {
  try {
    rows_of<Reader>(text);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "no error";
}

/// A value as RFC 4180 writes it; quoted where it must be, or anyway.
std::string written(const std::string& field, bool quote) {
  if (!quote && field.find_first_of(",\"\r\n") == std::string::npos) return field;
  std::string out = "\"";
  for (const char c : field) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + "\"";
}

}  // namespace

TEST_CASE("CSV: plain, quoted, empty and last fields") {
  CHECK(csv("") == Rows{});
  CHECK(csv("a") == Rows{{"a"}});
  CHECK(csv("a,b\nc,d\n") == Rows{{"a", "b"}, {"c", "d"}});
  CHECK(csv("a,b\r\nc,d\r\n") == Rows{{"a", "b"}, {"c", "d"}});
  CHECK(csv("a,b\r\nc,d\n") == Rows{{"a", "b"}, {"c", "d"}});
  CHECK(csv("a,b\nc,d\r") == Rows{{"a", "b"}, {"c", "d"}});
  CHECK(csv(",\n,,") == Rows{{"", ""}, {"", "", ""}});
  CHECK(csv("\"\"") == Rows{{""}});
  CHECK(csv("\"\"\n\"\"\"\"\n") == Rows{{""}, {"\""}});
  CHECK(csv("\"a,b\",\"say \"\"hi\"\"\",\"one\ntwo\r\nthree\rfour\"\nx,y,z") ==
        Rows{{"a,b", "say \"hi\"", "one\ntwo\r\nthree\rfour"}, {"x", "y", "z"}});
  CHECK(csv(" a , b ") == Rows{{" a ", " b "}});  // spaces belong to the field
  CHECK(csv("a\tb;c") == Rows{{"a\tb;c"}});
  CHECK(csv("\xEF\xBB\xBF\"a\",b") == Rows{{"a", "b"}});
  CHECK(csv("ä,\U0001F600\n") == Rows{{"ä", "\U0001F600"}});
}

TEST_CASE("CSV: empty lines are no records, and lines are counted through quoted breaks") {
  std::vector<Index> lines;
  CHECK(rows_of<fedlora::CsvReader>("\n\r\na,\"b\n\nc\"\n\n\"\"\nlast,\"\r\n\"\r\n\r\n", &lines) ==
        Rows{{"a", "b\n\nc"}, {""}, {"last", "\r\n"}});
  CHECK(lines == std::vector<Index>{3, 7, 8});
}

TEST_CASE("CSV: what breaks the format is an error with file, line and column") {
  const auto error = error_of<fedlora::CsvReader>;
  CHECK(
      error("a,b\nc,\"d\"e\n") ==
      "[t, line 2, column 2] expected a comma or the end of the line after the closing quote (a quote inside a quoted "
      "field is doubled), got 'e\\x0a'");
  CHECK(error("a,b\nc\"d,e\n") ==
        "[t, line 2, column 1] expected an unquoted field without quotes (quote the whole field, and double the quotes "
        "inside), got 'c\"'");
  CHECK(error("a, \"b\"").starts_with("[t, line 1, column 2] expected an unquoted field without quotes"));
  // The line is where the record starts, not where the file ends.
  CHECK(error("x\na,b,\"c\nd\ne\n") == "[t, line 2, column 3] expected a closing quote, got the end of the file");
  CHECK(error("\"") == "[t, line 1, column 1] expected a closing quote, got the end of the file");
  CHECK(error("\"a\"\"") == "[t, line 1, column 1] expected a closing quote, got the end of the file");
  CHECK(error("a,b\rc,d") == "[t, line 1, column 2] expected lines that end with LF or CRLF, got a CR alone after 'b'");
  CHECK(error("\"a\"\rb").find("after the closing quote") != std::string::npos);
  CHECK(error("a\nb\0c,d\n"s) == "[t, line 2, column 1] expected text without NUL bytes, got a NUL after 'b'");
  CHECK(error("a,b\nc,d\xFFz\n") ==
        "[t, line 2, column 2] expected valid UTF-8 (iconv converts other encodings), got '\\xffz' after 1 bytes of "
        "the field");
  CHECK(error("\xFF\xFE"
              "a\0"s)
            .find("valid UTF-8") == std::string::npos);  // a NUL is found first
  CHECK(error(std::string(70000, ',')) == "[t, line 1, column 65537] expected at most 65536 columns, got more");
}

TEST_CASE("TSV: a tab separates, nothing is quoted") {
  CHECK(tsv("") == Rows{});
  CHECK(tsv("a\tb\nc\td\n") == Rows{{"a", "b"}, {"c", "d"}});
  CHECK(tsv("a\tb\r\nc\td\r") == Rows{{"a", "b"}, {"c", "d"}});
  CHECK(tsv("\"a\tb\"\n\"\"\t\"") == Rows{{"\"a", "b\""}, {"\"\"", "\""}});
  CHECK(tsv("\t\n\ta\t") == Rows{{"", ""}, {"", "a", ""}});
  CHECK(tsv("a,b\tc\rd\n") == Rows{{"a,b", "c\rd"}});
  CHECK(tsv("\xEF\xBB\xBF"
            "a\tb") == Rows{{"a", "b"}});
  std::vector<Index> lines;
  CHECK(rows_of<fedlora::TsvReader>("\r\na\n\nb\n\n", &lines) == Rows{{"a"}, {"b"}});
  CHECK(lines == std::vector<Index>{2, 4});
  const auto error = error_of<fedlora::TsvReader>;
  CHECK(error("a\tb\nc\t\xC3(\n") ==
        "[t, line 2, column 2] expected valid UTF-8 (iconv converts other encodings), got '\\xc3(' after 0 bytes of "
        "the field");
  CHECK(error("a\tb\0\n"s) == "[t, line 1, column 2] expected text without NUL bytes, got a NUL after 'b'");
}

TEST_CASE("CSV: whatever is written by the rules is read back") {
  fedlora::RandomSequence random(fedlora::derive_key(7, fedlora::Purpose::user));
  const std::vector<std::string> pieces = {"a",  "bc", ",",  "\"", "\"\"",       "\n", "\r\n",
                                           "\r", " ",  "\t", "ä",  "\U0001F600", "'"};
  for (int file = 0; file < 400; ++file) {
    const bool crlf = random.below(2) == 1;
    const bool end = random.below(2) == 1;
    Rows rows(1 + random.below(6));
    const std::size_t width = 1 + random.below(4);
    std::string text = random.below(4) == 0 ? "\xEF\xBB\xBF" : "";
    std::vector<Index> starts;
    Index line = 1;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      starts.push_back(line);
      for (std::size_t f = 0; f < width; ++f) {
        std::string field;
        for (auto n = random.below(5); n > 0; --n) field += pieces[random.below(pieces.size())];
        // A row of one empty field must be quoted to be a row at all.
        text += (f == 0 ? "" : ",") + written(field, random.below(3) == 0 || (width == 1 && field.empty()));
        for (const char c : field) line += c == '\n' ? 1 : 0;
        rows[r].push_back(field);
      }
      if (r + 1 < rows.size() || end) text += crlf ? "\r\n" : "\n";
      ++line;
    }
    std::vector<Index> lines;
    CAPTURE(text);
    CHECK(rows_of<fedlora::CsvReader>(text, &lines) == rows);
    CHECK(lines == starts);
  }
}

TEST_CASE("CSV and TSV: random bytes give records or a FormatError, and end") {
  fedlora::RandomSequence random(fedlora::derive_key(8, fedlora::Purpose::user));
  const std::string_view likely = "ab,,\"\"\n\r\t\n ";
  std::size_t read = 0, refused = 0;
  for (int file = 0; file < 4000; ++file) {
    std::string text;
    const bool wild = random.below(8) == 0;
    for (auto n = random.below(60); n > 0; --n)
      text += wild ? static_cast<char>(random.below(256)) : likely[random.below(likely.size())];
    for (const bool tabs : {false, true}) {
      try {
        const Rows rows = tabs ? tsv(text) : csv(text);
        for (const auto& row : rows) {
          REQUIRE(!row.empty());
          for (const auto& field : row) REQUIRE(fedlora::detail::first_invalid_utf8(field) == std::string::npos);
        }
        ++read;
      } catch (const FormatError& error) {
        REQUIRE(std::string_view(error.what()).starts_with("[t, line "));
        ++refused;
      }
    }
  }
  CHECK(read > 1000);
  CHECK(refused > 1000);
}
