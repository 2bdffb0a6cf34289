// SPDX-License-Identifier: Apache-2.0
// A federated round of MiniLM's shape, the aggregation of a hundred adapters, and what registered clients cost in
// memory.
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <fstream>

#include "cases.hpp"

namespace fedlora::benchmarks {
namespace {

/// Resident memory of this process, MiB.
double resident_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmRSS:")) return std::stod(line.substr(6)) / 1024;
  throw IoError("no VmRSS in /proc/self/status");
}

SequenceClassifier<Bert, B> minilm(double dropout) {
  LoraConfig lora = query_value();
  lora.dropout = dropout;
  return {random_encoder(6, 384), {.labels = {"a", "b"}, .base_dropout = 0.0}, lora};
}

/// 346 sentences of SST-2's lengths for each of `clients` clients.
Dataset sentences(Index clients) {
  const std::vector<Index> some = sst2_lengths();
  std::vector<Index> lengths;
  for (Index i = 0; i < 346 * clients; ++i) lengths.push_back(some[static_cast<std::size_t>(i) % some.size()]);
  return random_dataset(lengths, 30522, 2);
}

/// Five clients of four steps of eight sentences, then their mean; range(0) threads.
void minilm_round(benchmark::State& state) {
  const auto model = minilm(0.1);
  const auto clients =
      make_clients(model, sentences(5), partition_iid(5 * 346, {.clients = 5, .seed = 1}), AdamW{.lr = 1e-3});
  Adapter<float> global = model.initial_adapter(1);
  LocalPlan plan;
  plan.steps = 4;
  plan.threads = static_cast<int>(state.range(0));
  Index round = 0;
  for (auto _ : state) {
    const auto updates = train(all_clients(clients, 1, ++round), global, plan);
    global = FedAvg{}(global, updates);
  }
  state.counters["client_steps"] = benchmark::Counter(5 * 4, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(minilm_round)->Arg(1)->Arg(2)->ArgName("threads")->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);

/// FedAvg over adapters of RoBERTa base, r 8 on query and value with its head: 0.89 million numbers each.
void aggregate_100(benchmark::State& state) {
  auto layout = std::make_shared<AdapterLayout>();
  for (int layer = 0; layer < 12; ++layer)
    for (const char* name : {"query", "value"})
      layout->add_site("roberta.encoder.layer." + std::to_string(layer) + ".attention.self." + name, 768, 768, 8, 16);
  layout->add_saved("classifier.dense.weight", {768, 768});
  layout->add_saved("classifier.dense.bias", {768});
  layout->add_saved("classifier.out_proj.weight", {2, 768});
  layout->add_saved("classifier.out_proj.bias", {2});
  const Adapter<float> global(layout);
  std::vector<Update<float>> updates;
  for (Index client = 0; client < 100; ++client) {
    updates.push_back({client, 1, 10 + client, {}, global});
    for (float& value : updates.back().adapter.values()) value = static_cast<float>(client);
  }
  for (auto _ : state) benchmark::DoNotOptimize(FedAvg{}(global, updates));
  const double bytes = 100.0 * static_cast<double>(layout->size) * sizeof(float);
  state.counters["GB"] = benchmark::Counter(1e-9 * bytes, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(aggregate_100)->Unit(benchmark::kMillisecond);

/// One step of one client after registering range(0) clients that share the same sentences; MiB: resident memory that
/// the registration and the step added to the base with its data.
void registered_clients(benchmark::State& state) {
  const auto model = minilm(0.1);
  const auto data = std::make_shared<const Dataset>(sentences(20));
  malloc_trim(0);  // nothing of an earlier run is left to reuse
  const double before = resident_mib();
  double after = before;
  for (auto _ : state) {
    const auto clients = make_clients(model, data, partition_iid(data->size(), {.clients = state.range(0), .seed = 1}),
                                      AdamW{.lr = 1e-3});
    const Adapter<float> global = model.initial_adapter(1);
    LocalPlan plan;
    plan.steps = 1;
    plan.threads = 1;
    benchmark::DoNotOptimize(train(sample_uniform(clients, {.count = 1, .seed = 1, .round = 1}), global, plan));
    after = resident_mib();
  }
  state.counters["MiB"] = after - before;
}
BENCHMARK(registered_clients)->Arg(10)->Arg(1000)->ArgName("clients")->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fedlora::benchmarks

BENCHMARK_MAIN();
