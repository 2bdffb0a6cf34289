// SPDX-License-Identifier: Apache-2.0
// What a CUDA backend keeps between rounds, run on the host: the second round makes nothing that the first one had, and
// ends with the bits of a fresh backend, whatever became of the round before.
#include <doctest/doctest.h>

#include <atomic>
#include <latch>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../nn/tiny.hpp"
#include "errors.hpp"
#include "fedlora/backend/cuda.cuh"
#include "fedlora/fed/evaluate.hpp"
#include "fedlora/fed/train.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/optim/sgd.hpp"

namespace fedlora::tests {
namespace {

using Cuda = CudaBackend<Bf16>;
using Model = SequenceClassifier<Bert, Cuda>;

Model classifier(const Cuda& backend, std::uint64_t seed = 1) {
  return {tiny_base<Bert, Cuda>(seed, {{"num_hidden_layers", 1}}, {}, backend),
          {},
          {.rank = 2, .alpha = 4, .dropout = 0.25, .target_modules = {"query", "value"}}};
}

/// One round of two clients of three steps each, by `threads` threads that are at work at the same time: parameters,
/// and how one of the clients does.
struct Round {
  std::vector<std::vector<float>> parameters;
  std::vector<double> losses;
  bool operator==(const Round&) const = default;
};

Round run_round(const Model& model, Index round, int threads, double rate = 0.1, TrainHooks<float> hooks = {}) {
  const Dataset data = tiny_data({4, 2, 5, 3, 4, 2});
  const auto clients = make_clients(model, data, {{0, 1, 2}, {3, 4, 5}}, Sgd{.lr = rate, .momentum = 0.5});
  const auto cohort = all_clients(clients, 11, round);
  std::latch both(2);
  std::atomic<int> arrived{0};
  if (threads == 2)
    hooks.cancelled = [&] {
      if (arrived++ < 2) both.arrive_and_wait();
      return false;
    };
  Round result;
  const auto start = model.initial_adapter(5);
  for (const auto& update : train(cohort, start, {.epochs = 1, .batch_size = 1, .threads = threads}, hooks))
    result.parameters.emplace_back(update.adapter.values().begin(), update.adapter.values().end());
  for (const Evaluation& evaluation : evaluate_clients(cohort, start, threads))
    result.losses.push_back(evaluation.loss);
  result.losses.push_back(model.evaluate(start, data, threads).loss);
  return result;
}

/// What the same round comes to on a backend of its own.
Round fresh_round(Index round, std::uint64_t seed = 1) { return run_round(classifier(Cuda(), seed), round, 1); }

/// What the libraries of a GPU were asked to make, and what is held of its memory.
struct Made {
  int streams = cuda::host::made().streams;
  int pinned_blocks = cuda::host::made().pinned_blocks;
  int blas_handles = cuda::host::made().blas_handles;
  bool operator==(const Made&) const = default;
};

/// An adapter of three parameters, trained by steps of one small product each; the third and later are captured.
struct SteppedClient {
  explicit SteppedClient(const Cuda& backend) : run(backend), trainee(run) {}

  /// `extra(step)` is called within each step.
  template <class Extra>
  std::vector<float> train(int steps, Extra&& extra) {
    std::vector<float> values = {1, 2, 3}, velocity;
    const std::vector<std::vector<float>*> moments = {&velocity};
    trainee.begin(values, {moments.begin(), moments.end()}, 0, steps, 0.0, 0.0);
    const std::vector<std::int32_t> labels = {1};
    for (Index step = 0; step < steps; ++step) {
      run.reset();
      const std::int32_t* const label = run.place(labels);
      run.flush();
      trainee.run(step, 1, 1, [&] {
        const MatrixView<Bf16> logits = run.matrix(1, 3);
        run.fill_zero(logits);
        run.dense_forward(first_row(), first_rows(), nullptr, logits);
        extra(step);
        run.cross_entropy(logits, label, 1.0);
        run.dense_backward(logits, first_row(), first_rows(), {trainee.gradient().data(), 3, 1, 1}, nullptr, {});
        trainee.update(Sgd{.lr = 0.1, .momentum = 0.5, .weight_decay = 1.0}.fused(0.1));
      });
    }
    Index steps_done = 0;
    trainee.finish(values, moments, steps_done);
    CHECK(steps_done == steps);
    return values;
  }
  std::vector<float> train(int steps) {
    return train(steps, [](Index) {});
  }

  MatrixView<const Bf16> first_row() const { return {trainee.parameters().data(), 1, 1, 1}; }
  MatrixView<const Bf16> first_rows() const { return {trainee.parameters().data(), 3, 1, 1}; }

  cuda::Runner<Bf16> run;
  cuda::Trainee<Bf16> trainee;
};

std::vector<float> without_graphs(int steps) { return SteppedClient(Cuda(CudaOptions{.graphs = false})).train(steps); }

/// Lets the next captures of the process fail as long as it lives.
struct Faults {
  Faults(cuda::host::CaptureFault fault, int captures, int call = 0) {
    cuda::host::capture_faults().set(fault, captures, call);
  }
  ~Faults() { cuda::host::capture_faults().set(cuda::host::CaptureFault::none, 0); }
};

using cuda::host::CaptureFault;

}  // namespace

TEST_CASE("a second round makes no runner, stream, handle, pinned memory or graph, and has a fresh backend's bits") {
  const Round first = fresh_round(1), second = fresh_round(2);
  CHECK(first != second);
  for (const int threads : {1, 2}) {
    const Cuda backend;
    const Model model = classifier(backend);
    CHECK(run_round(model, 1, threads) == first);
    const cuda::Counts counts = backend.counts();
    const Made made;
    const auto usage = backend.memory_usage();
    CHECK(counts.runners_made == threads);
    CHECK(counts.trainees_made == threads);
    CHECK(counts.graphs_made >= threads);
    CHECK(run_round(model, 2, threads) == second);
    CHECK(backend.counts().runners_made == counts.runners_made);
    CHECK(backend.counts().trainees_made == counts.trainees_made);
    CHECK(backend.counts().graphs_made == counts.graphs_made);
    CHECK(backend.counts().graphs_launched > counts.graphs_launched);
    CHECK(Made() == made);
    CHECK(backend.memory_usage().held == usage.held);
  }
}

TEST_CASE("another model on the same backend finds runners, and nothing of the model before in them") {
  const Cuda backend;
  const Model one = classifier(backend, 1), other = classifier(backend, 2);
  CHECK(run_round(one, 1, 1) == fresh_round(1, 1));
  CHECK(run_round(other, 1, 1) == fresh_round(1, 2));
  CHECK(backend.counts().runners_made == 1);
  {
    cuda::Runner<Bf16> run(backend);
    run.set_rotary(2, {1, 2}, {3, 4});
    CHECK(run.rotary_positions() == 2);
  }
  CHECK(cuda::Runner<Bf16>(backend).rotary_positions() == 0);
  CHECK(backend.counts().runners_made == 1);
}

TEST_CASE("the round after one that failed has the right bits, from the same runners") {
  const Round expected = fresh_round(2);
  const Cuda backend;
  const Model model = classifier(backend);
  CHECK_THROWS_AS(run_round(model, 1, 1, 1e30), DivergenceError);
  CHECK(run_round(model, 2, 1) == expected);
  TrainHooks<float> hooks;
  hooks.on_step = [](const TrainProgress&) { throw std::runtime_error("by the caller"); };
  CHECK_THROWS_AS(run_round(model, 1, 1, 0.1, hooks), Error);
  CHECK(run_round(model, 2, 1) == expected);
  CHECK(backend.counts().runners_made == 1);
  CHECK(backend.counts().trainees_made == 1);
}

TEST_CASE("what a step throws in a capture comes through, is no failure of the capture, and harms nobody") {
  const auto expected = without_graphs(3);
  const Cuda backend;
  const auto fail_with = [&](const auto& error) {
    SteppedClient client(backend);
    client.train(3, [&](Index step) {
      if (step == 2) throw error;
    });
  };
  CHECK_THROWS_AS(fail_with(ShapeError("in a step")), ShapeError);
  CHECK(SteppedClient(backend).train(3) == expected);
  CHECK_THROWS_AS(fail_with(CudaError("in a step")), CudaError);  // also when it runs without a graph
  CHECK_THROWS_AS(fail_with(std::logic_error("in a step")), std::logic_error);
  CHECK(SteppedClient(backend).train(3) == expected);
  CHECK(backend.counts().captures_failed == 0);
  CHECK(backend.counts().captures_refused == 0);
  CHECK(backend.counts().runners_made == 1);
}

TEST_CASE("runners that are at work at the same time are made of different things") {
  const Cuda backend;
  {
    cuda::Runner<Bf16> one(backend), other(backend);
    CHECK(one.bytes(64).data() != other.bytes(64).data());
    cuda::Trainee<Bf16> first(one), second(one);
    CHECK(backend.counts().trainees_made == 2);
  }
  cuda::Runner<Bf16> one(backend), other(backend);
  cuda::Trainee<Bf16> again(one), anew(other);
  CHECK(backend.counts().runners_made == 2);
}

TEST_CASE("a runner whose stream or memory is in doubt is not handed on") {
  const Cuda backend;
  cuda::StepGraph graph;
  {
    cuda::Runner<Bf16> run(backend);
    graph.begin(run.stream());
  }
  graph.abandon();
  std::optional<cuda::Runner<Bf16>> run(std::in_place, backend);
  CHECK(backend.counts().runners_made == 2);
  run->bytes(16).data()[16] = std::byte{1};
  run.reset();
  CHECK_THROWS_AS(cuda::Runner<Bf16>{backend}, cuda::KernelFault);
  cuda::Runner<Bf16> next(backend);
  CHECK(backend.counts().runners_made == 3);
}

TEST_CASE("what idle runners hold goes with trim, when memory runs out, and with the backend") {
  constexpr std::size_t mib = std::size_t{1} << 20;
  std::optional<Cuda> backend(std::in_place, CudaOptions{.memory_limit = 8 * mib});
  const auto use_memory = [&] { cuda::Runner<Bf16>(*backend).bytes(3 * mib); };
  use_memory();
  CHECK(backend->memory_usage().in_use >= 3 * mib);
  backend->trim();
  CHECK(backend->memory_usage().in_use == 0);
  CHECK(backend->memory_usage().held < 3 * mib);
  use_memory();
  CHECK(backend->counts().runners_made == 2);
  const cuda::DeviceMemory memory = backend->context()->memory;
  void* const block = memory.allocate(5 * mib, "a test", cuda::Stream{});
  CHECK(backend->memory_usage().in_use < 6 * mib);
  memory.release(block, cuda::Stream{});
  use_memory();
  CHECK(backend->counts().runners_made == 3);
  const std::weak_ptr<const cuda::Context> context = backend->context();
  backend.reset();
  CHECK(context.expired());
  CHECK(memory.usage().in_use == 0);
  check_error<CudaError>([&] { memory.allocate(9 * mib, "a test", cuda::Stream{}); }, {"out of memory"});
}

TEST_CASE("nothing that is bound to a caller's stream outlives its runner") {
  const cuda::OwnedStream callers;
  const Cuda backend(CudaOptions{.stream = callers.get()});
  const auto expected = without_graphs(3);
  CHECK(SteppedClient(backend).train(3) == expected);
  CHECK(backend.memory_usage().in_use == 0);
  CHECK(SteppedClient(backend).train(3) == expected);
  CHECK(backend.counts().runners_made == 2);
}

TEST_CASE("a capture that fails anywhere is given up, counted and said once, and the step runs without") {
  const auto expected = without_graphs(6);
  const auto check = [&](CaptureFault fault, int call, const char* reason) {
    INFO(reason, ", call ", call);
    std::vector<std::string> said;
    const Cuda backend(CudaOptions{.on_notice = [&](const std::string& text) { said.push_back(text); }});
    SteppedClient client(backend);
    {
      const Faults faults(fault, 2, call);
      CHECK(client.train(6) == expected);
    }
    CHECK(backend.counts().captures_failed == 2);
    CHECK(backend.counts().captures_refused == 0);
    CHECK(backend.counts().graphs_launched == 3);  // the first step is never captured
    CHECK(cuda::detail::capture_of_thread() == nullptr);
    REQUIRE(said.size() == 1);
    CHECK(said[0].find("could not be captured") != std::string::npos);
    CHECK(said[0].find(reason) != std::string::npos);
    CHECK(client.train(6) == expected);
    CHECK(said.size() == 1);
  };
  check(CaptureFault::begin, 0, "cudaStreamBeginCapture");
  for (const int call : {0, 1, 3, 8}) check(CaptureFault::call, call, "a call in a capture");
  check(CaptureFault::call, 1000, "cudaStreamEndCapture");
  check(CaptureFault::end, 0, "cudaStreamEndCapture");
  check(CaptureFault::instantiate, 0, "cudaGraphInstantiate");
  check(CaptureFault::launch, 0, "cudaGraphLaunch");
}

TEST_CASE("after three failures one after another a runner captures no more, until trim") {
  const auto expected = without_graphs(8);
  const Cuda backend;  // without anybody to be told
  const auto failed = [&](int captures) {
    const Faults faults(CaptureFault::end, captures);
    CHECK(SteppedClient(backend).train(8) == expected);
    return backend.counts().captures_failed;
  };
  CHECK(failed(2) == 2);
  CHECK(failed(2) == 4);  // those in between have succeeded
  CHECK(failed(100) == 7);
  CHECK(failed(100) == 7);
  const auto launched = backend.counts().graphs_launched;
  CHECK(failed(0) == 7);
  CHECK(backend.counts().graphs_launched == launched);
  backend.trim();
  CHECK(failed(0) == 7);
  CHECK(backend.counts().graphs_launched > launched);
}

TEST_CASE("a graph that fails when it has run in part ends training: its step cannot be done over") {
  const auto expected = without_graphs(3);
  const Cuda backend;
  {
    const Faults faults(CaptureFault::half_run, 1);
    check_error<CudaError>([&] { SteppedClient(backend).train(3); }, {"cudaGraphLaunch"});
  }
  CHECK(backend.counts().captures_failed == 0);
  CHECK(SteppedClient(backend).train(3) == expected);
}

TEST_CASE("a federation whose captures all fail has the bits of one whose captures succeed") {
  const Round expected = fresh_round(1);
  for (const CaptureFault fault : {CaptureFault::call, CaptureFault::launch}) {
    std::atomic<int> said{0};
    const Cuda backend(CudaOptions{.on_notice = [&](const std::string&) { ++said; }});
    const Model model = classifier(backend);
    const Faults faults(fault, 1000, 40);
    CHECK(run_round(model, 1, 2) == expected);
    CHECK(backend.counts().captures_failed > 0);
    CHECK(said == 1);
  }
}

}  // namespace fedlora::tests
