// SPDX-License-Identifier: Apache-2.0
// Published tokenizers against Hugging Face's ids: the cases beside them, and 10,000 lines of the data sets, of which a
// hash each is kept (golden/make_tokenizer_golden.py).
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "fedlora/hf/tokenizer_files.hpp"
#include "support.hpp"

namespace {

using fedlora::Json;
using Ids = std::vector<std::int32_t>;

constexpr std::size_t line_count = 10'000;

std::vector<std::string> drawn_lines(const std::filesystem::path& data) {
  std::vector<std::string> all;
  for (const char* name :
       {"clinc150/domain_train.tsv", "clinc150/domain_test.tsv", "ag_news/train.csv", "ag_news/test.csv",
        "sst2/train.tsv", "sst2/test.tsv", "banking77/train.csv", "banking77/test.csv", "tinyshakespeare/input.txt",
        "instruct/gsm8k_train_2000.jsonl", "instruct/gsm8k_test.jsonl", "instruct/seed_tasks.jsonl"}) {
    const std::string text = fedlora::tests::read_text(data / name);
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      all.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  std::vector<std::string> out;
  for (std::size_t i = 0; i < line_count; ++i) out.push_back(all[i * all.size() / line_count]);
  return out;
}

/// FNV-1a, 64 bits, over the little-endian 32-bit words of lists, each with its length before it.
class LineHash {
 public:
  template <class List>
  void add(const List& list) {
    word(static_cast<std::uint32_t>(list.size()));
    for (const auto item : list) word(static_cast<std::uint32_t>(item));
  }
  std::uint64_t value() const { return value_; }

 private:
  void word(std::uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) value_ = (value_ ^ ((value >> shift) & 0xFF)) * 0x100000001b3u;
  }
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

void check_lines(const char* golden, const char* path, std::size_t step = 1) {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const auto tokenizer = fedlora::load_tokenizer(*data / path);
  const std::string hashes =
      fedlora::tests::read_text(std::string(FEDLORA_TEST_DIR) + "/golden/tokenizer/" + golden + ".u64");
  REQUIRE(hashes.size() == 8 * line_count / step);
  const auto lines = drawn_lines(*data);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < line_count; i += step) {
    const auto limit = [&](std::size_t least, std::size_t period) {
      return static_cast<fedlora::Index>(least + i % period);
    };
    const auto whole = tokenizer.encode(lines[i]);
    const auto pair = tokenizer.encode(lines[i], lines[(i + 1) % line_count], {limit(8, 57), true});
    const std::string text = tokenizer.decode(whole.ids);
    LineHash hash;
    hash.add(whole.ids);
    hash.add(whole.token_types);
    hash.add(tokenizer.encode(lines[i], {0, false}).ids);
    hash.add(tokenizer.encode(lines[i], {limit(5, 29), true}).ids);
    hash.add(pair.ids);
    hash.add(pair.token_types);
    hash.add(std::vector<unsigned char>(text.begin(), text.end()));
    std::uint64_t expected = 0;
    for (std::size_t b = 8; b-- > 0;) expected = expected << 8 | static_cast<unsigned char>(hashes[8 * (i / step) + b]);
    if (hash.value() != expected && ++wrong <= 5) FAIL_CHECK("line " << i << ": " << lines[i]);
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("bert-base-uncased: 10,000 lines") { check_lines("bert", "tokenizers/bert-base-uncased"); }
TEST_CASE("gpt2: 10,000 lines") { check_lines("gpt2", "tokenizers/gpt2"); }
TEST_CASE("roberta-base: 10,000 lines") { check_lines("roberta", "tokenizers/roberta-base/tokenizer.json"); }
TEST_CASE("phi-3-mini: 10,000 lines") { check_lines("phi3", "tokenizers/phi-3-mini/tokenizer.json"); }
TEST_CASE("stories260K: 10,000 lines") { check_lines("stories260k", "models/stories260K/hf/tokenizer.json"); }
TEST_CASE("tiny_bert_random: 10,000 lines") { check_lines("tiny_bert", "models/tiny_bert_random/tokenizer.json"); }

TEST_CASE("Directories, as AutoTokenizer reads them: 2,000 lines each") {
  check_lines("roberta_auto", "tokenizers/roberta-base", 5);    // tokenizer.json alone
  check_lines("phi3_auto", "tokenizers/phi-3-mini", 5);         // LlamaTokenizer, tokenizer_config.json's tokens
  check_lines("stories260k_auto", "models/stories260K/hf", 5);  // LlamaTokenizer
  check_lines("tiny_bert_auto", "models/tiny_bert_random", 5);  // BertTokenizer, by the model's type
}

TEST_CASE("bert-base-uncased: the published cases, pieces and ids") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const auto tokenizer = fedlora::load_tokenizer(*data / "tokenizers/bert-base-uncased/vocab.txt");
  CHECK(tokenizer.vocab_size() == 30522);
  const std::string cases = fedlora::tests::read_text(*data / "tokenizers/bert-base-uncased/cases.jsonl");
  std::size_t count = 0;
  for (std::size_t begin = 0; begin < cases.size(); ++count) {
    const std::size_t end = std::min(cases.find('\n', begin), cases.size());
    const Json entry = Json::parse(cases.substr(begin, end - begin));
    begin = end + 1;
    const std::string text = entry["text"];
    CAPTURE(text);
    Ids ids = tokenizer.encode(text, {0, false}).ids;
    CHECK(ids == entry["ids"].get<Ids>());
    std::vector<std::string> pieces;
    for (const std::int32_t id : ids) pieces.push_back(tokenizer.id_to_token(id).value());
    CHECK(pieces == entry["wordpiece"].get<std::vector<std::string>>());
    ids.insert(ids.begin(), 101);
    ids.push_back(102);
    CHECK(tokenizer.encode(text).ids == ids);
  }
  CHECK(count == 600);
}

TEST_CASE("gpt2: the published sample, there and back") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const auto tokenizer = fedlora::load_tokenizer(*data / "tokenizers/gpt2/vocab.json");
  const Json sample = Json::parse(fedlora::tests::read_text(*data / "tokenizers/gpt2/encoded_sample.json"));
  const std::string text = sample["text"];
  const Ids ids = sample["token_ids"].get<Ids>();
  CHECK(tokenizer.encode(text).ids == ids);
  CHECK(tokenizer.decode(ids) == text);
  CHECK(tokenizer.token_to_id("<|endoftext|>") == 50256);
}

TEST_CASE("phi-3-mini: the published Llama 2 prompts") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const auto tokenizer = fedlora::load_tokenizer(*data / "tokenizers/phi-3-mini");
  const Json cases = Json::parse(fedlora::tests::read_text(*data / "tokenizers/phi-3-mini/llama2_cases.json"));
  CHECK(cases.size() == 5);
  for (const Json& entry : cases) {
    Ids ids = tokenizer.encode(entry["text"].get<std::string>()).ids;
    CHECK(tokenizer.decode(ids) == entry["text"].get<std::string>());
    ids.insert(ids.begin(), 1);  // the file adds no <s>
    CHECK(ids == entry["ids_with_bos"].get<Ids>());
  }
}

TEST_CASE("stories260K: the reference texts, and the greedy story") {
  const auto data = fedlora::tests::shared_data();
  if (!data) return;
  const auto tokenizer = fedlora::load_tokenizer(*data / "models/stories260K/hf/tokenizer.json");
  const Json golden = Json::parse(fedlora::tests::read_text(*data / "models/stories260K/golden.json"));
  for (const Json& entry : golden["cases"])
    CHECK(tokenizer.encode(entry["text"].get<std::string>()).ids == entry["ids_with_bos"].get<Ids>());
  CHECK(golden["cases"].size() == 5);
  CHECK(tokenizer.decode(golden["greedy_ids_from_bos"].get<Ids>()) == golden["greedy_text"].get<std::string>());
}
