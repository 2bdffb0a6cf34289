// SPDX-License-Identifier: Apache-2.0
// The reader of JSON Lines: values as written, and every way a line can be wrong.
#include "fedlora/data/jsonl.hpp"

#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"

namespace {

using namespace std::string_literals;
using fedlora::Index;
using fedlora::JsonlReader;
using Rows = std::vector<std::vector<std::string>>;

Rows rows_of(std::string_view text, std::vector<Index>* lines = nullptr) {
  JsonlReader reader(text, "t", {{"text", true}, {"label", false}});
  fedlora::Record record;
  Rows rows;
  while (reader.next(record)) {
    rows.push_back(record.fields);
    if (lines != nullptr) lines->push_back(record.line);
  }
  return rows;
}

std::string error_of(std::string_view text) {
  try {
    rows_of(text);
  } catch (const fedlora::FormatError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("JSONL: fields by name, in any order, among others") {
  std::vector<Index> lines;
  CHECK(
      rows_of("\xEF\xBB\xBF{\"text\": \"a\", \"label\": \"x\"}\r\n \n\n"
              "  {\"label\":\"y\",\"other\":{\"text\":[1,{\"label\":null}]},\"text\":\"\\u00e4\\n\\ud83d\\ude00\\\"\"}",
              &lines) == Rows{{"a", "x"}, {"ä\n\U0001F600\"", "y"}});
  CHECK(lines == std::vector<Index>{1, 4});
  CHECK(rows_of("") == Rows{});
  CHECK(rows_of("\n \t\r\n") == Rows{});
}

TEST_CASE("JSONL: numbers and booleans become the text that was written") {
  for (const std::string written :
       {"0", "-0", "1", "-17", "1.0", "1.50", "-0.0", "1e3", "1E+03", "0.1", "9007199254740993", "18446744073709551615",
        "123456789012345678901234567890", "1e400", "true", "false"}) {
    CAPTURE(written);
    CHECK(rows_of("{\"text\":\"a\",\"label\":" + written + "}") == Rows{{"a", written}});
  }
}

TEST_CASE("JSONL: the same field may serve twice") {
  JsonlReader reader("{\"a\":\"b\"}", "t", {{"a", true}, {"a", false}});
  fedlora::Record record;
  REQUIRE(reader.next(record));
  CHECK(record.fields == std::vector<std::string>{"b", "b"});
}

TEST_CASE("JSONL: wrong lines are errors that name file, line and field") {
  const std::string good = "{\"text\":\"a\",\"label\":1}\n";
  CHECK(error_of(good + "{\"text\":\"a\",\"tag\":1}") ==
        "[t, line 2] expected a field named 'label', got fields 'text', 'tag'");
  CHECK(error_of("{}") == "[t, line 1] expected a field named 'text', got an object without fields");
  CHECK(error_of("{\"text\":1,\"label\":1}") == "[t, line 1, field text] expected a string, got a number");
  CHECK(error_of("{\"text\":true,\"label\":1}") == "[t, line 1, field text] expected a string, got a boolean");
  CHECK(error_of("{\"text\":null,\"label\":1}") == "[t, line 1, field text] expected a string, got null");
  CHECK(error_of("{\"text\":[\"a\"],\"label\":1}") == "[t, line 1, field text] expected a string, got an array");
  CHECK(error_of("{\"text\":{\"a\":1},\"label\":1}") == "[t, line 1, field text] expected a string, got an object");
  CHECK(error_of("{\"text\":\"a\",\"label\":null}") ==
        "[t, line 1, field label] expected a string, a number or a boolean, got null");
  CHECK(error_of("{\"text\":\"a\",\"label\":[1]}") ==
        "[t, line 1, field label] expected a string, a number or a boolean, got an array");
  CHECK(error_of("{\"text\":\"a\",\"label\":1,\"text\":\"b\"}") ==
        "[t, line 1, field text] expected one value, got the field twice");
  CHECK(error_of("{\"text\":\"a\\u0000b\",\"label\":1}") ==
        "[t, line 1, field text] expected text without NUL bytes, got a NUL");
  for (const std::string other : {"[1]", "\"a\"", "1", "-1", "1.5", "null", "true"})
    CHECK(error_of(good + other)
              .starts_with("[t, line 2] expected a JSON object (one on every line, nothing around them), got "));
}

TEST_CASE("JSONL: broken JSON is an error with the byte of the line") {
  for (const std::string broken :
       {"{\"text\":\"a\",\"label\":1", "{\"text\":\"a\" \"label\":1}", "{\"text\":\"a\",\"label\":01}", "{'text':'a'}",
        "nonsense", "{\"text\":\"a\",\"label\":1} {}", "{\"text\":\"a\",\"label\":1}}",
        "{\"text\":\"\\ud800\",\"label\":1}", "{\"text\":\"a\x01\",\"label\":1}", "{\"text\":\"a\",\"label\":nan}",
        "{\"text\":\"a\",\"label\":1,}"}) {
    CAPTURE(broken);
    const std::string error = error_of("\n" + broken + "\n");
    CHECK(error.starts_with("[t, line 2, byte "));
    CHECK(error.find("expected a JSON object, whole on its line (") != std::string::npos);
  }
  CHECK(error_of("\n{\n  \"text\": \"a\"") ==
        "[t, line 2, byte 1] expected a JSON object, whole on its line (a key in double quotes), got the end of the "
        "line");
  CHECK(error_of("{\"text\":\"a\",\"label\":1} {}") ==
        "[t, line 1, byte 23] expected a JSON object, whole on its line (the end after the value), got '{}'");
  CHECK(error_of("\n{\"text\":\"\xC3(\",\"label\":1}") ==
        "[t, line 2, byte 9] expected JSON in UTF-8, got '\\xc3(\",'");
  CHECK(error_of("\n\xFF\xFE{") == "[t, line 2, byte 0] expected JSON in UTF-8, got '\\xff\\xfe{'");
  CHECK(error_of("{\"text\":\"a\",\"label\":1}\0 rubbish"s) ==
        "[t, line 1] expected text without NUL bytes, got a NUL");
  CHECK(error_of("{\"text\":\"a\",\"label\":1,\"deep\":" + std::string(256, '[')) ==
        "[t, line 1] expected JSON nested at most 256 deep, got deeper nesting");
  CHECK(rows_of("{\"text\":\"a\",\"label\":1,\"deep\":" + std::string(255, '[') + std::string(255, ']') + "}").size() ==
        1);
}

TEST_CASE("JSONL: what Python writes for a missing number stands where nobody asks for it, and nowhere else") {
  for (const std::string written : {"NaN", "Infinity", "-Infinity"}) {
    CAPTURE(written);
    CHECK(rows_of("{\"score\": " + written + ", \"text\": \"a\", \"all\": [{\"x\": " + written + "}], \"label\": 1}") ==
          Rows{{"a", "1"}});
    CHECK(error_of("\n{\"text\":\"a\",\"label\":" + written + "}") ==
          "[t, line 2, field label] expected a string, a finite number or a boolean, got " + written);
    CHECK(error_of("{\"text\":" + written + ",\"label\":1}") ==
          "[t, line 1, field text] expected a string, got " + written);
    CHECK(rows_of("{\"text\":\"" + written + "\",\"label\":\"" + written + "\"}") == Rows{{written, written}});
  }
}

TEST_CASE("JSONL: a key that nobody asks for may come again with another value") {
  CHECK(rows_of("{\"x\":1,\"text\":\"a\",\"x\":[2],\"label\":1,\"y\":{\"text\":1,\"text\":2}}") == Rows{{"a", "1"}});
}

TEST_CASE("JSONL: mutated lines are read or refused") {
  fedlora::RandomSequence random(fedlora::derive_key(9, fedlora::Purpose::user));
  const std::string line = R"({"text":"aé\n\u00e9","x":[1,{"y":-2.5e3}],"label":-17,"z":null})";
  std::size_t read = 0, refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = line;
    for (auto n = 1 + random.below(2); n > 0; --n) {
      const auto at = random.below(text.size());
      if (random.below(2) == 0) {
        text.erase(at, 1 + random.below(4));
      } else {
        text[at] = random.below(4) == 0 ? static_cast<char>(random.below(256)) : line[random.below(line.size())];
      }
      if (text.empty()) text = " ";
    }
    try {
      rows_of(text);
      ++read;
    } catch (const fedlora::FormatError&) {
      ++refused;
    }
  }
  CHECK(read > 100);
  CHECK(refused > 1000);
}
