// SPDX-License-Identifier: Apache-2.0
// Loading a checkpoint of MiniLM's size (float32, a temporary directory, warm in the page cache): weights are mapped,
// so this is config.json, the safetensors header and its checks, and the model's tables. `touched` also reads every
// weight once.
#include <benchmark/benchmark.h>
#include <stdlib.h>

#include <filesystem>
#include <iostream>
#include <stdexcept>

#include "cases.hpp"

namespace fedlora::benchmarks {
namespace {

class CheckpointDirectory {
 public:
  CheckpointDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "fedlora-benchmark-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed for " + pattern);
    path_ = pattern;
    const std::map<std::string, TensorView> tensors = random_tensors(6, 384, 30522);
    std::vector<TensorToWrite> all;
    for (const auto& [name, tensor] : tensors) all.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
    const std::string bytes = safetensors_bytes(all, {{"format", "pt"}});
    size_ = static_cast<double>(bytes.size());
    write_file_atomically(path_ / "model.safetensors", bytes);
    write_file_atomically(path_ / "config.json", std::string_view(R"({"model_type": "bert", "vocab_size": 30522,
      "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
      "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu"})"));
  }
  CheckpointDirectory(const CheckpointDirectory&) = delete;
  CheckpointDirectory& operator=(const CheckpointDirectory&) = delete;
  ~CheckpointDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  double size() const { return size_; }

 private:
  std::filesystem::path path_;
  double size_ = 0;
};

void load(benchmark::State& state, bool touched) {
  const CheckpointDirectory directory;
  for (auto _ : state) {
    const auto base = load_pretrained<Bert>(B{}, FileSet::directory(directory.path()));
    benchmark::DoNotOptimize(base.transformer.get());
    if (!touched) continue;
    std::uint32_t sum = 0;
    const Checkpoint checkpoint(FileSet::directory(directory.path()));
    for (const std::string& name : checkpoint.names())
      for (const std::byte byte : checkpoint.find(name)->bytes) sum += std::to_integer<std::uint32_t>(byte);
    benchmark::DoNotOptimize(sum);
  }
  state.counters["MB"] = benchmark::Counter(1e-6 * directory.size(), benchmark::Counter::kIsIterationInvariantRate);
}
void mapped(benchmark::State& state) { load(state, false); }
void touched(benchmark::State& state) { load(state, true); }
BENCHMARK(mapped)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(touched)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace fedlora::benchmarks

BENCHMARK_MAIN();
