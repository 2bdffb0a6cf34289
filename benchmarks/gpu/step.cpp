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

template <class T>
void run(const Request& request) {
  CudaOptions options;
  options.math = request.dtype == "f32" ? cuda::FloatMath::float32 : cuda::FloatMath::tf32;
  options.low_rank = request.path == "plain" ? cuda::LowRankPath::plain : cuda::LowRankPath::fused;
  options.graphs = request.graphs == "on";
  using Backend = CudaBackend<T>;
  const Backend backend(options);
  const SequenceClassifier<Bert, Backend> model(random_encoder(request.layers, request.hidden, backend),
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
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  const cuda::MemoryUsage usage = backend.memory_usage();
  constexpr double mib = 1 << 20;
  std::printf(
      "{\"dtype\": \"%s\", \"path\": \"%s\", \"ms_per_step\": %.4f, \"peak_mib\": %.1f, \"held_mib\": %.1f, "
      "\"tokens\": %lld, \"repeats\": %zu}\n",
      request.dtype.c_str(), request.path.c_str(), 1000 * times[times.size() / 2],
      static_cast<double>(usage.peak) / mib, static_cast<double>(usage.held) / mib,
      static_cast<long long>(request.batch * request.length), times.size());
}

constexpr const char* usage =
    "usage: fedlora-bench-step-cuda [--dtype bf16|tf32|f32] [--path fused|plain] [--graphs on|off] "
    "[--layers N] [--hidden N] [--batch N] [--length N] [--seconds S]";

int bench(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--help") {
    std::puts(usage);
    return 0;
  }
  Request request;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (value.empty()) throw ConfigError(usage);
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
  if (request.path != "fused" && request.path != "plain")
    throw ConfigError("[--path] expected fused or plain, got " + request.path);
  if (request.graphs != "on" && request.graphs != "off")
    throw ConfigError("[--graphs] expected on or off, got " + request.graphs);
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
  } catch (const fedlora::NoDeviceError& error) {
    std::cerr << "fedlora-bench-step-cuda: " << error.what() << '\n';
    return 77;
  } catch (const std::exception& error) {
    std::cerr << "fedlora-bench-step-cuda: " << error.what() << '\n';
    return 1;
  }
}
