// SPDX-License-Identifier: Apache-2.0
// A training step of one client on one thread: forward, backward, AdamW. Consecutive iterations take consecutive
// batches.
#include <benchmark/benchmark.h>

#include "cases.hpp"

namespace fedlora::benchmarks {
namespace {

template <class Model>
void time_steps(benchmark::State& state, const Model& model, const Dataset& data, Index batch) {
  [[maybe_unused]] const typename B::ThreadScope scope{};
  Trainer<Model> trainer(model, data, batch);
  trainer.step(0);
  Index step = 0;
  for (auto _ : state) trainer.step(step++);
  const std::vector<std::vector<Index>> batches = batches_of(data, batch);
  double tokens = 0;
  for (const auto& examples : batches)
    for (const Index example : examples) tokens += static_cast<double>(data.length(example));
  tokens /= static_cast<double>(batches.size());
  state.counters["tokens_per_step"] = tokens;
  state.counters["tokens"] = benchmark::Counter(tokens, benchmark::Counter::kIsIterationInvariantRate);
}

void encoder(benchmark::State& state, Index hidden, const std::vector<Index>& lengths) {
  const SequenceClassifier<Bert, B> model(random_encoder(6, hidden), {.labels = {"a", "b"}, .base_dropout = 0.0},
                                          query_value());
  time_steps(state, model, random_dataset(lengths, 30522, 2), 8);
}

void encoder_128(benchmark::State& state) { encoder(state, 768, std::vector<Index>(8, 128)); }
void encoder_sst2(benchmark::State& state) { encoder(state, 768, sst2_lengths()); }
void minilm_sst2(benchmark::State& state) { encoder(state, 384, sst2_lengths()); }
BENCHMARK(encoder_128)->Unit(benchmark::kMillisecond)->MinTime(3);
BENCHMARK(encoder_sst2)->Unit(benchmark::kMillisecond)->MinTime(3);
BENCHMARK(minilm_sst2)->Unit(benchmark::kMillisecond)->MinTime(3);

#if defined(FEDLORA_HAVE_EMBEDDED)
void stories260k(benchmark::State& state) {
  const Table table = utterances();
  const SequenceClassifier<Llama, B> model(stories(), {.labels = table.label_names()},
                                           {.rank = 8, .alpha = 16, .target_modules = {"all-linear"}});
  time_steps(state, model, model.encode(table), 16);
}
BENCHMARK(stories260k)->Unit(benchmark::kMillisecond)->MinTime(2);
#endif

}  // namespace
}  // namespace fedlora::benchmarks

BENCHMARK_MAIN();
