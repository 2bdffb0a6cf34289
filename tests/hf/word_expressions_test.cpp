// SPDX-License-Identifier: Apache-2.0
// Tokenizers whose words are cut by other expressions than GPT-2's: the ids of Hugging Face tokenizers.
#include <doctest/doctest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "fedlora/hf/tokenizer_files.hpp"
#include "support.hpp"

namespace {

const std::filesystem::path word_expressions =
    std::filesystem::path(FEDLORA_TEST_DIR) / "golden" / "public_cases" / "word_expressions_of_llama_models";

fedlora::Json word_json(const std::filesystem::path& file) {
  return fedlora::Json::parse(fedlora::tests::read_text(file.string()));
}

}  // namespace

TEST_CASE("Reported tokenizers with other word expressions") {
  for (const char* name : {"words_cl100k", "words_falcon3"}) {
    CAPTURE(name);
    const auto tokenizer = fedlora::load_tokenizer(word_expressions / name);
    const fedlora::Json reference = word_json(word_expressions / name / "reference.json");
    for (std::size_t i = 0; i < reference["texts"].size(); ++i) {
      const std::string text = reference["texts"][i];
      CAPTURE(text);
      CHECK(tokenizer.encode(text).ids == reference["ids"][i].get<std::vector<std::int32_t>>());
    }
  }
}

TEST_CASE("Whole chains of known models (golden/make_pattern_golden.py)") {
  const fedlora::Json golden =
      word_json(std::filesystem::path(FEDLORA_TEST_DIR) / "golden" / "tokenizer" / "patterns.json");
  fedlora::Json base = word_json(word_expressions / "words_cl100k" / "tokenizer.json");
  for (const fedlora::Json& chain : golden["chains"]) {
    CAPTURE(chain["name"].get<std::string>());
    base["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", chain["pretokenizers"]}};
    const auto tokenizer = fedlora::load_tokenizer(
        fedlora::FileSet::memory("chain", {{"tokenizer.json", fedlora::bytes_of(base.dump(), "tokenizer.json")}}));
    std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, as in the script
    std::size_t done = 0;
    for (const std::string text : golden["texts"]) {
      std::string ids;
      for (const std::int32_t id : tokenizer.encode(text).ids) ids += (ids.empty() ? "" : ",") + std::to_string(id);
      for (const char c : ids + "\n") hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
      if (++done % 25 != 0) continue;
      CAPTURE(done);
      CHECK(hash == std::stoull(chain["hashes"][done / 25 - 1].get<std::string>(), nullptr, 16));
    }
    CHECK(done == 300);
  }
}
