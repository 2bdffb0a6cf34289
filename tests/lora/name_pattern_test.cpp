// SPDX-License-Identifier: Apache-2.0
// Expressions over the names of modules: what they match (golden/make_name_golden.py), and what they may cost.
#include "fedlora/lora/name_pattern.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "fedlora/io/json.hpp"
#include "support.hpp"

using namespace fedlora;
using detail::NamePattern;

namespace {

bool whole(const std::string& pattern, std::string_view name) {
  return NamePattern(pattern, NamePattern::Place::whole, "file, field x").matches(name);
}

bool at_end(const std::string& pattern, std::string_view name) {
  return NamePattern(pattern, NamePattern::Place::end, "file, field x").matches(name);
}

std::string refused(const std::string& pattern) {
  return tests::message_of<ConfigError>([&] { whole(pattern, "a"); });
}

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

}  // namespace

TEST_CASE("an expression matches the whole name, or its end from a dot on; a dot is any character, plain name or not") {
  for (const std::string more : {"", "|nothing"}) {  // compared as it is, and by a program
    CHECK(whole("layer.0.query" + more, "layer.0.query"));
    CHECK(whole("layer.0.query" + more, "layer-0-query"));
    CHECK_FALSE(whole("layer\\.0\\.query" + more, "layer-0-query"));
    CHECK(whole("layer\\.0\\.query" + more, "layer.0.query"));
    CHECK_FALSE(whole("query" + more, "layer.0.query"));
    CHECK_FALSE(whole("layer.0.query" + more, "layer.0.quer"));
    CHECK(at_end("query" + more, "query"));
    CHECK(at_end("query" + more, "layer.0.query"));
    CHECK(at_end("0.query" + more, "layer.0.query"));
    CHECK_FALSE(at_end("uery" + more, "layer.0.query"));
    CHECK_FALSE(at_end(".query" + more, "layer.0.query"));
    CHECK_FALSE(at_end("query" + more, "layer.0.query.dense"));
  }
  CHECK(whole(R"(.*\.(q|v)_proj)", "model.layers.0.self_attn.q_proj"));
  CHECK_FALSE(whole(R"(.*\.(q|v)_proj)", "model.layers.0.self_attn.k_proj"));
  CHECK(at_end(R"(layers\.[0-3]\.mlp\.(up|down)_proj)", "model.layers.3.mlp.down_proj"));
  CHECK(whole(R"(^(?!.*vision).*\.layers\.\d{1,2}\..*$)", "model.layers.12.mlp"));
}

TEST_CASE("values go to the first expression that matches") {
  const std::vector<std::pair<std::string, int>> entries = {{"0.query", 1}, {"query|value", 2}, {"layer.*", 3}};
  const detail::PatternValues<int> values(entries, "file");
  CHECK(values.find("layer.0.query") == 1);
  CHECK(values.find("layer.1.query") == 2);
  CHECK(values.find("layer.1.key") == 3);
  CHECK(values.find("pooler") == std::nullopt);
}

TEST_CASE("expressions match what Python's re matches, or are refused where it refuses them") {
  const Json golden = Json::parse(tests::read_text(std::string(FEDLORA_TEST_DIR) + "/golden/name_patterns.json"));
  for (const Json& entry : golden["read"]) {
    const auto expression = entry["expression"].get<std::string>();
    for (const std::string field : {"whole", "end"}) {
      const auto place = field == "end" ? NamePattern::Place::end : NamePattern::Place::whole;
      Json found;  // null when it is refused
      std::string message;
      try {
        const NamePattern pattern(expression, place, "file");
        std::string digits;
        for (const Json& name : golden["names"]) digits += pattern.matches(name.get<std::string>()) ? '1' : '0';
        found = digits;
      } catch (const Error& error) {
        message = error.what();
      }
      CHECK_MESSAGE(found == entry[field], expression << " (" << field << ") " << message);
    }
  }
  for (const Json& entry : golden["refused"]) {
    const std::string message = refused(entry["expression"].get<std::string>());
    CHECK_MESSAGE(message.find(entry["message"].get<std::string>()) != message.npos, message);
  }
}

TEST_CASE("what is no expression, not read or too large is refused with its place") {
  CHECK(refused("(a") == "[file, field x] expected a regular expression with a ) for every (, got '(a', at byte 2");
  CHECK(refused("a\\z").starts_with(
      "[file, field x] expected a regular expression with escapes that Python has a meaning"));
  CHECK(
      refused("b(?i)a").starts_with("[file, field x] expected a regular expression with flags for the whole of it at"));
  CHECK(refused("\xFF").find("with characters of ASCII alone") != std::string::npos);
  CHECK(refused(std::string("a\0|(b", 5)).find("a ) for every (") != std::string::npos);
  CHECK(
      refused(repeated("a|", 5000)).starts_with("[file, field x] expected a regular expression of at most 8192 char"));
  CHECK(
      refused(repeated("(", 300)).starts_with("[file, field x] expected a regular expression with groups at most 100"));
  CHECK(refused("a{99999999999999999999}").find("at most 100000 repetitions") != std::string::npos);
  for (const std::string pattern :
       {"((((a{50}){50}){50}){50}){50}", "((((.*){9}){9}){9}){9}|((.*b){100}){100}", "([ab]{3,100}|c){10000}"})
    tests::check_error<FormatError>([&] { whole(pattern, "a"); }, {"[file, field x]", "at most 20000 steps"});
  CHECK(refused("(\\d{1,100}a[{9999}]){10}") == "(nothing was thrown)");
  CHECK(whole("(?:){0,9}((){100000}){100000}a", "a"));
}

TEST_CASE("the work for a name is bounded") {
  const std::string name = "model.layers.0.self_attn.q_proj";
  CHECK_FALSE(whole("(.*,)*X", name));
  for (const std::string pattern : {"(([a-z.0-9_]+)+)+X", "(.*)*(.*)*(.*)*(.*)*X"})
    tests::check_error<ConfigError>([&] { whole(pattern, name); },
                                    {"[file, field x]", "more than 1048576 steps for a name", name, "X'"});
  // All expressions of a list together.
  std::map<std::string, int> expressions;
  for (int i = 0; i < 1000; ++i) expressions.emplace(".*.*.*.*X" + std::to_string(i), i);
  const detail::PatternValues<int> values(expressions, "file");
  tests::check_error<ConfigError>([&] { values.find(name); }, {"[file]", "steps for a name"});
  CHECK(values.find("X7") == 7);
}

TEST_CASE("thousands of names cost next to nothing, and expressions are counted") {
  const auto begin = std::chrono::steady_clock::now();
  std::map<std::string, int> names;
  for (int i = 0; i < 3000; ++i) names.emplace("model\\.layers\\." + std::to_string(i) + ".self_attn.q_proj", i);
  const detail::PatternValues<int> values(names, "file");
  for (int i = 0; i < 1000; ++i) CHECK(values.find("model.layers." + std::to_string(i) + ".self_attn.q_proj") == i);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));

  std::map<std::string, int> expressions;
  for (int i = 0; i < 5000; ++i) expressions.emplace("layers." + std::to_string(i) + ".*", i);
  tests::check_error<ConfigError>([&] { detail::PatternValues<int>(expressions, "file, field x"); },
                                  {"[file, field x]", "regular expressions of 65536 steps in all"});
}
