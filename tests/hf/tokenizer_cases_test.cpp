// SPDX-License-Identifier: Apache-2.0
// Small tokenizers in many variants, against what Hugging Face `tokenizers` makes of awkward texts
// (golden/make_tokenizer_cases.py).
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "fedlora/hf/tokenizer_files.hpp"
#include "support.hpp"

namespace {

using fedlora::Json;

/// A base with some of its fields set by path, "model/unk_token".
Json variant_of(Json base, const Json& changes) {
  if (base["model"].contains("merges")) {
    for (Json& merge : base["model"]["merges"]) {
      const std::string packed = merge;
      const auto tab = packed.find('\t');
      merge = {packed.substr(0, tab), packed.substr(tab + 1)};
    }
  }
  for (const auto& [path, value] : changes.items()) base[Json::json_pointer("/" + path)] = value;
  return base;
}

fedlora::Tokenizer tokenizer_of(const Json& json) {
  return fedlora::load_tokenizer(
      fedlora::FileSet::memory("case", {{"tokenizer.json", fedlora::bytes_of(json.dump(), "tokenizer.json")}}));
}

}  // namespace

TEST_CASE("Every variant of a tokenizer gives Hugging Face's ids, token types and decoded text") {
  const Json golden =
      Json::parse(fedlora::tests::read_text(std::string(FEDLORA_TEST_DIR) + "/golden/tokenizer/cases.json"));
  std::size_t encoded = 0, decoded = 0;
  for (const Json& variant : golden["variants"]) {
    const std::string name = variant["name"];
    CAPTURE(name);
    const auto tokenizer =
        tokenizer_of(variant_of(golden["bases"][variant["base"].get<std::string>()], variant["set"]));
    for (const Json& entry : variant["encode"]) {
      const std::string text = golden["texts"][entry[0].get<std::size_t>()];
      const fedlora::EncodeOptions options{entry[2].get<fedlora::Index>(), entry[3].get<bool>()};
      CAPTURE(text);
      const auto got =
          entry[1] < 0
              ? tokenizer.encode(text, options)
              : tokenizer.encode(text, golden["texts"][entry[1].get<std::size_t>()].get<std::string>(), options);
      CHECK(got.ids == entry[4].get<std::vector<std::int32_t>>());
      CHECK(got.token_types == entry[5].get<std::vector<std::int32_t>>());
      ++encoded;
    }
    for (const Json& entry : variant["decode"]) {
      CHECK(tokenizer.decode(entry[0].get<std::vector<std::int32_t>>(), entry[1].get<bool>()) ==
            entry[2].get<std::string>());
      ++decoded;
    }
  }
  CHECK(encoded == golden["variants"].size() * golden["texts"].size());
  CHECK(decoded > 200);
}

TEST_CASE("Padding and the length of truncation in the file are passed over") {
  const Json golden =
      Json::parse(fedlora::tests::read_text(std::string(FEDLORA_TEST_DIR) + "/golden/tokenizer/cases.json"));
  Json plain = variant_of(golden["bases"]["wordpiece"], Json::object());
  Json other = plain;
  other["truncation"] = {{"max_length", 3}, {"strategy", "LongestFirst"}, {"stride", 0}, {"direction", "Left"}};
  other["padding"] = {
      {"strategy", {{"Fixed", 64}}}, {"direction", "Left"}, {"pad_id", 0}, {"pad_type_id", 0}, {"pad_token", "[PAD]"}};
  const std::string text = "hello world, hello tokens and tokenizers";
  CHECK(tokenizer_of(plain).encode(text).ids == tokenizer_of(other).encode(text).ids);
  CHECK(tokenizer_of(other).encode(text).ids.size() > 3);
}
