// SPDX-License-Identifier: Apache-2.0
// Kernels of LoRA linear layers on a GPU, each beside the bare products of the same shape. Names read
// op_variant/M/K/N/r/p/dtype/cold or hot; `ratio` is the median time of the variant over that of the bare products.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstring>
#include <exception>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/runtime.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "lora/cases.hpp"
#include "lora/measurement.cuh"
#include "lora/timing.cuh"
#include "lora/variants.cuh"

namespace fedlora::benchmarks {
namespace {

/// A type of elements, and a way to multiply them.
struct Kind {
  const char* name;
  double size;
  cuda::FloatMath math;
  void (*check)(const Setup&, const Case&, const std::string&);
  std::unique_ptr<Measurement> (*prepare)(const Setup&, const Case&, const std::string&, bool);
};

constexpr Kind kinds[] = {{"bf16", 2, cuda::FloatMath::tf32, check<Bf16>, prepare<Bf16>},
                          {"f16", 2, cuda::FloatMath::tf32, check<Half>, prepare<Half>},
                          {"tf32", 4, cuda::FloatMath::tf32, check<float>, prepare<float>},
                          {"f32", 4, cuda::FloatMath::float32, check<float>, prepare<float>}};

/// A median of fewer says little.
constexpr std::size_t fewest_measurements = 5;

const Kind& kind_of(const std::string& name) {
  for (const Kind& kind : kinds)
    if (name == kind.name) return kind;
  fail<ConfigError>("--dtypes", "bf16, f16, tf32 or f32", name);
}

/// A device, and what is ready on it: Google Benchmark calls a benchmark several times to find out how long it takes.
class Session {
 public:
  explicit Session(const DeviceFacts& facts) {
    setup_.stream = stream_.get();
    setup_.l2_bytes = facts.l2_bytes;
  }

  Measurement& ready(const std::string& name, const Case& shape, const std::string& variant, const Kind& kind,
                     bool cold) {
    if (name == name_) return *measurement_;
    name_.clear();
    measurement_.reset();
    setup_.memory.trim();
    setup_.math = kind.math;
    const std::string checked = shape.name(variant, kind.name);
    if (!checked_.contains(checked)) kind.check(setup_, shape, variant);
    checked_.insert(checked);
    measurement_ = kind.prepare(setup_, shape, variant, cold);
    name_ = name;
    return *measurement_;
  }

  bool failed = false;

 private:
  cuda::OwnedStream stream_;
  Setup setup_;
  std::set<std::string> checked_;
  std::string name_;
  std::unique_ptr<Measurement> measurement_;
};

void run(benchmark::State& state, Session& session, const std::string& name, const Case& shape,
         const std::string& variant, const Kind& kind, bool cold) try {
  Measurement& measurement = session.ready(name, shape, variant, kind, cold);
  std::vector<double> base, adapted;
  while (state.KeepRunningBatch(measurement.passes())) {
    const Times times = measurement.measure();
    base.push_back(times.base);
    adapted.push_back(times.adapted);
    state.SetIterationTime(static_cast<double>(measurement.passes()) * times.adapted);
  }
  while (base.size() < fewest_measurements) {
    const Times times = measurement.measure();
    base.push_back(times.base);
    adapted.push_back(times.adapted);
  }
  const double time = median(adapted);
  state.counters["ratio"] = time / median(base);
  state.counters["base_s"] = median(base);
  state.counters["median_s"] = time;
  state.counters["spread"] = (quantile(adapted, 0.8) - quantile(adapted, 0.2)) / time;
  state.counters["TFLOP/s"] = 1e-12 * shape.flops() / time;
  state.counters["GB/s"] = 1e-9 * shape.bytes(kind.size) / time;
  state.counters["saved_bytes"] = {shape.saved_bytes(kind.size), benchmark::Counter::kDefaults,
                                   benchmark::Counter::kIs1024};
  state.counters["launches"] = measurement.launches();
} catch (const std::exception& error) {
  session.failed = true;
  state.SkipWithError(error.what());
}

template <template <class> class... V>
std::vector<std::string> names_of(VariantList<V...>) {
  return {V<float>::name...};
}

void add(Session* session, const Case& shape, const std::string& variant, const Kind& kind) {
  for (const bool cold : {true, false}) {
    const std::string name = shape.name(variant, std::string(kind.name) + (cold ? "/cold" : "/hot"));
    benchmark::RegisterBenchmark(
        name.c_str(), [=, &kind](benchmark::State& state) { run(state, *session, name, shape, variant, kind, cold); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
}

/// A case in a type.
struct Planned {
  Case shape;
  const Kind* kind;
};

/// \throws ConfigError
std::vector<Planned> plan_of(const Choice& choice) {
  std::vector<Planned> plan;
  for (const std::string& dtype : choice.dtypes)
    for (const Case& shape : choice.cases()) plan.push_back({shape, &kind_of(dtype)});
  return plan;
}

void add_all(Session* session, const std::vector<Planned>& plan) {
  std::set<std::string> bare;
  for (const auto& [shape, kind] : plan) {
    if (bare.insert(shape.bare().name(base_name, kind->name)).second) add(session, shape.bare(), base_name, *kind);
    for (const std::string& variant : names_of(Variants{})) add(session, shape, variant, *kind);
  }
}

int main_of(int argc, char** argv) {
  Choice choice;
  choice.blocks = {"8192/768/3072", "8192/1024/4096", "8192/2048/8192", "8192/4096/14336"};
  choice.shapes = {"8192/768/768",   "8192/768/3072",  "8192/3072/768",  "8192/1024/1024",
                   "8192/2048/2048", "8192/2048/8192", "8192/4096/4096", "8192/4096/14336"};
  choice.dtypes = {"bf16"};
  choice.read(argc, argv);
  const std::vector<Planned> plan = plan_of(choice);
  bool only_lists = false;  // which needs no device
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--help") == 0) std::cout << Choice::help() << "  --device=N\n\n";
    only_lists = only_lists || std::strncmp(argv[i], "--benchmark_list_tests", 22) == 0;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  std::unique_ptr<Session> session;
  if (!only_lists) {
    const DeviceFacts facts = device_facts(choice.device);
    benchmark::AddCustomContext("device", facts.name);
    for (const auto& [what, value] : facts.others) benchmark::AddCustomContext(what, value);
    session = std::make_unique<Session>(facts);
  }
  add_all(session.get(), plan);
  benchmark::RunSpecifiedBenchmarks();
  return session != nullptr && session->failed ? 1 : 0;
}

}  // namespace
}  // namespace fedlora::benchmarks

int main(int argc, char** argv) try {
  return fedlora::benchmarks::main_of(argc, argv);
} catch (const fedlora::NoDeviceError& error) {
  std::cerr << "fedlora-bench-lora-cuda: " << error.what() << '\n';
  return 77;
} catch (const std::exception& error) {
  std::cerr << "fedlora-bench-lora-cuda: " << error.what() << '\n';
  return 1;
}
