// SPDX-License-Identifier: Apache-2.0
// Texts of a table to token ids: what is refused names the line, and a token beyond the embedding its file.
#include "fedlora/lora/encode.hpp"

#include <doctest/doctest.h>

#include <string>
#include <utility>

#include "errors.hpp"
#include "fedlora/backend/cpu.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/nn/arch/llama.hpp"
#include "support.hpp"

namespace {

using namespace fedlora;

Table table_of_two_lines() {
  Table table;
  table.source = "texts.csv";
  table.text = {"a b", "a <x>"};
  table.line = {1, 3};
  return table;
}

Tokenizer tokenizer_with_added_token() {
  return load_tokenizer(FileSet::memory(
      "model",
      {{"tokenizer.json", bytes_of(R"({"pre_tokenizer": {"type": "WhitespaceSplit"}, "model": {"type": "WordPiece",
                                                 "unk_token": "a", "vocab": {"a": 0, "b": 1}},
                                                 "added_tokens": [{"id": 2, "content": "<x>"}]})",
                                   "tokenizer.json")}}));
}

}  // namespace

TEST_CASE("a token that the embedding has no row for is refused by table, line, token and the file that numbers it") {
  Table table = table_of_two_lines();
  const Tokenizer tokenizer = tokenizer_with_added_token();
  CHECK(encode_texts(tokenizer, table, 0, 3, 1).tokens == std::vector<std::int32_t>{0, 1, 0, 2});
  tests::check_error<FormatError>(
      [&] { encode_texts(tokenizer, table, 0, 2, 1); },
      {"[texts.csv, line 3] expected tokens numbered below 2, the rows of the model's embedding",
       "got '<x>', which is 2 by model/tokenizer.json, field added_tokens[0]"});
  tests::check_error<FormatError>(
      [&] { encode_texts(tokenizer, table, 0, 1, 1); },
      {"[texts.csv, line 1] expected", "got 'b', which is 1 by model/tokenizer.json, field model.vocab"});
  table.text = {"a", "a"};
  table.text_pair = {"<x>", "a"};
  tests::check_error<FormatError>([&] { encode_texts(tokenizer, table, 0, 2, 1); }, {"[texts.csv, line 1]", "'<x>'"});
  table.line = {};
  table.text_pair = {"a", "<x>"};
  tests::check_error<FormatError>([&] { encode_texts(tokenizer, table, 0, 2, 1); }, {"[texts.csv, line 2]", "'<x>'"});
  table = table_of_two_lines();
  CHECK(encode_texts(tokenizer, table, 1, 2, 1).tokens == std::vector<std::int32_t>{0, 0});  // it is cut off
}

TEST_CASE("a checkpoint whose tokenizer goes beyond its embedding loads with a word about it") {
  const std::string folder =
      std::string(FEDLORA_TEST_DIR) + "/golden/public_cases/token_beyond_embedding_message/llama";
  const auto base = load_pretrained<Llama>(CpuBackend<float>{}, folder);
  REQUIRE(base.warnings.size() == 1);
  INFO(base.warnings[0]);
  CHECK(base.warnings[0].find("the tokenizer's ids go up to 340, '<pad>' by ") != std::string::npos);
  CHECK(base.warnings[0].find("the embedding has 340 rows") != std::string::npos);
  Table table;
  table.source = "texts.txt";
  table.text = {"the dog", "<pad> the dog"};
  tests::check_error<FormatError>([&] { encode_texts(require_tokenizer(base), table, 0, base.config().vocab_size, 1); },
                                  {"[texts.txt, line 2] expected tokens numbered below 340",
                                   "'<pad>', which is 340 by ", "tokenizer.json, field added_tokens["});
}
