// SPDX-License-Identifier: Apache-2.0
// fedlora-bench-step-cuda: one training step of BERT-base's size on a GPU, timed as `train` runs it, as a line of JSON
// for compare_torch_gpu.py.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "cases.hpp"
#include "fedlora/cuda.cuh"

namespace fedlora::benchmarks {
namespace {

struct Request {
  std::string dtype = "bf16";
  std::string path = "fused";
  std::string graphs = "on";
  Index layers = 12, hidden = 768, batch = 32, length = 128;
  double seconds = 3;
};

/// The random encoder of cases.hpp on another backend.
template <class Backend>
Pretrained<Bert, Backend> encoder_on(const Backend& backend, Index layers, Index hidden) {
  ModelConfig config;
  config.vocab_size = 30522;
  config.hidden_size = hidden;
  config.layers = layers;
  config.heads = config.kv_heads = 12;
  config.head_dim = hidden / 12;
  config.intermediate_size = 4 * hidden;
  config.max_positions = 512;
  config.token_types = 2;
  const std::map<std::string, TensorView> tensors = random_tensors(layers, hidden, config.vocab_size);
  WeightLoader<Backend> load(
      backend,
      [&](const std::string& name) {
        const auto found = tensors.find(name);
        return found == tensors.end() ? nullptr : &found->second;
      },
      "random", "bert.", "embeddings.word_embeddings.weight");
  Pretrained<Bert, Backend> base;
  base.backend = backend;
  base.name = "random";
  base.transformer = std::make_shared<const Transformer<Bert, Backend>>(config, load);
  base.head.emplace("bert.pooler.dense.weight", load.optional("pooler.dense.weight", {hidden, hidden}));
  base.head.emplace("bert.pooler.dense.bias", load.optional("pooler.dense.bias", {hidden}));
  return base;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

template <class T>
void run(const Request& request) {
  CudaOptions options;
  options.math = request.dtype == "f32" ? cuda::FloatMath::float32 : cuda::FloatMath::tf32;
  options.low_rank = request.path == "plain" ? cuda::LowRankPath::plain : cuda::LowRankPath::fused;
  options.graphs = request.graphs == "on";
  using Backend = CudaBackend<T>;
  const Backend backend(options);
  const SequenceClassifier<Bert, Backend> model(encoder_on(backend, request.layers, request.hidden),
                                                {.labels = {"a", "b"}, .base_dropout = 0.0}, query_value());
  const std::vector<Index> lengths(static_cast<std::size_t>(8 * request.batch), request.length);
  std::vector<Index> all(lengths.size());
  std::iota(all.begin(), all.end(), 0);
  const auto clients = make_clients(model, random_dataset(lengths, 30522, 2), {all}, AdamW{.lr = 1e-4});
  const auto global = model.initial_adapter(1);
  Index round = 0;
  const auto seconds_of = [&](Index steps) {
    LocalPlan plan;
    plan.steps = steps;
    plan.batch_size = request.batch;
    plan.threads = 1;
    return train(all_clients(clients, 1, ++round), global, plan).front().metrics.seconds;
  };
  // A client's first steps allocate and capture, and its ends go to and from the host: what is wanted is what one step
  // more takes.
  constexpr Index few = 16, many = 144;
  seconds_of(few);
  std::vector<double> times;
  double total = 0;
  while (times.size() < 3 || total < request.seconds) {
    const double begin = seconds_of(few), whole = seconds_of(many);
    times.push_back((whole - begin) / static_cast<double>(many - few));
    total += begin + whole;
  }
  const cuda::MemoryUsage usage = backend.memory_usage();
  constexpr double mib = 1 << 20;
  std::printf(
      "{\"dtype\": \"%s\", \"path\": \"%s\", \"ms_per_step\": %.4f, \"peak_mib\": %.1f, \"held_mib\": %.1f, "
      "\"tokens\": %lld, \"repeats\": %zu}\n",
      request.dtype.c_str(), request.path.c_str(), 1000 * median(times), static_cast<double>(usage.peak) / mib,
      static_cast<double>(usage.held) / mib, static_cast<long long>(request.batch * request.length), times.size());
}

int bench(int argc, char** argv) {
  Request request;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (value.empty())
      throw ConfigError(
          "usage: fedlora-bench-step-cuda [--dtype bf16|tf32|f32] [--path fused|plain] [--graphs on|off] "
          "[--layers N] [--hidden N] [--batch N] [--length N] [--seconds S]");
    if (option == "--dtype")
      request.dtype = value;
    else if (option == "--path")
      request.path = value;
    else if (option == "--graphs")
      request.graphs = value;
    else if (option == "--layers")
      request.layers = std::stoll(value);
    else if (option == "--hidden")
      request.hidden = std::stoll(value);
    else if (option == "--batch")
      request.batch = std::stoll(value);
    else if (option == "--length")
      request.length = std::stoll(value);
    else if (option == "--seconds")
      request.seconds = std::stod(value);
    else
      throw ConfigError("[" + option + "] is not an option of fedlora-bench-step-cuda");
  }
  if (request.dtype == "bf16")
    run<Bf16>(request);
  else if (request.dtype == "tf32" || request.dtype == "f32")
    run<float>(request);
  else
    throw ConfigError("[--dtype] expected bf16, tf32 or f32, got " + request.dtype);
  return 0;
}

}  // namespace
}  // namespace fedlora::benchmarks

int main(int argc, char** argv) {
  try {
    return fedlora::benchmarks::bench(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "fedlora-bench-step-cuda: " << error.what() << '\n';
    return 1;
  }
}
