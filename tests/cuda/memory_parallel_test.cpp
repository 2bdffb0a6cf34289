// SPDX-License-Identifier: Apache-2.0
// Device memory that several threads allocate from, each with its own stream, arena and staging.
#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/graph.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/staging.cuh"

namespace fedlora::tests {

using namespace fedlora::cuda;

TEST_CASE("threads share one memory") {
  const DeviceMemory memory;
  std::vector<std::thread> threads;
  std::array<int, 4> good{};
  for (std::uint64_t number = 0; number < 4; ++number)
    threads.emplace_back([&, number] {
      for (std::size_t round = 0; round < 200; ++round) {
        const Stream stream{number};
        const std::size_t bytes = 1 + (round * 977 + number * 131) % 200000;
        const DeviceBuffer a(memory, bytes, "a", stream), b(memory, bytes / 3, "b", stream);
        std::memset(a.data(), static_cast<int>(number), bytes);
        std::memset(b.data(), static_cast<int>(number) + 8, bytes / 3);
        good[number] += a.data()[bytes - 1] == std::byte(number) ? 1 : 0;
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const int count : good) CHECK(count == 200);
  CHECK(memory.usage().in_use == 0);
  memory.check();
}

TEST_CASE("a capture of one thread hinders no other") {
  const DeviceMemory memory;
  std::vector<std::thread> threads;
  std::array<int, 4> good{};
  for (std::uint64_t number = 0; number < 4; ++number)
    threads.emplace_back([&, number] {
      const OwnedStream stream(number);
      Arena arena(memory, stream.get());
      Staging staging(memory, stream.get());
      StepGraph graph;
      for (int step = 0; step < 50; ++step) {
        staging.reset();
        const std::vector<float> values(static_cast<std::size_t>(1 + step), static_cast<float>(number));
        const float* const table = staging.upload(values);
        staging.flush();
        arena.reserve(sizeof(float) * values.size());
        float* const result = arena.take<float>(1 + step);
        graph.run(stream.get(), [&] {
          copy<float>({table, 1, 1 + step}, MatrixView<float>(result, 1, 1 + step), stream.get());
        });
        std::vector<float> back(values.size());
        download(result, back, stream.get());
        good[number] += back == values ? 1 : 0;
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const int count : good) CHECK(count == 50);
}

}  // namespace fedlora::tests
