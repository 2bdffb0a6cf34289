// SPDX-License-Identifier: Apache-2.0
// The protocol of graphs: what may happen in a capture, and that every order of calls but the right one is refused.
#include "fedlora/backend/cuda/graph.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "errors.hpp"
#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/staging.cuh"

namespace fedlora::tests {
namespace {

using namespace fedlora::cuda;

/// to[i] += by.
struct AddNumber {
  static constexpr int threads = 32;
  float* to;
  float by;
  int shared_bytes() const { return 0; }
  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    to[block.x() * threads + block.thread()] += by;
  }
};

}  // namespace

TEST_CASE("what is launched in a capture has run after it") {
  const DeviceMemory memory;
  const Stream stream{1};
  Arena arena(memory, stream);
  const MatrixView<float> a = arena.matrix<float>(1, 64), b = arena.matrix<float>(1, 64);
  StepGraph graph;
  for (int step = 1; step <= 3; ++step) {
    graph.begin(stream);
    CHECK(graph.capturing());
    set_zero(a.data, a.size(), stream);
    launch_own(stream, {step == 3 ? 1 : 2, 1}, AddNumber{a.data, static_cast<float>(step)});
    copy<float>(a, b, stream);
    graph.end_and_launch(stream);
    CHECK(!graph.capturing());
    std::vector<float> back(64);
    download(b.data, back, stream);
    CHECK(back[0] == static_cast<float>(step));
    CHECK(back[63] == (step == 3 ? 0.0f : static_cast<float>(step)));
  }
  CHECK(graph.launches() == 3);
}

TEST_CASE("nothing is allocated, sent up, fetched or waited for in a capture") {
  const DeviceMemory memory;
  const Stream stream{};
  Arena arena(memory, stream);
  Staging staging(memory, stream);
  DeviceBuffer buffer(memory, 64, "a test", stream);
  std::optional<DeviceBuffer> ends(std::in_place, memory, 64, "a test", stream);
  void* const block = memory.allocate(64, "a test", stream);
  std::vector<float> values(16);
  StepGraph graph;
  graph.begin(stream);
  const auto refused = [](const char* where, auto&& action) {
    check_error<CudaError>(action, {"[" + std::string(where) + "]", "expected no capture by this thread"});
  };
  refused("cuda memory", [&] { memory.allocate(1, "a test", stream); });
  refused("cuda memory", [&] { memory.trim(); });
  refused("cuda memory", [&] { memory.discard(block, stream); });
  refused("cuda memory", [&] { buffer.discard(); });
  refused("cuda memory", [&] { arena.take<float>(1); });  // it would have to grow
  refused("cuda::Staging", [&] { staging.upload(values); });
  refused("cuda::Staging", [&] { staging.flush(); });
  refused("cuda::Staging", [&] { staging.reset(); });
  refused("cuda::upload", [&] { upload(values, buffer.as<float>(), stream); });
  refused("cuda::download", [&] { download(buffer.as<float>(), values, stream); });
  refused("cuda::upload", [&] { upload<float>({values.data(), 1, 16}, {buffer.as<float>(), 1, 16}, stream); });
  refused("cuda::download", [&] { download<float>({buffer.as<float>(), 1, 16}, {values.data(), 1, 16}, stream); });
  refused("cuda::synchronize", [&] { synchronize(stream); });
  memory.release(block, stream);  // allowed: it serves this stream alone
  ends.reset();
  graph.end_and_launch(stream);
  CHECK(memory.allocate(64, "another stream", Stream{5}) != block);
  CHECK(memory.allocate(64, "the same stream", stream) != nullptr);
  CHECK(memory.allocate(64, "the same stream", stream) == block);
  buffer.discard();
}

TEST_CASE("an arena that is large enough serves a capture") {
  const DeviceMemory memory;
  const Stream stream{};
  Arena arena(memory, stream);
  arena.reserve(1000);
  StepGraph graph;
  graph.run(stream, [&] {
    const auto scope = arena.scope();
    set_zero(arena.take<float>(200), 200, stream);
  });
  CHECK(graph.launches() == 1);
}

TEST_CASE("calls in another order are refused, and leave things as they were") {
  const Stream stream{};
  StepGraph graph, other;
  check_error<CudaError>([&] { graph.end_and_launch(stream); },
                         {"[cuda::StepGraph::end_and_launch]", "expected a begin before"});
  graph.begin(stream);
  check_error<CudaError>([&] { graph.begin(stream); }, {"[cuda::StepGraph::begin]", "a second begin"});
  check_error<CudaError>([&] { other.begin(Stream{2}); }, {"[cuda::StepGraph::begin]", "another StepGraph"});
  check_error<CudaError>([&] { graph.end_and_launch(Stream{3}); }, {"expected the stream of begin"});
  std::thread([&] {
    other.begin(Stream{2});  // a capture is a thread's own
    check_error<CudaError>([&] { graph.end_and_launch(stream); }, {"expected the thread that began"});
    other.end_and_launch(Stream{2});
  }).join();
  CHECK(graph.capturing());
  graph.end_and_launch(stream);
  CHECK(graph.launches() == 1);
  CHECK(other.launches() == 1);
}

TEST_CASE("a capture that is abandoned, or ends with its graph, hinders nothing") {
  const DeviceMemory memory;
  const Stream stream{};
  StepGraph graph;
  graph.abandon();
  graph.begin(stream);
  graph.abandon();
  CHECK(!graph.capturing());
  CHECK_THROWS_AS(graph.run(stream, [] { throw std::logic_error("in a step"); }), std::logic_error);
  CHECK(!graph.capturing());
  CHECK(graph.launches() == 0);
  {
    StepGraph short_lived;
    short_lived.begin(stream);
  }
  CHECK(memory.allocate(1, "a test", stream) != nullptr);
  graph.run(stream, [] {});
  CHECK(graph.launches() == 1);
}

}  // namespace fedlora::tests
