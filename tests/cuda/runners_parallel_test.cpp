// SPDX-License-Identifier: Apache-2.0
// Runners made and ended by several threads of one backend: nothing is handed to two of them.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <string>
#include <vector>

#include "fedlora/backend/cuda.cuh"
#include "fedlora/core/parallel.hpp"

namespace fedlora::tests {

TEST_CASE("runners that come and go on several threads, beside trim and shortages, never share what they are made of") {
  constexpr int threads = 4;
  constexpr std::size_t bytes = 300'000;
  const CudaBackend<float> backend(CudaOptions{.memory_limit = std::size_t{4} << 20});
  std::atomic<int> shared{0};
  parallel_for(80, threads, [&](int worker, std::size_t item) {
    cuda::Runner<float> run(backend);
    cuda::Trainee<float> trainee(run);
    run.reset();
    const auto own = run.bytes(bytes);
    std::fill(own.begin(), own.end(), static_cast<std::byte>(worker));
    const std::vector<float> values(64, static_cast<float>(worker));
    std::vector<float> back(64);
    Index steps_done = 0;
    trainee.begin(values, {}, 0, 1, 0.0, 0.0);
    trainee.finish(back, {}, steps_done);
    if (item % 9 == 4) backend.trim();
    if (back != values || !std::ranges::all_of(own, [&](std::byte b) { return b == static_cast<std::byte>(worker); }))
      ++shared;
    if (item % 7 == 3) run.context().capture_failed("on purpose");
  });
  CHECK(shared == 0);
  CHECK(backend.counts().captures_failed == 11);
  CHECK(backend.counts().runners_made >= 1);
  backend.trim();
  CHECK(backend.memory_usage().in_use == 0);
}

TEST_CASE("several threads whose captures fail have one of them say so") {
  std::atomic<int> said{0};
  const CudaBackend<float> backend(CudaOptions{.on_notice = [&](const std::string&) { ++said; }});
  parallel_for(8, 4, [&](int, std::size_t) { backend.context()->capture_failed("on purpose"); });
  CHECK(said == 1);
  CHECK(backend.counts().captures_failed == 8);
}

}  // namespace fedlora::tests
