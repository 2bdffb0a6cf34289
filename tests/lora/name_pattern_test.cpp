// SPDX-License-Identifier: Apache-2.0
// Expressions over the names of modules: what they match, and what they may cost.
#include "fedlora/lora/name_pattern.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "errors.hpp"

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
  for (const std::string more : {"", "|nothing"}) {  // compared as it is, and by the standard library
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

TEST_CASE("what is no expression, Python's alone or too large is refused with its place") {
  CHECK(refused("(a").starts_with("[file, field x] expected a regular expression, got '(a' ("));
  CHECK(refused("a\\Z") ==
        "[file, field x] expected a regular expression without '\\Z', which Python alone reads so, got 'a\\Z'");
  CHECK(
      refused(repeated("a|", 5000)).starts_with("[file, field x] expected a regular expression of at most 8192 char"));
  CHECK(
      refused(repeated("(a)", 300)).starts_with("[file, field x] expected a regular expression with at most 256 gro"));
  for (const std::string pattern : {"((((a{50}){50}){50}){50})", "((((.*){9}){9}){9}){9}", "(.{0,300}){100}",
                                    "a{99999999999999999999}", "([ab]{3,100}|c){100}"})
    CHECK(
        refused(pattern).starts_with("[file, field x] expected a regular expression of at most 4096 characters, sets"));
  CHECK(refused("(\\d{1,100}a[{9999}]){10}") == "(nothing was thrown)");
}

TEST_CASE("thousands of names cost next to nothing, and expressions are counted") {
  const auto begin = std::chrono::steady_clock::now();
  std::map<std::string, int> names;
  for (int i = 0; i < 3000; ++i) names.emplace("model\\.layers\\." + std::to_string(i) + ".self_attn.q_proj", i);
  const detail::PatternValues<int> values(names, "file");
  for (int i = 0; i < 1000; ++i) CHECK(values.find("model.layers." + std::to_string(i) + ".self_attn.q_proj") == i);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));

  std::map<std::string, int> expressions;
  for (int i = 0; i < 3000; ++i) expressions.emplace("layers." + std::to_string(i) + ".*", i);
  tests::check_error<ConfigError>([&] { detail::PatternValues<int>(expressions, "file, field x"); },
                                  {"[file, field x]", "20000 characters, sets and repetitions in all"});
}
