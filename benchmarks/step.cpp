// SPDX-License-Identifier: Apache-2.0
// fedlora-bench-step: one training step of a named case, timed, as a line of JSON for compare_torch.py.
#include <sys/resource.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "cases.hpp"

namespace fedlora::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Peak resident memory of this process, MiB.
double peak_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

/// The level of processor that this file was compiled for: compare_torch.py compares it with what was asked for.
constexpr const char* compiled_for() {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512CD__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
  return "v4";
#elif defined(__AVX2__) && defined(__FMA__) && defined(__BMI2__)
  return "v3";
#elif defined(__SSE4_2__) && defined(__POPCNT__)
  return "v2";
#elif defined(__x86_64__)
  return "v1";
#else
  return "other";
#endif
}

/// What oneDNN's products use of the processor: the words of ONEDNN_MAX_CPU_ISA that compare_torch.py gives it, or the
/// number of dnnl_cpu_isa_t.
std::string products_use() {
#if defined(FEDLORA_HAVE_ONEDNN)
  const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
  if (isa == dnnl_cpu_isa_avx2) return "AVX2";
  if (isa == dnnl_cpu_isa_avx512_core) return "AVX512_CORE";
  return "isa " + std::to_string(static_cast<int>(isa));
#else
  return compiled_for();
#endif
}

/// One product of the frozen base.
struct Product {
  Index m, n, k;
  bool backward;
};

/// Median seconds of one product with a GEMM policy.
template <class Gemm>
double seconds_of(const Product& product, const std::vector<float>& a, const std::vector<float>& b,
                  std::vector<float>& c) {
  std::vector<double> times;
  for (int repeat = 0; repeat < 7; ++repeat) {
    const auto start = Clock::now();
    Gemm::template multiply<float>(false, !product.backward, product.m, product.n, product.k, 1.0f, a.data(), product.k,
                                   b.data(), product.backward ? product.n : product.k, 0.0f, c.data(), product.n);
    times.push_back(seconds_since(start));
  }
  std::nth_element(times.begin(), times.begin() + 3, times.end());
  return times[3];
}

/// Milliseconds that the frozen products of a step take by themselves, in the faster of the GEMMs at hand: forward, and
/// dX of what backward needs. The last block's rows are those the head reads; the lowest block has no dX of query, key
/// and value.
double roof_ms(const ModelConfig& config, bool gated, Index rows, Index sequences) {
  std::vector<Product> products;
  const Index hidden = config.hidden_size;
  const Index q = config.heads * config.head_dim;
  const Index kv = config.kv_heads * config.head_dim;
  const Index inner = config.intermediate_size;
  const auto add = [&](Index m, Index out, Index in, bool input_gradient) {
    products.push_back({m, out, in, false});
    if (input_gradient) products.push_back({m, in, out, true});
  };
  for (Index layer = 0; layer < config.layers; ++layer) {
    const Index m = layer + 1 == config.layers ? sequences : rows;
    add(m, q, hidden, layer > 0);
    add(rows, kv, hidden, layer > 0);
    add(rows, kv, hidden, layer > 0);
    add(m, hidden, q, true);
    add(m, inner, hidden, true);
    if (gated) add(m, inner, hidden, true);
    add(m, hidden, inner, true);
  }
  std::map<std::tuple<Index, Index, Index, bool>, double> known;
  double total = 0;
  for (const Product& product : products) {
    double& time = known[{product.m, product.n, product.k, product.backward}];
    if (time == 0) {
      const std::vector<float> a(static_cast<std::size_t>(product.m * product.k), 0.5f);
      const std::vector<float> b(static_cast<std::size_t>(product.n * product.k), 0.25f);
      std::vector<float> c(static_cast<std::size_t>(product.m * product.n));
      time = seconds_of<EigenGemm>(product, a, b, c);
#if defined(FEDLORA_HAVE_ONEDNN)
      time = std::min(time, seconds_of<OneDnnGemm>(product, a, b, c));
#endif
    }
    total += time;
  }
  return total * 1000;
}

template <class Model>
void run(const std::string& name, const Model& model, const Dataset& data, Index batch, bool gated, int threads,
         double seconds) {
  struct Result {
    Index steps = 0;
    double elapsed = 0;
    double roof = 0;
  };
  std::vector<Result> results(static_cast<std::size_t>(threads));
  const std::vector<std::vector<Index>> batches = batches_of(data, batch);
  Index tokens = 0;
  for (const auto& examples : batches)
    for (const Index example : examples) tokens += data.length(example);
  const Index rows = tokens / static_cast<Index>(batches.size());
  double peak = 0;
  std::barrier trained(threads, [&]() noexcept { peak = peak_mib(); });
  {
    std::vector<std::jthread> workers;
    for (int worker = 0; worker < threads; ++worker)
      workers.emplace_back([&, worker] {
        [[maybe_unused]] const typename B::ThreadScope scope{};
        Trainer<Model> trainer(model, data, batch);
        for (Index warm = 0; warm < 2; ++warm) trainer.step(warm);
        Result& result = results[static_cast<std::size_t>(worker)];
        const auto start = Clock::now();
        // Whole passes over the batches, so that every run has the same work.
        while (result.steps == 0 || result.steps % trainer.batches() != 0 || seconds_since(start) < seconds)
          trainer.step(result.steps++);
        result.elapsed = seconds_since(start);
        trained.arrive_and_wait();
        result.roof = roof_ms(model.base().config(), gated, rows, batch);  // as many at once as there were steps
      });
  }
  double rate = 0, roof_rate = 0;
  for (const Result& result : results) {
    rate += static_cast<double>(result.steps) / result.elapsed;
    roof_rate += 1 / result.roof;
  }
  std::printf(
      "{\"case\": \"%s\", \"threads\": %d, \"compiled_for\": \"%s\", \"gemm\": \"%s\", \"gemm_isa\": \"%s\", "
      "\"ms_per_step\": %.4f, \"roof_ms\": %.4f, \"peak_mib\": %.1f, \"tokens\": %lld}\n",
      name.c_str(), threads, compiled_for(), BestGemm::name, products_use().c_str(), 1000 / rate, 1 / roof_rate, peak,
      static_cast<long long>(rows));
}

int bench(int argc, char** argv) {
  std::string name = "encoder-128";
  int threads = 1;
  double seconds = 5;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--case")
      name = argv[i + 1];
    else if (option == "--threads")
      threads = std::stoi(argv[i + 1]);
    else if (option == "--seconds")
      seconds = std::stod(argv[i + 1]);
    else
      throw ConfigError("usage: fedlora-bench-step --case NAME --threads N --seconds S");
  }
  const LoraConfig lora = query_value();
  if (name == "encoder-128" || name == "encoder-sst2" || name == "minilm-sst2") {
    const auto base = random_encoder(6, name == "minilm-sst2" ? 384 : 768);
    const SequenceClassifier<Bert, B> model(base, {.labels = {"a", "b"}, .base_dropout = 0.0}, lora);
    const auto lengths = name == "encoder-128" ? std::vector<Index>(8, 128) : sst2_lengths();
    run(name, model, random_dataset(lengths, 30522, 2), 8, false, threads, seconds);
#if defined(FEDLORA_HAVE_EMBEDDED)
  } else if (name == "stories260k") {
    const Table table = utterances();
    const SequenceClassifier<Llama, B> model(stories(), {.labels = table.label_names()},
                                             {.rank = 8, .alpha = 16, .target_modules = {"all-linear"}});
    run(name, model, model.encode(table), 16, true, threads, seconds);
#endif
  } else {
    throw ConfigError("[--case] expected encoder-128, encoder-sst2, minilm-sst2 or stories260k, got " + name);
  }
  return 0;
}

}  // namespace
}  // namespace fedlora::benchmarks

int main(int argc, char** argv) {
  try {
    return fedlora::benchmarks::bench(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
