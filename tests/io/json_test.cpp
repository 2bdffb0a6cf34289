// SPDX-License-Identifier: Apache-2.0
// JSON that is right, wrong and hostile, and fields of every type.
#include "fedlora/io/json.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "errors.hpp"

namespace {

using namespace fedlora;
using fedlora::tests::check_error;

Json parse(std::string text) { return parse_json(bytes_of(std::move(text), "config.json")); }

/// What the parser tells, in its order.
struct JsonEvents {
  static constexpr std::string_view kind = "a text", end = "its end";
  std::string told;

  void null() { told += "null "; }
  void boolean(bool value) { told += value ? "true " : "false "; }
  void number(std::string_view written) { told.append(written).append(" "); }
  void string(const std::string& value) { told += "'" + value + "' "; }
  void key(const std::string& name) { told += name + "= "; }
  void begin_object() { told += "{ "; }
  void end_object() { told += "} "; }
  void begin_array() { told += "[ "; }
  void end_array() { told += "] "; }
};

std::string events_of(std::string_view text) {
  JsonEvents events;
  detail::JsonParser(text, "f", events).whole();
  return events.told;
}

std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace

TEST_CASE("a value of every kind is parsed") {
  const Json value =
      parse(" {\"a\": [1, -2, 3.5, true, false, null, \"\\u00e9\\ud83d\\ude00é\"], \"\": {\"b\": {}}, \"c\": []}\n");
  CHECK(value.at("a").dump() == "[1,-2,3.5,true,false,null,\"é😀é\"]");
  CHECK(value.at("").dump() == "{\"b\":{}}");
  CHECK(value.at("c").is_array());
  CHECK(parse("7") == Json(7));
  CHECK(parse("[[1,[2,[3]]],4]").dump() == "[[1,[2,[3]]],4]");
  CHECK(parse("18446744073709551615").get<std::uint64_t>() == UINT64_MAX);
  // The length limit that tokenizers write when they have none.
  CHECK(parse("1000000000000000019884624838656").get<double>() == 1000000000000000019884624838656.0);
}

TEST_CASE("what Python's json takes is taken, with the same value, and what it refuses is refused") {
  int taken = 0, refused = 0;
  for (const Json& entry : parse_json(map_file(FEDLORA_TEST_DIR "/golden/json_texts.json"))) {
    const auto text = entry.at("text").get<std::string>();
    CAPTURE(text);
    if (!entry.contains("value")) {
      CHECK_THROWS_AS(parse(text), FormatError);
      ++refused;
      continue;
    }
    const Json value = parse(text);
    CHECK(json_text(value) == json_text(entry["value"]));  // NaN is not equal to itself
    CHECK(json_text(parse(json_text(value, 2))) == json_text(value));
    ++taken;
  }
  CHECK(taken > 45);
  CHECK(refused > 60);
}

TEST_CASE("numbers that JSON has no word for are read, written and refused where they are asked for") {
  const Json object = parse(R"({"nan": NaN, "up": Infinity, "down": [-Infinity, 1], "huge": -1e400})");
  CHECK(std::isnan(object.at("nan").get<double>()));
  CHECK(object.at("huge").get<double>() == -std::numeric_limits<double>::infinity());
  CHECK(json_text(object) == R"({"down":[-Infinity,1],"huge":-Infinity,"nan":NaN,"up":Infinity})");
  CHECK(
      json_text(object, 2) ==
      "{\n  \"down\": [\n    -Infinity,\n    1\n  ],\n  \"huge\": -Infinity,\n  \"nan\": NaN,\n  \"up\": Infinity\n}");
  check_error<FormatError>([&] { json_get<double>(object, "nan", "f"); },
                           {"f, field nan", "a finite number", "got NaN"});
  check_error<FormatError>([&] { json_get_or<float>(object, "up", "f", 1); }, {"f, field up", "got Infinity"});
  check_error<FormatError>([&] { json_get<std::vector<double>>(object, "down", "f"); }, {"down[0]", "got -Infinity"});
  check_error<FormatError>([&] { json_get<int>(object, "nan", "f"); }, {"an integer", "got NaN"});
}

TEST_CASE("text is written as nlohmann writes it where all numbers are finite") {
  const Json value = parse(R"({"a": [1, -2, 3.5, [], {}, true, null], "é\n": {"b": ["x"]}})");
  for (const int indent : {-1, 0, 2}) CHECK(json_text(value, indent) == value.dump(indent));
}

TEST_CASE("broken syntax is named with the file, the byte and what was wanted") {
  struct Case {
    const char* text;
    const char* where;
    const char* expected;
  };
  for (const Case& c : {Case{"", "byte 0", "a value), got the end of the text"},
                        Case{"   ", "byte 3", "a value), got the end"},
                        Case{"{\"a\": 1", "byte 7", "',' or '}'), got the end"},
                        Case{"{\"a\" 1}", "byte 5", "':' after the key 'a'), got '1}'"},
                        Case{"[1, 2,]", "byte 6", "a value), got ']'"},
                        Case{"[1] x", "byte 4", "the end after the value), got 'x'"},
                        Case{"{'a': 1}", "byte 1", "a key in double quotes"},
                        Case{"[01]", "byte 2", "',' or ']'"},
                        Case{"[+1]", "byte 1", "a value"},
                        Case{"[1.]", "byte 3", "a digit"},
                        Case{"[0x10]", "byte 2", "',' or ']'"},
                        Case{"\"tab\there\"", "byte 4", "control characters"},
                        Case{"// no\n1", "byte 0", "a value), got '// no'"},
                        Case{"[\"open", "byte 1", "a string that ends), got '\"open'"},
                        Case{"[\"\\x\"]", "byte 2", "an escape"},
                        Case{"[\"\\ud800\"]", "byte 2", "both halves of a surrogate pair"},
                        Case{"[\"\\udc00\"]", "byte 2", "both halves of a surrogate pair"},
                        Case{"[\"\\ud800\\u0041\"]", "byte 2", "both halves of a surrogate pair"},
                        Case{"{\n\"a\":\n nul}", "byte 8 (line 3)", "a value), got 'nul}'"},
                        Case{"[\"two\nlines\"]", "byte 5", "got the end of the line"},
                        Case{"\xEF\xBB\xBF{}", "byte 0", "without a byte-order mark"},
                        Case{"\xFF\xFE{", "byte 0", "UTF-16"}}) {
    CAPTURE(c.text);
    check_error<FormatError>([&] { parse(c.text); },
                             {"[config.json, " + std::string(c.where) + "] expected JSON", c.expected});
  }
}

TEST_CASE("a zero byte does not hide what follows") {
  check_error<FormatError>([] { parse(std::string("{}\0{}", 5)); }, {"byte 2", "a zero byte"});
  check_error<FormatError>([] { parse(std::string("\0", 1)); }, {"byte 0", "a zero byte"});
}

TEST_CASE("invalid UTF-8 is refused, in keys and values") {
  for (const char* const text : {"\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe2\x82\"",
                                 "{\"\x80\": 1}", "\xff"}) {
    check_error<FormatError>([&] { parse(text); }, {"config.json, byte "});
  }
}

TEST_CASE("a key that comes again has the same value, or both are named") {
  CHECK(parse(R"({"a": 1, "b": [1, NaN], "a": 1, "b": [1, NaN]})").dump() == R"({"a":1,"b":[1,null]})");
  CHECK(parse(R"({"a": 1, "a": 1.0})").at("a").is_number_float());  // the last one, as in Python
  check_error<FormatError>([] { parse(R"({"a": {"x": 1, "y": 2, "x": [3]}})"); },
                           {"config.json", "'x' twice, with '1' and '[3]'"});
  check_error<FormatError>([] { parse(R"({"a": 1, "\u0061": "1"})"); }, {"'a' twice, with '1' and '\"1\"'"});
  CHECK(parse("[{\"a\": 1}, {\"a\": 2}, {\"b\": {\"a\": 3}, \"a\": 4}]").size() == 3);
}

TEST_CASE("the order of keys is kept where it is asked for") {
  const auto ordered = parse_json<nlohmann::ordered_json>(bytes_of(R"({"b": 1, "a": {"d": NaN, "c": 2}})", "f"));
  CHECK(ordered.dump() == R"({"b":1,"a":{"d":null,"c":2}})");
}

TEST_CASE("a handler hears of everything once, in order, of numbers as they were written") {
  CHECK(events_of(R"( {"a": [1.50, -0, 1e400, {}, []], "a": "\u00e9", "": [null, true, false]} )") ==
        "{ a= [ 1.50 -0 1e400 { } [ ] ] a= 'é' = [ null true false ] } ");
  CHECK(events_of("[NaN, Infinity, -Infinity, 18446744073709551616]") ==
        "[ NaN Infinity -Infinity 18446744073709551616 ] ");
  check_error<FormatError>([] { events_of("[1"); }, {"[f, byte 2] expected a text (',' or ']'), got its end"});
  check_error<FormatError>([] { events_of("\"\xff\""); }, {"[f, byte 1] expected JSON in UTF-8"});
  check_error<FormatError>([] { events_of(std::string(1'000'000, '[')); }, {"[f] ", "256"});
}

TEST_CASE("nesting is allowed to a depth of 256") {
  CHECK_NOTHROW(parse(nested(256)));
  check_error<FormatError>([] { parse(nested(257)); }, {"config.json", "256"});
  check_error<FormatError>([] { parse(std::string(1'000'000, '[')); }, {"config.json", "256"});
  std::string objects;
  for (int i = 0; i < 257; ++i) objects += "{\"a\":";
  check_error<FormatError>([&] { parse(objects); }, {"256"});
}

TEST_CASE("a message shows no control characters and no more of a long token than it must") {
  const std::string message = tests::message_of<FormatError>([] { parse("\"\x1b[2J" + std::string(100'000, 'x')); });
  CHECK(message.find('\x1b') == message.npos);
  CHECK(message.size() < 500);
}

TEST_CASE("fields of every type are read") {
  const Json object =
      parse(R"({"b": true, "i": -3, "u": 200, "big": 18446744073709551615, "f": 1.5, "s": "text", "e": 1e3,
                                "list": [1, 2], "names": ["x"], "map": {"q": 4, "v": 8}, "o": {"k": 1}, "null": null})");
  CHECK(json_get<bool>(object, "b", "f"));
  CHECK(json_get<int>(object, "i", "f") == -3);
  CHECK(json_get<std::int8_t>(object, "i", "f") == -3);
  CHECK(json_get<std::uint8_t>(object, "u", "f") == 200);
  CHECK(json_get<std::uint64_t>(object, "big", "f") == UINT64_MAX);
  CHECK(json_get<double>(object, "f", "f") == 1.5);
  CHECK(json_get<float>(object, "i", "f") == -3.0f);
  CHECK(json_get<double>(object, "big", "f") == 0x1p64);
  CHECK(json_get<double>(object, "e", "f") == 1000.0);
  CHECK(json_get<std::string>(object, "s", "f") == "text");
  CHECK(json_get<std::vector<std::int64_t>>(object, "list", "f") == std::vector<std::int64_t>{1, 2});
  CHECK(json_get<std::vector<std::string>>(object, "names", "f") == std::vector<std::string>{"x"});
  CHECK(json_get<std::map<std::string, int>>(object, "map", "f") == std::map<std::string, int>{{"q", 4}, {"v", 8}});
  CHECK(json_get<Json>(object, "o", "f").dump() == "{\"k\":1}");
  CHECK(json_get_or<int>(object, "i", "f", 9) == -3);
  CHECK(json_get_or<int>(object, "absent", "f", 9) == 9);
  CHECK(json_get_or<int>(object, "null", "f", 9) == 9);
  CHECK(json_get_or<std::string>(object, "null", "f", "none") == "none");
}

TEST_CASE("a field that is missing, of another type or out of range is named with what came") {
  const Json object =
      parse(R"({"b": 1, "i": 2.0, "e": 1e3, "u": -1, "big": 18446744073709551615, "f": "1.5", "s": ["a", "b"],
                                "list": [1, "two"], "map": {"q": 4, "v": null}, "null": null, "huge": 1e300})");
  const std::string file = "config.json";
  check_error<FormatError>([&] { json_get<int>(object, "hidden_size", file); },
                           {"config.json, field hidden_size", "no such field"});
  check_error<FormatError>([&] { json_get<bool>(object, "b", file); },
                           {"config.json, field b", "true or false", "got 1"});
  check_error<FormatError>([&] { json_get<int>(object, "i", file); },
                           {"field i", "an integer from -2147483648 to 2147483647", "got 2.0"});
  check_error<FormatError>([&] { json_get<int>(object, "e", file); }, {"field e", "an integer", "got 1000.0"});
  check_error<FormatError>([&] { json_get<std::uint32_t>(object, "u", file); },
                           {"field u", "from 0 to 4294967295", "got -1"});
  check_error<FormatError>([&] { json_get<std::int64_t>(object, "big", file); },
                           {"field big", "got 18446744073709551615"});
  check_error<FormatError>([&] { json_get<double>(object, "f", file); },
                           {"field f", "a number", "got the string '1.5'"});
  check_error<FormatError>([&] { json_get<float>(object, "huge", file); }, {"field huge", "1e+300"});
  check_error<FormatError>([&] { json_get<std::string>(object, "s", file); }, {"field s", "a string", "an array of 2"});
  check_error<FormatError>([&] { json_get<std::vector<int>>(object, "list", file); },
                           {"field list[1]", "the string 'two'"});
  check_error<FormatError>([&] { json_get<std::vector<int>>(object, "map", file); },
                           {"field map", "an array", "an object"});
  check_error<FormatError>([&] { json_get<std::map<std::string, int>>(object, "map", file); },
                           {"field map.v", "got null"});
  check_error<FormatError>([&] { json_get<Json>(object, "b", file); }, {"field b", "an object", "got 1"});
  check_error<FormatError>([&] { json_get<int>(object, "null", file); }, {"field null", "got null"});
  check_error<FormatError>([&] { json_get_or<int>(object, "f", file, 3); }, {"field f", "an integer"});
  check_error<FormatError>([&] { json_get_or<int>(parse("[1]"), "f", file, 3); },
                           {"config.json", "an object with the field 'f'"});
}

TEST_CASE("mutated JSON is refused with a FormatError or parsed to what prints and parses again") {
  const std::string seed =
      R"({"model_type": "bert", "sizes": [1, -2, 3.25e-1, true, null], "nested": {"a\n": {"b": "\u00e9é"}}})";
  std::mt19937 random(7);
  int parsed = 0;
  int refused = 0;
  for (int i = 0; i < 5000; ++i) {
    std::string text = seed;
    const auto changes = 1 + random() % 3;
    for (unsigned c = 0; c < changes; ++c) {
      const std::size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, 1 + random() % 4);
          break;
        case 2:
          text.insert(at, text.substr(random() % text.size(), 8));
          break;
        default:
          text[at] = "{}[]\",:0-e\\"[random() % 11];
      }
      if (text.empty()) text = " ";
    }
    try {
      const Json value = parse(text);
      CHECK(json_text(parse(json_text(value))) == json_text(value));
      ++parsed;
    } catch (const FormatError&) {
      ++refused;
    }
  }
  CHECK(parsed > 200);
  CHECK(refused > 1000);
}
