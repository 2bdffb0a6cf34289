// SPDX-License-Identifier: Apache-2.0
// One tokenizer, many threads: the same ids as from one.
#include <doctest/doctest.h>

#include <string>
#include <thread>
#include <vector>

#include "fedlora/data/tokenizer.hpp"

TEST_CASE("Threads share a tokenizer") {
  using namespace fedlora;
  detail::Vocabulary vocabulary({{"<unk>", 0}, {"Ġ", 1}, {"a", 2}, {"b", 3}, {"ab", 4}, {"Ġab", 5}, {"abab", 6}},
                                "vocabulary");
  const std::vector<detail::Normalizer> normalizers = {detail::BertNormalizer{}};
  detail::AddedTokens added;
  added.add({{.content = "[X]", .special = true}, {.content = "É", .normalized = true}}, vocabulary, normalizers,
            "test");
  TokenizerParts parts{
      normalizers,
      {detail::PatternSplit{detail::Pattern::regex(R"((?i:'ll)|\s?\p{L}+|\p{N}{1,3})")},
       detail::ByteLevelPreTokenizer{true, true}},
      detail::Bpe(std::move(vocabulary), {{"a", "b"}, {"Ġ", "ab"}, {"ab", "ab"}}, {.unknown = "<unk>"}),
      std::move(added),
      {detail::RobertaProcessor{8, 9}},
      std::vector<detail::Decoder>{detail::ByteLevelDecoder{}},
      "test"};
  const Tokenizer tokenizer(std::move(parts));
  std::vector<std::string> texts;
  std::vector<Encoding> expected;
  std::vector<std::string> decoded;
  for (int i = 0; i < 200; ++i) {
    texts.push_back(std::string(static_cast<std::size_t>(i % 7), ' ') + "abab ab[X]" + (i % 2 == 0 ? "é 中" : "ba'll") +
                    std::to_string(i));
    expected.push_back(tokenizer.encode(texts.back(), texts.front(), {4 + i % 9, true}));
    decoded.push_back(tokenizer.decode(expected.back().ids));
  }
  constexpr std::size_t workers = 4;
  std::vector<int> wrong(workers, 0);
  std::vector<std::thread> threads;
  for (std::size_t worker = 0; worker < workers; ++worker) {
    threads.emplace_back([&, worker, copy = tokenizer] {
      for (std::size_t k = 0; k < 4 * texts.size(); ++k) {
        const std::size_t i = (k * 7 + worker * 31) % texts.size();
        const Encoding got = copy.encode(texts[i], texts.front(), {4 + static_cast<Index>(i) % 9, true});
        if (got.ids != expected[i].ids || got.token_types != expected[i].token_types ||
            copy.decode(got.ids) != decoded[i])
          ++wrong[worker];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(workers, 0));
}
