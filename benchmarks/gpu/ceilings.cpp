// SPDX-License-Identifier: Apache-2.0
// fedlora-bench-ceilings-cuda: what a GPU can do, and what the designs of the low-rank kernels hang on: rates of copies
// and products, products whose inner length is no power of two, thin products and our kernels beside them with and
// without their operands in the L2 cache, and what graphs, handles and attributes cost.
//
//   fedlora-bench-ceilings-cuda [--only NAME,...] [--list] [--out FILE] [--limit SECONDS]
//
// A line for each number as soon as it is known: what TAB value TAB unit TAB spread, the spread (80th - 20th
// percentile) over the median, in percent. A part that fails is a line `NAME TAB failed TAB why`, and the others go on;
// an error that the device does not recover from ends the program. Device times are those of graphs between two events,
// medians after a warm-up; operands are random. --out writes the same as JSON. Exit status: 0, 1 if something failed, 2
// for a wrong option, 77 without a GPU. It takes at most --limit seconds (38), of which a part gets 10.
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ceilings/bench.hpp"
#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/low_rank_backward.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"
#include "lora/timing.cuh"

namespace fedlora::benchmarks {
namespace {

using cuda::detail::check;

constexpr Index widths[] = {768, 1024, 2048, 4096};
constexpr Index rank = 16;

template <class T>
void multiply(cuda::Blas& blas, bool transpose_a, bool transpose_b, MatrixView<const T> a, MatrixView<const T> b,
              MatrixView<T> c, float beta = 0.0f) {
  blas.multiply<T, T>(transpose_a, transpose_b, c.rows, c.cols, transpose_a ? a.rows : a.cols, 1.0f, a.data, a.stride,
                      b.data, b.stride, beta, c.data, c.stride);
}

/// Whether what has never run may run in a capture first. It must be the first part.
void lazy(Bench& bench) {
  const char* const mode = std::getenv("CUDA_MODULE_LOADING");
  bench.report.say("module loading", mode == nullptr ? "default" : mode);
  cuda::Arena arena(bench.memory, bench.stream());
  const auto captured = [&](const std::string& what, MatrixView<Half> first, MatrixView<Half> again,
                            const std::function<void(MatrixView<Half>)>& work) {
    try {
      Recording recording(bench.stream(), [&] { work(first); });
      recording.launch();
      static_cast<void>(recording.seconds());
      work(again);
      std::vector<Half> a(static_cast<std::size_t>(first.size())), b(a.size());
      cuda::download<Half>(first.data, a, bench.stream());
      cuda::download<Half>(again.data, b, bench.stream());
      const bool same = std::memcmp(a.data(), b.data(), a.size() * sizeof(Half)) == 0;
      bench.report.say(what, same ? "ok" : "failed",
                       same ? "the same bits as without a capture" : "other bits than without a capture");
    } catch (const Error& error) {
      static_cast<void>(cudaGetLastError());
      bench.report.say(what, "failed", error.what());
    }
  };
  const MatrixView<Half> x = bench.random<Half>(arena, 512, 704), w = bench.random<Half>(arena, 640, 704);
  const MatrixView<Half> y = bench.random<Half>(arena, 512, 640), z = bench.random<Half>(arena, 512, 640);
  cuda::Blas fresh(bench.memory, bench.stream());
  cuda::synchronize(bench.stream());
  captured("a product's first run in a capture", y, z,
           [&](MatrixView<Half> to) { multiply<Half>(fresh, false, true, x, w, to); });
  const Half* const bias = x.data;
  captured("a product with a bias, first run in a capture", y, z,
           [&](MatrixView<Half> to) { fresh.multiply_bias<Half>(x, w, bias, to); });
  LowRankTerm<Half, float> term;
  term.end = x.rows;
  term.a = MatrixView<const Half>(w.rows_between(0, rank));
  term.b = MatrixView<const Half>(w.left(rank));
  const std::span<std::byte> work = arena.bytes(cuda::low_rank_shrink_workspace<Half>(x.rows, x.cols, rank));
  const MatrixView<Half> s(y.data, x.rows, rank), t(z.data, x.rows, rank);
  captured("a kernel's first run in a capture", s, t,
           [&](MatrixView<Half> to) { cuda::low_rank_shrink<Half>(x, term, to, work, bench.stream()); });
}

/// What a worker's handles cost, and a kernel's attribute.
void setup(Bench& bench) {
  std::vector<double> made, ended;
  for (int i = 0; i < 8; ++i) {
    bench.in_time();
    auto begin = Clock::now();
    auto stream = std::make_unique<cuda::OwnedStream>();
    auto blas = std::make_unique<cuda::Blas>(bench.memory, stream->get());
    const double seconds = seconds_since(begin);
    if (i == 0)
      bench.report.add("stream, handles and workspace, the first time", {1e3 * seconds}, "ms");
    else
      made.push_back(1e3 * seconds);
    begin = Clock::now();
    blas.reset();
    stream.reset();
    ended.push_back(1e3 * seconds_since(begin));
  }
  bench.report.add("stream, handles and workspace, again", made, "ms");
  bench.report.add("their end", ended, "ms");
  std::vector<double> creations;
  for (int i = 0; i < 8; ++i) {
    cuda::Handle<cublasHandle_t, cublasDestroy> handle;
    const auto begin = Clock::now();
    cuda::detail::check_blas(cublasCreate(handle.out()), "cublasCreate");
    creations.push_back(1e3 * seconds_since(begin));
  }
  bench.report.add("cublasCreate", creations, "ms");

  // Kernels are compiled elsewhere; a node of a graph knows its own.
  cuda::Arena arena(bench.memory, bench.stream());
  const MatrixView<float> one = bench.random<float>(arena, 1, 4);
  cuda::fill_zero<float>(one, bench.stream());
  cuda::synchronize(bench.stream());
  cuda::Handle<cudaGraph_t, cudaGraphDestroy> graph;
  check(cudaStreamBeginCapture(bench.stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  cuda::fill_zero<float>(one, bench.stream());
  check(cudaStreamEndCapture(bench.stream(), graph.out()), "cudaStreamEndCapture");
  cudaGraphNode_t node{};
  std::size_t count = 1;
  check(cudaGraphGetNodes(graph.get(), &node, &count), "cudaGraphGetNodes");
  cudaKernelNodeParams parameters{};
  check(cudaGraphKernelNodeGetParams(node, &parameters), "cudaGraphKernelNodeGetParams");
  std::vector<double> attributes;
  for (int i = 0; i < 200; ++i) {
    const auto begin = Clock::now();
    check(cudaFuncSetAttribute(parameters.func, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               cuda::shared_bytes_everywhere),
          "cudaFuncSetAttribute");
    attributes.push_back(1e6 * seconds_since(begin));
  }
  bench.report.add("cudaFuncSetAttribute", attributes, "us");
}

/// As many launches as a step of BERT-base has, each of next to nothing.
void graph(Bench& bench) {
  constexpr int nodes = 465;
  cuda::Arena arena(bench.memory, bench.stream());
  const MatrixView<float> one = bench.random<float>(arena, 1, 1);
  const auto work = [&] {
    for (int i = 0; i < nodes; ++i) cuda::fill_zero<float>(one, bench.stream());
  };
  bench.micro("a launch in a graph of 465", bench.times(nodes, work, 40));

  // The same, launched one by one: the host's time, and the device's where the host keeps up.
  std::vector<double> launches;
  for (int i = 0; i < 12; ++i) {
    const auto begin = Clock::now();
    work();
    const double seconds = seconds_since(begin);
    cuda::synchronize(bench.stream());
    if (i >= 2) launches.push_back(1e6 * seconds / nodes);
  }
  bench.report.add("host: a launch without a graph", launches, "us");

  using Graph = cuda::Handle<cudaGraph_t, cudaGraphDestroy>;
  cuda::Handle<cudaGraphExec_t, cudaGraphExecDestroy> executable;
  std::vector<double> captures, updates, updates_in_flight, starts, whole;
  for (int i = 0; i < 24; ++i) {
    bench.in_time();
    Graph made;
    auto begin = Clock::now();
    check(cudaStreamBeginCapture(bench.stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    work();
    check(cudaStreamEndCapture(bench.stream(), made.out()), "cudaStreamEndCapture");
    const double captured = 1e6 * seconds_since(begin);
    if (i == 0) {
      begin = Clock::now();
      check(cudaGraphInstantiate(executable.out(), made.get(), 0), "cudaGraphInstantiate");
      bench.report.add("host: cudaGraphInstantiate, 465 nodes", {1e6 * seconds_since(begin)}, "us");
    }
    const bool in_flight = i % 2 == 1;  // an odd turn updates what it has just launched
    if (!in_flight) cuda::synchronize(bench.stream());
    if (in_flight) check(cudaGraphLaunch(executable.get(), bench.stream()), "cudaGraphLaunch");
    cudaGraphExecUpdateResultInfo result{};
    begin = Clock::now();
    check(cudaGraphExecUpdate(executable.get(), made.get(), &result), "cudaGraphExecUpdate");
    const double updated = 1e6 * seconds_since(begin);
    begin = Clock::now();
    check(cudaGraphLaunch(executable.get(), bench.stream()), "cudaGraphLaunch");
    const double started = 1e6 * seconds_since(begin);
    cuda::synchronize(bench.stream());
    if (i < 4) continue;
    captures.push_back(captured);
    (in_flight ? updates_in_flight : updates).push_back(updated);
    if (!in_flight) starts.push_back(started);
    if (!in_flight) whole.push_back(captured + updated + started);
  }
  bench.report.add("host: capture of 465 launches", captures, "us");
  bench.report.add("host: cudaGraphExecUpdate, 465 nodes", updates, "us");
  bench.report.add("host: cudaGraphExecUpdate while it runs", updates_in_flight, "us");
  bench.report.add("host: cudaGraphLaunch, 465 nodes", starts, "us");
  bench.report.add("host: capture, update and launch", whole, "us");
}

/// Bytes read and written.
void copy(Bench& bench) {
  cuda::Arena arena(bench.memory, bench.stream());
  constexpr Index rows = 65536, cols = 8192;  // 1 GiB
  constexpr double bytes = 2.0 * 2.0 * rows * cols;
  const MatrixView<Bf16> from = bench.random<Bf16>(arena, rows, cols), to = arena.matrix<Bf16>(rows, cols);
  bench.rate("copy by cudaMemcpyAsync, 1 GiB", bytes, "TB/s", 1e-12, bench.times(2, [&] {
    for (int i = 0; i < 2; ++i)
      cuda::detail::copy(cuda::detail::Copy::on_device, to.data, from.data,
                         static_cast<std::size_t>(from.size()) * sizeof(Bf16), bench.stream());
  }));
  bench.rate("copy by our kernel, 1 GiB", bytes, "TB/s", 1e-12, bench.times(2, [&] {
    for (int i = 0; i < 2; ++i) cuda::copy<Bf16>(from, to, bench.stream());
  }));
  bench.rate("sum in place (add), 1 GiB", 1.5 * bytes, "TB/s", 1e-12, bench.times(2, [&] {
    for (int i = 0; i < 2; ++i) cuda::add<Bf16>(from, to, bench.stream());
  }));
}

void product(Bench& bench) {
  cuda::Arena arena(bench.memory, bench.stream());
  for (const Index n : {8192, 4096}) {
    const MatrixView<Bf16> a = bench.random<Bf16>(arena, n, n), b = bench.random<Bf16>(arena, n, n);
    const MatrixView<Bf16> c = arena.matrix<Bf16>(n, n);
    const double size = static_cast<double>(n);
    bench.rate("bf16 product of " + std::to_string(n) + " cubed", 2 * size * size * size, "TFLOP/s", 1e-12,
               bench.times(4, [&] {
                 for (int i = 0; i < 4; ++i) multiply<Bf16>(bench.blas(), false, true, a, b, c);
               }));
  }
}

/// Products that are longer by what a low-rank term needs: does a length that is no multiple of 64 cost more than its
/// operations?
void lengths(Bench& bench) {
  for (const Index rows : {Index{8192}, Index{512}})
    for (const Index width : widths) {
      cuda::Arena arena(bench.memory, bench.stream());
      constexpr Index most = 128 + 64;
      const MatrixView<Bf16> x = bench.random<Bf16>(arena, rows, width + most),
                             w = bench.random<Bf16>(arena, width, width + most);
      const MatrixView<Bf16> y = arena.matrix<Bf16>(rows, width);
      const std::string size =
          "product M " + std::to_string(rows) + ", N " + std::to_string(width) + ", K " + std::to_string(width);
      const Index passes = std::clamp<Index>((Index{1} << 36) / (rows * width * width), 2, 50);
      for (const bool matched : {true, false}) {
        double bare = 0, worst = 0;
        for (const Index more : {0, 16, 32, 48, 64, 128}) {
          const Index k = width + more, stride = matched ? k : k + 64;
          const MatrixView<const Bf16> left(x.data, rows, k, stride), right(w.data, width, k, stride);
          const std::vector<double> seconds = bench.times(
              passes,
              [&] {
                for (Index i = 0; i < passes; ++i) multiply<Bf16>(bench.blas(), false, true, left, right, y);
              },
              9);
          bench.micro(size + " + " + std::to_string(more) + ", rows " + (matched ? "K" : "K + 64") + " apart", seconds);
          const double median = quantile_of(seconds, 0.5);
          if (more == 0) bare = median;
          worst = std::max(worst, median / bare * static_cast<double>(width) / static_cast<double>(k));
        }
        bench.report.add(size + ", rows " + (matched ? "K" : "K + 64") + " apart: worst time over operations", {worst},
                         "ratio");
      }
    }
}

/// Layers that take turns, with everything a low-rank term reads and writes.
struct Layers {
  struct Layer {
    MatrixView<Bf16> x, y, s[3], ds;
    std::vector<LowRankTerm<Bf16, float>> terms;
  };
  std::vector<Layer> all;

  Layers(Bench& bench, cuda::Arena& arena, Index count, Index rows, Index width) {
    for (Index i = 0; i < count; ++i) {
      Layer& layer = all.emplace_back();
      layer.x = bench.random<Bf16>(arena, rows, width, width + 48);
      layer.y = bench.random<Bf16>(arena, rows, width, width + 48);
      for (int t = 0; t < 3; ++t) {
        layer.s[t] = {layer.x.data + width + rank * t, rows, rank, layer.x.stride};  // where a product reads it
        LowRankTerm<Bf16, float> term;
        term.end = rows;
        term.a = bench.random<Bf16>(arena, rank, width);
        term.b = bench.random<Bf16>(arena, width, rank);
        term.scale = 1e-3f;  // what is added to again and again stays finite
        term.grad_a = bench.random<float>(arena, rank, width);
        term.grad_b = bench.random<float>(arena, width, rank);
        layer.terms.push_back(term);
      }
      layer.ds = {layer.y.data + width, rows, rank, layer.y.stride};
    }
  }
};

/// For each width: our kernel, or cuBLAS, over layers that the cache holds or not.
void over_layers(Bench& bench, const std::string& what, const std::function<double(Index, Index)>& bytes_of,
                 const std::function<void(Layers::Layer&)>& work) {
  constexpr Index rows = 8192;
  for (const Index width : widths)
    for (const bool cold : {true, false}) {
      cuda::Arena arena(bench.memory, bench.stream());
      const Index count = bench.copies(2.0 * rows * static_cast<double>(width), cold);
      Layers layers(bench, arena, count, rows, width);
      const Index sweeps = cuda::divide_up<Index>(12, count);
      const std::vector<double> seconds = bench.times(
          count * sweeps,
          [&] {
            for (Index sweep = 0; sweep < sweeps; ++sweep)
              for (Layers::Layer& layer : layers.all) work(layer);
          },
          11);
      bench.rate(what + ", M 8192, width " + std::to_string(width) + (cold ? ", cold" : ", hot"), bytes_of(rows, width),
                 "GB/s", 1e-9, seconds);
    }
}

double bytes_of_x(Index rows, Index width) { return 2.0 * static_cast<double>(rows * width); }

/// S = X Aᵀ by cuBLAS: bytes of X alone.
void thin(Bench& bench) {
  for (const Index columns : {16, 48}) {
    cuda::Arena arena(bench.memory, bench.stream());
    const MatrixView<Bf16> a = bench.random<Bf16>(arena, columns, 4096 + 48), s = arena.matrix<Bf16>(8192, columns);
    over_layers(bench, "cuBLAS, S of " + std::to_string(columns) + " columns", bytes_of_x, [&](Layers::Layer& layer) {
      const MatrixView<const Bf16> factor(a.data, columns, layer.x.cols, layer.x.cols);
      multiply<Bf16>(bench.blas(), false, true, layer.x, factor, s);
    });
  }
}

/// The same by our kernel, for one term and for three.
void shrink(Bench& bench) {
  for (const std::size_t count : {std::size_t{1}, std::size_t{3}}) {
    cuda::Arena arena(bench.memory, bench.stream());
    const std::vector<cuda::TermShape> shapes(count, {0, rank});
    std::size_t most = 0;
    for (const Index width : widths)
      most = std::max(most, cuda::low_rank_shrink_group_workspace<Bf16>(8192, width, shapes));
    const std::span<std::byte> work = arena.bytes(most);
    over_layers(bench, "shrink of " + std::to_string(count) + (count == 1 ? " term" : " terms"), bytes_of_x,
                [&](Layers::Layer& layer) {
                  cuda::ShrinkTerm<Bf16> terms[3];
                  for (std::size_t t = 0; t < count; ++t) terms[t] = {layer.terms[t], layer.s[t]};
                  cuda::low_rank_shrink_group<Bf16>(layer.x, {terms, count}, work, bench.stream());
                });
  }
}

/// dS, dA and dB of one term by our kernels: bytes of X and of dY.
void adapter(Bench& bench) {
  cuda::Arena arena(bench.memory, bench.stream());
  std::size_t most = 0;
  for (const Index width : widths) {
    const cuda::TermShape shape{width, rank};
    most = std::max(most, cuda::low_rank_backward_group_workspace<Bf16>(8192, width, {&shape, 1}));
  }
  const std::span<std::byte> work = arena.bytes(most);
  over_layers(
      bench, "adapter backward", [](Index rows, Index width) { return 2 * bytes_of_x(rows, width); },
      [&](Layers::Layer& layer) {
        const cuda::BackwardTerm<Bf16> term{layer.terms[0], layer.y, layer.s[0], layer.ds};
        cuda::low_rank_backward_group<Bf16>(layer.x, {&term, 1}, {}, work, bench.stream());
      });
}

/// Y += S Bᵀ, read and written once more: by our kernel and by cuBLAS.
void expand(Bench& bench) {
  const auto bytes = [](Index rows, Index width) { return 2 * bytes_of_x(rows, width); };
  over_layers(bench, "expand", bytes, [&](Layers::Layer& layer) {
    cuda::low_rank_expand<Bf16>(layer.s[0], layer.terms[0], layer.y, bench.stream());
  });
  over_layers(bench, "cuBLAS, Y += S Bt", bytes, [&](Layers::Layer& layer) {
    bench.blas().multiply<Bf16, Bf16>(false, true, layer.y.rows, layer.y.cols, rank, layer.terms[0].scale,
                                      layer.s[0].data, layer.s[0].stride, layer.terms[0].b.data,
                                      layer.terms[0].b.stride, 1.0f, layer.y.data, layer.y.stride);
  });
}

/// Eight clients' rows one after another, and as one batch.
void clients(Bench& bench) {
  cuda::Arena arena(bench.memory, bench.stream());
  constexpr Index width = 768, each = 512;
  const MatrixView<Bf16> x = bench.random<Bf16>(arena, 8 * each, width), w = bench.random<Bf16>(arena, width, width);
  const MatrixView<Bf16> y = arena.matrix<Bf16>(8 * each, width);
  const std::vector<double> apart = bench.times(4, [&] {
    for (Index i = 0; i < 4 * 8; ++i) {
      const Index begin = i % 8 * each;
      multiply<Bf16>(bench.blas(), false, true, x.rows_between(begin, begin + each), w,
                     y.rows_between(begin, begin + each));
    }
  });
  const std::vector<double> together = bench.times(8, [&] {
    for (int i = 0; i < 8; ++i) multiply<Bf16>(bench.blas(), false, true, x, w, y);
  });
  bench.micro("8 products of M 512, 768 by 768", apart);
  bench.micro("1 product of M 4096, 768 by 768", together);
  bench.report.add("8 products of M 512 over 1 of M 4096", {quantile_of(apart, 0.5) / quantile_of(together, 0.5)},
                   "ratio");
}

struct Part {
  const char* name;
  void (*run)(Bench&);
};

constexpr Part parts[] = {{"lazy", lazy},       {"setup", setup},     {"graph", graph},    {"copy", copy},
                          {"product", product}, {"clients", clients}, {"shrink", shrink},  {"adapter", adapter},
                          {"expand", expand},   {"thin", thin},       {"lengths", lengths}};

int main_of(int argc, char** argv) {
  std::string out, only;
  double limit = 38;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--list") {
      for (const Part& part : parts) std::puts(part.name);
      return 0;
    }
    if (i + 1 >= argc || (option != "--out" && option != "--only" && option != "--limit")) {
      std::fprintf(stderr,
                   "usage: fedlora-bench-ceilings-cuda [--only NAME,...] [--list] [--out FILE] [--limit SECONDS]\n");
      return option == "--help" ? 0 : 2;
    }
    const std::string value = argv[++i];
    if (option == "--out")
      out = value;
    else if (option == "--only")
      only = value;
    else
      limit = std::stod(value);
  }
  std::vector<const Part*> chosen;
  for (std::size_t begin = 0; begin < only.size();) {
    const std::size_t end = std::min(only.find(',', begin), only.size());
    const std::string name = only.substr(begin, end - begin);
    begin = end + 1;
    const Part* const found =
        std::find_if(std::begin(parts), std::end(parts), [&](const Part& part) { return name == part.name; });
    if (found == std::end(parts)) {
      std::fprintf(stderr, "fedlora-bench-ceilings-cuda: no part %s; --list names them\n", name.c_str());
      return 2;
    }
    chosen.push_back(found);
  }
  if (only.empty())
    for (const Part& part : parts) chosen.push_back(&part);

  ::setenv("CUDA_MODULE_LOADING", "LAZY", 0);  // before the first call; what the environment says goes first
  try {
    cuda::detail::require_device(0);
  } catch (const CudaError& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  const auto begin = Clock::now();
  Report report;
  const DeviceFacts facts = device_facts(0);
  report.say("device", facts.name);
  bool failed = false, lost = false;
  {
    auto bench = std::make_unique<Bench>(facts, report);
    for (const Part* const part : chosen) {
      const double left = limit - seconds_since(begin);
      bench->deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(std::min(10.0, left)));
      try {
        bench->in_time();
        part->run(*bench);
        cuda::synchronize(bench->stream());
      } catch (const std::exception& error) {
        failed = true;
        report.say(part->name, "failed", error.what());
      }
      static_cast<void>(cudaGetLastError());
      const cudaError_t status = cudaDeviceSynchronize();
      lost = status != cudaSuccess;
      if (lost) {
        report.say(part->name, "failed", std::string("the device is lost: ") + cudaGetErrorString(status));
        break;
      }
      bench->memory.trim();
    }
    if (lost) static_cast<void>(bench.release());  // nothing of it can be given back any more
  }
  report.add("all of this", {seconds_since(begin)}, "s");
  if (!out.empty() && !report.write(out, facts)) {
    std::fprintf(stderr, "fedlora-bench-ceilings-cuda: cannot write %s\n", out.c_str());
    failed = true;
  }
  std::fflush(nullptr);
  if (lost) std::_Exit(1);
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace fedlora::benchmarks

int main(int argc, char** argv) {
  try {
    return fedlora::benchmarks::main_of(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fedlora-bench-ceilings-cuda: %s\n", error.what());
    return 1;
  }
}
