// SPDX-License-Identifier: Apache-2.0
// MB/s of the tokenizers on one thread: the embedded one, and those of $FEDLORA_DATA/tokenizers (by default
// ../shared/data beside the project) where they are.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "cases.hpp"

namespace fedlora::benchmarks {
namespace {

void tokenize(benchmark::State& state, const Tokenizer& tokenizer, const std::vector<std::string>& lines) {
  double bytes = 0, tokens = 0;
  for (const std::string& line : lines) {
    bytes += static_cast<double>(line.size());
    tokens += static_cast<double>(tokenizer.encode(line).ids.size());
  }
  for (auto _ : state)
    for (const std::string& line : lines) benchmark::DoNotOptimize(tokenizer.encode(line));
  state.counters["MB"] = benchmark::Counter(1e-6 * bytes, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["tokens"] = benchmark::Counter(tokens, benchmark::Counter::kIsIterationInvariantRate);
}

void add(const std::string& name, std::shared_ptr<const Tokenizer> tokenizer,
         std::shared_ptr<const std::vector<std::string>> lines) {
  benchmark::RegisterBenchmark(name.c_str(), [tokenizer, lines](benchmark::State& state) {
    tokenize(state, *tokenizer, *lines);
  })->Unit(benchmark::kMillisecond);
}

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const char* set = std::getenv("FEDLORA_DATA");
  const std::filesystem::path data =
      set != nullptr ? std::filesystem::path(set) : std::filesystem::path(FEDLORA_BENCHMARK_DIR) / "../../shared/data";
  std::shared_ptr<const std::vector<std::string>> lines;
  if (std::filesystem::exists(data / "sst2" / "train.tsv"))
    lines =
        std::make_shared<const std::vector<std::string>>(read_table(data / "sst2" / "train.tsv", {.text = {"1"}}).text);
#if defined(FEDLORA_HAVE_EMBEDDED)
  const auto utterance_lines = std::make_shared<const std::vector<std::string>>(
      read_table(embedded_bytes("domain_train.tsv"), {.text = {"text"}, .label = "domain"}).text);
  if (!lines) lines = utterance_lines;
  add("stories260K_bpe", stories().tokenizer, utterance_lines);
#endif
  for (const auto& [name, directory] : {std::pair{"bert_wordpiece", "bert-base-uncased"},
                                        {"roberta_byte_bpe", "roberta-base"},
                                        {"gpt2_byte_bpe", "gpt2"},
                                        {"phi3_llama_bpe", "phi-3-mini"}}) {
    const std::filesystem::path path = data / "tokenizers" / directory;
    if (lines && std::filesystem::exists(path))
      add(name, std::make_shared<const Tokenizer>(load_tokenizer(path)), lines);
    else
      std::cerr << "skipped: " << name << ", no " << path.string() << " (set FEDLORA_DATA)\n";
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace fedlora::benchmarks

int main(int argc, char** argv) {
  try {
    return fedlora::benchmarks::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
