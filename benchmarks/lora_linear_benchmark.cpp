// SPDX-License-Identifier: Apache-2.0
// A linear layer with a LoRA term against the bare products of the same shape. Both are timed in every iteration, one
// after the other, in CPU time of this thread, and `ratio` is that of their medians: other programs on the machine
// disturb it little.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/core/random.hpp"
#if defined(FEDLORA_HAVE_ONEDNN)
#include "fedlora/backend/cpu/gemm_onednn.hpp"
#endif

namespace fedlora::benchmarks {
namespace {

struct Shape {
  Index rows, in, out, rank;
  double dropout;
};

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::vector<float> random_values(Index count, std::uint64_t seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  RandomSequence draws(derive_key(seed, Purpose::user));
  for (float& value : values) value = static_cast<float>(2 * draws.uniform() - 1);
  return values;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// y = x Wᵀ + bias + scale · dropout(x) Aᵀ Bᵀ and, with `backward`, dx and the gradients of A and B, against x Wᵀ and
/// dy W.
template <class Gemm>
void lora_linear(benchmark::State& state, const Shape& shape, bool backward) {
  using B = CpuBackend<float, Gemm>;
  [[maybe_unused]] const typename B::ThreadScope scope{};
  const auto [rows, in, out, rank, dropout] = shape;
  const std::vector<float> x_values = random_values(rows * in, 1), w_values = random_values(out * in, 2),
                           a = random_values(rank * in, 3), b = random_values(out * rank, 4),
                           bias = random_values(out, 5), dy_values = random_values(rows * out, 6);
  std::vector<float> y_values(static_cast<std::size_t>(rows * out)), dx_values(x_values.size()),
      s_values(static_cast<std::size_t>(rows * rank)), grad_a(a.size()), grad_b(b.size());
  std::vector<std::int32_t> row_numbers(static_cast<std::size_t>(rows));
  std::iota(row_numbers.begin(), row_numbers.end(), 0);
  typename B::Arena arena;

  const MatrixView<const float> x(x_values.data(), rows, in), dy(dy_values.data(), rows, out);
  const MatrixView<float> y(y_values.data(), rows, out), dx(dx_values.data(), rows, in), s(s_values.data(), rows, rank);
  const FrozenMatrix w = B::adopt(Dtype::f32, out, in, std::as_bytes(std::span(w_values)), nullptr, "random");
  LowRankTerm<float> term;
  term.end = rows;
  term.a = {a.data(), rank, in};
  term.b = {b.data(), out, rank};
  term.scale = 2;
  term.grad_a = {grad_a.data(), rank, in};
  term.grad_b = {grad_b.data(), out, rank};
  term.row_numbers = row_numbers.data();
  if (dropout > 0) term.dropout = Dropout(derive_key(1, Purpose::adapter_dropout), dropout);

  const auto bare = [&] {
    B::linear_forward(x, w, nullptr, y);
    if (backward) B::linear_backward(dy, w, dx, false);
  };
  const auto adapted = [&] {
    B::linear_forward(x, w, bias.data(), y);
    B::low_rank_forward(x, term, s, y, arena);
    if (!backward) return;
    B::linear_backward(dy, w, dx, false);
    B::low_rank_backward(dy, x, s, term, dx, arena);
  };
  bare();
  adapted();
  std::vector<double> bare_times, adapted_times;
  for (auto _ : state) {
    const double start = thread_seconds();
    bare();
    const double between = thread_seconds();
    adapted();
    const double end = thread_seconds();
    benchmark::DoNotOptimize(y_values.data());
    benchmark::ClobberMemory();
    bare_times.push_back(between - start);
    adapted_times.push_back(end - between);
    state.SetIterationTime(end - between);
  }
  const double flops = 2.0 * static_cast<double>(rows * in * out) * (backward ? 2 : 1);
  state.counters["ratio"] = median(adapted_times) / median(bare_times);
  state.counters["GFLOP/s"] = 1e-9 * flops / median(adapted_times);
  state.counters["bare_GFLOP/s"] = 1e-9 * flops / median(bare_times);
}

template <class Gemm>
void add(const Shape& shape) {
  for (const bool backward : {false, true}) {
    const std::string name = std::string(backward ? "forward_backward" : "forward") + "/" + std::to_string(shape.rows) +
                             "/" + std::to_string(shape.in) + "/" + std::to_string(shape.out) + "/r" +
                             std::to_string(shape.rank) + "/p" + (shape.dropout > 0 ? "0.1" : "0") + "/" + Gemm::name;
    benchmark::RegisterBenchmark(
        name.c_str(), [shape, backward](benchmark::State& state) { lora_linear<Gemm>(state, shape, backward); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
}

void add_all() {
  constexpr Index shapes[][3] = {{512, 768, 768}, {512, 768, 3072}, {512, 3072, 768}, {128, 384, 1536}, {391, 64, 172}};
  for (const auto& [rows, in, out] : shapes)
    for (const Index rank : {8, 16})
      for (const double dropout : {0.0, 0.1}) {
#if defined(FEDLORA_HAVE_ONEDNN)
        add<OneDnnGemm>({rows, in, out, rank, dropout});
#endif
        add<EigenGemm>({rows, in, out, rank, dropout});
      }
}

}  // namespace
}  // namespace fedlora::benchmarks

int main(int argc, char** argv) {
  fedlora::benchmarks::add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
