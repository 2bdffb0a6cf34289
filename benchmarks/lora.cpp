// SPDX-License-Identifier: Apache-2.0
// LoRA linear layers on the CPU against the bare products of the same shape. Both are timed in every iteration, one
// after the other, in CPU time of this thread, and `ratio` is that of their medians: other programs on the machine
// disturb it little. Names read op_variant/M/K/N/r/p/f32/GEMM.
#include <benchmark/benchmark.h>
#include <time.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iostream>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "lora/cases.hpp"
#include "lora/layers.hpp"
#if defined(FEDLORA_HAVE_ONEDNN)
#include "fedlora/backend/cpu/gemm_onednn.hpp"
#endif

namespace fedlora::benchmarks {
namespace {

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Memory for as long as it lives. See `make_layers`.
class HostPlace {
 public:
  template <class T>
  MatrixView<T> matrix(Index rows, Index cols, Index /*room*/) {
    const auto bytes = static_cast<std::size_t>(rows * cols) * sizeof(T);
    blocks_.emplace_back(static_cast<std::byte*>(::operator new(bytes, alignment)));
    return {reinterpret_cast<T*>(blocks_.back().get()), rows, cols};
  }
  void fill(MatrixView<float> matrix, RandomKey key, float scale) {
    float values[4];
    for (Index i = 0; i < matrix.rows; ++i)
      for (Index j = 0; j < matrix.cols; ++j) {
        if (j % 4 == 0) random_values(key, i, j, values);
        matrix(i, j) = scale * values[j % 4];
      }
  }
  const std::int32_t* row_numbers(Index rows) {
    const MatrixView<std::int32_t> numbers = matrix<std::int32_t>(1, rows, 0);
    for (Index i = 0; i < rows; ++i) numbers(0, i) = static_cast<std::int32_t>(i);
    return numbers.data;
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Release {
    void operator()(std::byte* block) const { ::operator delete(block, alignment); }
  };
  std::vector<std::unique_ptr<std::byte, Release>> blocks_;
};

/// What the library does.
template <class Gemm>
class Fused {
 public:
  static constexpr const char* name = "fused";

  void forward(Layer<float>& layer) { run_.linear_forward(layer.x, layer.parts); }
  void backward(Layer<float>& layer) { run_.linear_backward(layer.x, layer.parts, layer.dx, false); }

 private:
  cpu::Runner<float, Gemm, cpu::OwnLevel> run_;
};

/// The products of the frozen matrices alone.
template <class Gemm>
struct Base {
  static constexpr const char* name = "base";

  void forward(Layer<float>& layer) {
    for (LinearPart<float>& part : layer.parts)
      cpu::linear_forward<Gemm, cpu::OwnLevel>(MatrixView<const float>(layer.x), part.weight->view<float>(),
                                static_cast<const float*>(nullptr), part.y);
  }
  void backward(Layer<float>& layer) {
    for (LinearPart<float>& part : layer.parts)
      cpu::multiply_nn<Gemm>(part.dy, part.weight->view<float>(), layer.dx, &part == layer.parts.data() ? 0.0f : 1.0f);
  }
};

/// One product of whole matrices after another.
template <class Gemm>
class Plain {
 public:
  static constexpr const char* name = "plain";

  void forward(Layer<float>& layer) {
    for (LinearPart<float>& part : layer.parts) {
      const LowRankTerm<float>& term = part.terms[0];
      cpu::linear_forward<Gemm, cpu::OwnLevel>(MatrixView<const float>(layer.x), part.weight->view<float>(), part.bias, part.y);
      cpu::multiply_nt<Gemm>(dropped(layer.x, term), term.a, part.s);
      cpu::multiply_nt<Gemm>(MatrixView<const float>(part.s), term.b, part.y, 1.0f, term.scale);
    }
  }

  void backward(Layer<float>& layer) {
    Base<Gemm>().backward(layer);
    for (LinearPart<float>& part : layer.parts) {
      const LowRankTerm<float>& term = part.terms[0];
      ds_.resize(static_cast<std::size_t>(part.s.size()));
      const MatrixView<float> ds(ds_.data(), part.s.rows, part.s.cols);
      cpu::multiply_nn<Gemm>(part.dy, term.b, ds, 0.0f, term.scale);
      cpu::multiply_tn<Gemm>(part.dy, MatrixView<const float>(part.s), term.grad_b, 1.0f, term.scale);
      cpu::multiply_tn<Gemm>(MatrixView<const float>(ds), dropped(layer.x, term), term.grad_a, 1.0f);
      if (!term.dropout) {
        cpu::multiply_nn<Gemm>(MatrixView<const float>(ds), term.a, layer.dx, 1.0f);
        continue;
      }
      const MatrixView<float> mask(mask_.data(), layer.x.rows, layer.x.cols);  // as `dropped` has drawn it
      const MatrixView<float> product(dropped_.data(), layer.x.rows, layer.x.cols);
      cpu::multiply_nn<Gemm>(MatrixView<const float>(ds), term.a, product);
      for (Index i = 0; i < product.rows; ++i)
        for (Index j = 0; j < product.cols; ++j) layer.dx(i, j) += mask(i, j) * product(i, j);
    }
  }

 private:
  MatrixView<const float> dropped(MatrixView<const float> x, const LowRankTerm<float>& term) {
    if (!term.dropout) return x;
    mask_.resize(static_cast<std::size_t>(x.size()));
    dropped_.resize(mask_.size());
    const MatrixView<float> mask(mask_.data(), x.rows, x.cols), result(dropped_.data(), x.rows, x.cols);
    cpu::low_rank_mask<cpu::OwnLevel>(term, 0, mask);
    cpu::multiply_elements<cpu::OwnLevel, float>(mask, x, result);
    return result;
  }

  std::vector<float> mask_, dropped_, ds_;
};

/// Forward and backward through all layers, as far as they are measured.
template <class Variant>
void pass(Variant& variant, std::vector<Layer<float>>& layers, bool forward, bool backward) {
  if (forward)
    for (Layer<float>& layer : layers) variant.forward(layer);
  if (backward)
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) variant.backward(*layer);
}

std::vector<Layer<float>> layers_of(const Case& shape, HostPlace& place) {
  std::vector<Layer<float>> layers = make_layers<float>(shape, place, 0, [](Index) { return 0; });
  for (Layer<float>& layer : layers)
    for (LinearPart<float>& part : layer.parts) {
      const MatrixView<float> bias = place.matrix<float>(1, part.y.cols, 0);
      place.fill(bias, RandomKey{5}, 1.0f);
      if (shape.rank > 0) part.bias = bias.data;
    }
  return layers;
}

/// \throws Error when results are not those of `Plain`.
template <class Variant, class Gemm>
void check(const Case& shape) {
  HostPlace place;
  std::vector<Layer<float>> layers = layers_of(shape, place), expected = layers_of(shape, place);
  reset_results(layers, place);
  reset_results(expected, place);
  Variant variant;
  Plain<Gemm> plain;
  pass(variant, layers, true, shape.has_backward());
  pass(plain, expected, true, shape.has_backward());
  const std::vector<Result<float>> got = results_of(layers, shape), wanted = results_of(expected, shape);
  for (std::size_t k = 0; k < got.size(); ++k) {
    const MatrixView<float> a = got[k].values.empty() ? got[k].gradient : got[k].values;
    const MatrixView<float> b = wanted[k].values.empty() ? wanted[k].gradient : wanted[k].values;
    float largest = 0, most = 0;
    bool finite = true;
    for (Index i = 0; i < a.rows; ++i)
      for (Index j = 0; j < a.cols; ++j) {
        largest = std::max(largest, std::abs(b(i, j)));
        most = std::max(most, std::abs(a(i, j) - b(i, j)));
        finite = finite && std::isfinite(a(i, j) - b(i, j));
      }
    if (!finite || most > 1e-4f * largest)
      fail<Error>(std::string("the variant ") + Variant::name, "the results of plain products",
                  finite ? std::to_string(most / largest) + " of the largest beside them" : "some that are not finite");
  }
}

template <class Variant, class Gemm>
void run(benchmark::State& state, const Case& shape) try {
  [[maybe_unused]] const typename Gemm::ThreadScope scope{};
  if constexpr (!std::is_same_v<Variant, Base<Gemm>>) check<Variant, Gemm>(shape);
  HostPlace place;
  std::vector<Layer<float>> layers = layers_of(shape, place);
  Base<Gemm> bare;
  Variant variant;
  const bool forward = shape.has_forward(), backward = shape.has_backward();
  pass(bare, layers, true, backward);
  pass(variant, layers, true, backward);
  std::vector<double> base_times, times;
  for (auto _ : state) {
    const double start = thread_seconds();
    pass(bare, layers, forward, backward);
    const double between = thread_seconds();
    pass(variant, layers, forward, backward);
    const double end = thread_seconds();
    benchmark::ClobberMemory();
    base_times.push_back(between - start);
    times.push_back(end - between);
    state.SetIterationTime(end - between);
  }
  state.counters["ratio"] = median(times) / median(base_times);
  state.counters["base_s"] = median(base_times);
  state.counters["median_s"] = median(times);
  state.counters["GFLOP/s"] = 1e-9 * shape.flops() / median(times);
  state.counters["GB/s"] = 1e-9 * shape.bytes(sizeof(float)) / median(times);
  state.counters["saved_bytes"] = {shape.saved_bytes(sizeof(float)), benchmark::Counter::kDefaults,
                                   benchmark::Counter::kIs1024};
} catch (const Error& error) {
  state.SkipWithError(error.what());
}

template <class Variant, class Gemm>
void add(const Case& shape) {
  const std::string name = shape.name(Variant::name, std::string("f32/") + Gemm::name);
  benchmark::RegisterBenchmark(name.c_str(), [shape](benchmark::State& state) { run<Variant, Gemm>(state, shape); })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

template <class Gemm>
void add_all(const Choice& choice) {
  std::set<std::string> bare;
  for (const Case& shape : choice.cases()) {
    if (bare.insert(shape.bare().name("base", "")).second) add<Base<Gemm>, Gemm>(shape.bare());
    add<Plain<Gemm>, Gemm>(shape);
    add<Fused<Gemm>, Gemm>(shape);
  }
}

int main_of(int argc, char** argv) {
  Choice choice;
  choice.shapes = {"512/768/768", "512/768/3072", "512/3072/768", "128/384/1536", "391/64/172"};
  choice.blocks = {"512/768/3072"};
  choice.ranks = {"8", "16"};
  choice.dtypes = {"f32"};
  choice.read(argc, argv);
  for (const std::string& dtype : choice.dtypes)
    if (dtype != "f32") fail<ConfigError>("--dtypes", "f32, which is all that the CPU has", dtype);
  if (choice.device != 0) fail<ConfigError>("--device", "no such option on the CPU", std::to_string(choice.device));
  for (int i = 1; i < argc; ++i)
    if (std::strcmp(argv[i], "--help") == 0) std::cout << Choice::help() << '\n';
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
#if defined(FEDLORA_HAVE_ONEDNN)
  add_all<OneDnnGemm>(choice);
#endif
  add_all<EigenGemm>(choice);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace fedlora::benchmarks

int main(int argc, char** argv) try {
  return fedlora::benchmarks::main_of(argc, argv);
} catch (const std::exception& error) {
  std::cerr << "fedlora-bench-lora: " << error.what() << '\n';
  return 1;
}
