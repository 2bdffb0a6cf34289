// SPDX-License-Identifier: Apache-2.0
// The thin layer on the host: its primitives compute what the PTX ISA says, and the mistakes it promises to see are
// seen, whatever the order of threads.
#include "fedlora/backend/cuda/device.cuh"

#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "errors.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::tests {
namespace {

using namespace fedlora::cuda;

constexpr std::uint64_t seeds[] = {0, 1, 2, 3, 4, 5};

/// c = a b for a (16, depth), b (depth, 8): fragments filled element by element from the tables of the PTX ISA.
template <class T>
struct PlainProduct {
  static constexpr int threads = 32;
  const float *a, *b;
  float* c;

  int shared_bytes() const { return 0; }

  template <class Block>
  void operator()(Block& block) const {
    const int g = block.lane() / 4;
    const int t = block.lane() % 4;
    FragmentA left;
    FragmentB right;
    if constexpr (sizeof(T) == 2) {
      const auto word = [](float low, float high) { return T(low).bits | (std::uint32_t{T(high).bits} << 16); };
      const auto a_word = [&](int i, int k) { return word(a[i * 16 + k], a[i * 16 + k + 1]); };
      left = {{a_word(g, 2 * t), a_word(g + 8, 2 * t), a_word(g, 2 * t + 8), a_word(g + 8, 2 * t + 8)}};
      const auto b_word = [&](int k) { return word(b[k * 8 + g], b[(k + 1) * 8 + g]); };
      right = {{b_word(2 * t), b_word(2 * t + 8)}};
    } else {
      const auto a_word = [&](int i, int k) { return round_to_tf32(__builtin_bit_cast(std::uint32_t, a[i * 8 + k])); };
      left = {{a_word(g, t), a_word(g + 8, t), a_word(g, t + 4), a_word(g + 8, t + 4)}};
      const auto b_word = [&](int k) { return round_to_tf32(__builtin_bit_cast(std::uint32_t, b[k * 8 + g])); };
      right = {{b_word(t), b_word(t + 4)}};
    }
    Accumulator sums{{1.0f, 1.0f, 1.0f, 1.0f}};
    block.template mma<T>(sums, left, right);
    for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums.sums[i];
  }
};

template <class T>
void check_product() {
  constexpr int depth = mma_depth<T>;
  std::vector<float> a(16 * depth), b(depth * 8), c(16 * 8, NAN);
  RandomSequence draws(derive_key(3, Purpose::user));
  for (float& value : a) value = static_cast<float>(draws.below(33)) / 8.0f - 2.0f;  // exact in every type
  for (float& value : b) value = static_cast<float>(draws.below(33)) / 8.0f - 2.0f;
  launch_own(Stream{1}, {1, 1}, PlainProduct<T>{a.data(), b.data(), c.data()});
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 1.0f;
      for (int k = 0; k < depth; ++k) sum += a[i * depth + k] * b[k * 8 + j];
      CHECK(c[i * 8 + j] == sum);
    }
}

/// What ldmatrix gives each lane of four matrices whose element (i, j) of matrix m is 64 m + 8 i + j.
struct LoadMatrices {
  static constexpr int threads = 32;
  std::uint32_t* words;  // (32, 4)
  bool transposed;

  int shared_bytes() const { return 512 + 16; }

  template <class Block>
  void operator()(Block& block) const {
    const auto tile = block.template shared<Half>(256);
    for (int i = 0; i < 8; ++i) tile[8 * block.lane() + i].bits = static_cast<std::uint16_t>(8 * block.lane() + i);
    block.sync();
    std::uint32_t mine[4];
    if (transposed)
      block.load_matrices_transposed(mine, tile + 8 * block.lane());
    else
      block.load_matrices(mine, tile + 8 * block.lane());
    for (int m = 0; m < 4; ++m) words[4 * block.lane() + m] = mine[m];
  }
};

/// Every thread copies 16 bytes and reads what its neighbour copied.
struct CopyNeighbours {
  static constexpr int threads = 64;
  const float* from;
  float* to;
  int bytes;
  bool wait;
  bool meet;

  int shared_bytes() const { return threads * 16; }

  template <class Block>
  void operator()(Block& block) const {
    const auto tile = block.template shared<float>(4 * threads);
    const int mine = 4 * block.thread();
    block.copy_async(tile + mine, from + mine, bytes);
    block.commit_copies();
    if (wait) block.template wait_copies<0>();
    if (meet) block.sync();
    const int theirs = 4 * ((block.thread() + 37) % threads);
    for (int i = 0; i < 4; ++i) to[mine + i] = tile[theirs + i];
  }
};

std::vector<float> copied(CopyNeighbours kernel, std::uint64_t seed) {
  alignas(16) float from[4 * CopyNeighbours::threads];
  for (int i = 0; i < 4 * CopyNeighbours::threads; ++i) from[i] = static_cast<float>(i);
  std::vector<float> to(4 * CopyNeighbours::threads, -1.0f);
  kernel.from = from;
  kernel.to = to.data();
  launch_own(Stream{seed}, {1, 1}, kernel);
  return to;
}

/// Two groups in flight: `wait_copies<1>` brings the older one only.
struct TwoGroups {
  static constexpr int threads = 32;
  const float* from;
  float* to;

  int shared_bytes() const { return 1024; }

  template <class Block>
  void operator()(Block& block) const {
    const auto tile = block.template shared<float>(256);
    const int at = 4 * block.lane();
    block.copy_async(tile + at, from, 16);
    block.commit_copies();
    block.copy_async(tile + (128 + at), from, 16);
    block.commit_copies();
    block.template wait_copies<1>();
    if (block.lane() != 0) return;
    to[0] = tile[at];
    to[1] = tile[128 + at];
  }
};

/// Runs `body(block)` on 64 threads with 64 floats of shared memory.
template <class Body>
struct Small {
  static constexpr int threads = 64;
  Body body;
  int shared_bytes() const { return 256; }
  template <class Block>
  void operator()(Block& block) const {
    body(block);
  }
};

template <class Body>
void check_fault(Body body, std::initializer_list<std::string_view> parts) {
  for (const std::uint64_t seed : seeds)
    check_error<KernelFault>([&] { launch_own(Stream{seed}, {2, 1}, Small<Body>{body}); }, parts);
}

}  // namespace

TEST_CASE("mma is the product of what its fragments hold") {
  check_product<Bf16>();
  check_product<Half>();
  check_product<float>();
}

TEST_CASE("mma for tf32 does not see the low 13 bits") {
  std::vector<float> a(16 * 8, 0.0f), b(8 * 8, 0.0f), c(16 * 8);
  a[0] = 1.0f + 0x1p-11f + 0x1p-20f;  // rounds up to 1 + 2^-10
  b[0] = 1.0f + 0x1p-12f;             // rounds down to 1
  launch_own(Stream{}, {1, 1}, PlainProduct<float>{a.data(), b.data(), c.data()});
  CHECK(c[0] == 2.0f + 0x1p-10f);
  CHECK(round_to_tf32(0x7f800000u) == 0x7f800000u);
}

TEST_CASE("load_matrices spreads four matrices over the warp") {
  for (const bool transposed : {false, true}) {
    std::vector<std::uint32_t> words(128);
    launch_own(Stream{2}, {1, 1}, LoadMatrices{words.data(), transposed});
    for (std::uint32_t lane = 0; lane < 32; ++lane)
      for (std::uint32_t m = 0; m < 4; ++m) {
        const std::uint32_t i = lane / 4;
        const std::uint32_t j = 2 * (lane % 4);
        const std::uint32_t low = 64 * m + (transposed ? 8 * j + i : 8 * i + j);
        CHECK(words[4 * lane + m] == (low | ((low + (transposed ? 8 : 1)) << 16)));
      }
  }
}

TEST_CASE("shuffles read the lane they name") {
  std::vector<int> got(3 * 64);
  int* const to = got.data();
  const auto body = [to](auto& block) {
    const int mine = 100 * block.warp() + block.lane();
    to[block.thread()] = block.shuffle(mine, 5);
    to[64 + block.thread()] = block.shuffle_xor(mine, 9);
    to[128 + block.thread()] = block.shuffle_down(mine, 3);
  };
  launch_own(Stream{7}, {1, 1}, Small<decltype(body)>{body});
  for (int thread = 0; thread < 64; ++thread) {
    const int warp = thread / 32;
    const int lane = thread % 32;
    CHECK(got[thread] == 100 * warp + 5);
    CHECK(got[64 + thread] == 100 * warp + (lane ^ 9));
    CHECK(got[128 + thread] == 100 * warp + (lane + 3 < 32 ? lane + 3 : lane));
  }
}

TEST_CASE("copies arrive when they are waited for, and are seen by others after a barrier") {
  for (const std::uint64_t seed : seeds)
    for (const int bytes : {0, 4, 12, 16}) {
      const std::vector<float> to = copied({nullptr, nullptr, bytes, true, true}, seed);
      for (int thread = 0; thread < 64; ++thread)
        for (int i = 0; i < 4; ++i)
          CHECK(to[4 * thread + i] == (4 * i < bytes ? static_cast<float>(4 * ((thread + 37) % 64) + i) : 0.0f));
    }
  alignas(16) const float from[4] = {1, 2, 3, 4};
  float to[2];
  launch_own(Stream{}, {1, 1}, TwoGroups{from, to});
  CHECK(to[0] == 1.0f);
  CHECK(std::isnan(to[1]));
}

TEST_CASE("a missing wait and a missing barrier are seen") {
  for (const std::uint64_t seed : seeds) {
    int missing[2] = {0, 0};
    for (const float value : copied({nullptr, nullptr, 16, false, true}, seed)) missing[0] += std::isnan(value);
    for (const float value : copied({nullptr, nullptr, 16, true, false}, seed)) missing[1] += std::isnan(value);
    CHECK(missing[0] == 256);
    CHECK(missing[1] > 0);
  }
}

TEST_CASE("threads at different barriers, or gone, are an error that names them") {
  check_fault(
      [](auto& block) {
        if (block.thread() == 40)
          block.sync();
        else
          block.sync();
      },
      {"block (", "thread 40", "the barrier (device_test.cpp:"});
  check_fault(
      [](auto& block) {
        if (block.thread() != 11) block.sync();
      },
      {"the barrier (device_test.cpp:", "thread 11 at its end"});
  check_fault(
      [](auto& block) {
        if (block.thread() != 33) block.sync_warp();
      },
      {"all of its warp at sync_warp (", "thread 33 at its end"});
  check_fault(
      [](auto& block) {
        if (block.thread() == 3)
          block.shuffle(1, 0);
        else
          block.shuffle(1.0f, 0);
      },
      {"all of its warp at shuffle (", "thread 3"});
}

TEST_CASE("shared memory out of range is an error that names the thread") {
  check_fault(
      [](auto& block) { block.template shared<float>(64)[block.thread() + (block.thread() == 9 ? 60 : 0)] = 1; },
      {"thread 9]", "shared elements 0 to 63", "element 69"});
  check_fault([](auto& block) { block.template shared<float>(64)[block.thread() - 1] = 1; },
              {"thread 0]", "element -1"});
  check_fault([](auto& block) { block.template shared<float>(65); }, {"at most 256 bytes", "260"});
  check_fault(
      [](auto& block) {
        std::uint32_t words[4];
        const auto tile = block.template shared<Half>(128);
        block.load_matrices(words, tile + (block.thread() == 20 ? 3 : 0));
      },
      {"thread 20]", "multiple of 16"});
  check_fault(
      [](auto& block) {
        std::uint32_t words[4];
        const auto tile = block.template shared<Half>(128);
        block.load_matrices(words, tile + (block.thread() == 20 ? 124 : 0));
      },
      {"thread 20]", "element 131"});
}

TEST_CASE("shared memory begins as NaN in every block") {
  int numbers = 0;
  int* const count = &numbers;
  const auto body = [count](auto& block) {
    const auto tile = block.template shared<float>(64);
    *count += std::isnan(tile[block.thread()]) ? 0 : 1;
    tile[block.thread()] = 1.0f;
  };
  launch_own(Stream{1}, {3, 2}, Small<decltype(body)>{body});
  CHECK(numbers == 0);
}

namespace {

struct Launched {
  static constexpr int threads = 32;
  int bytes = 0;
  int shared_bytes() const { return bytes; }
  template <class Block>
  FEDLORA_DEVICE void operator()(Block&) const {}
};

}  // namespace

TEST_CASE("launches that a GPU would refuse are errors") {
  cuda::launch_own(cuda::Stream{}, {1, 65535}, Launched{cuda::shared_bytes_everywhere});
  check_error<cuda::KernelFault>(
      [] {
        cuda::launch_own(cuda::Stream{}, {1, 1}, Launched{cuda::shared_bytes_everywhere + 1});
      },
      {"launch", "101376 bytes of shared memory", "101377"});
  check_error<cuda::KernelFault>([] { cuda::launch_own(cuda::Stream{}, {1, 65536}, Launched{}); }, {"65535", "65536"});
  check_error<cuda::KernelFault>(
      [] {
        cuda::launch_own(cuda::Stream{}, {std::int64_t{1} << 31, 1}, Launched{});
      },
      {"2^31 - 1", "2147483648"});
}

namespace {

/// Asked for its size on the way to a launch, waits until the other thread is as far: what each does between two
/// questions, both have done before either goes on.
struct LaunchedByTwo : Launched {
  std::atomic<int>*mine, *theirs;
  int shared_bytes() const {
    const int question = ++*mine;
    while (*theirs < question) std::this_thread::yield();
    return bytes;
  }
};

struct LaunchedUnderALowerLimit : Launched {};

}  // namespace

TEST_CASE("two threads launch one kernel with different shared memory") {
  std::atomic<int> questions[2] = {0, 0};
  std::atomic<int> refused = 0;
  const auto launches = [&](int me, int bytes) {
    const LaunchedByTwo kernel{{bytes}, &questions[me], &questions[1 - me]};
    for (int i = 0; i < 500; ++i) {
      try {
        cuda::launch_own(cuda::Stream{}, {1, 1}, kernel);
      } catch (const cuda::KernelFault&) {
        ++refused;
      }
    }
    questions[me] = std::numeric_limits<int>::max();  // the other need not wait any more
  };
  std::thread other(launches, 0, 60 * 1024);
  launches(1, 96 * 1024);
  other.join();
  CHECK(refused.load() == 0);
}

TEST_CASE("a launch above its kernel's limit is an error that names both, also where the limit was lowered") {
  const LaunchedUnderALowerLimit kernel{{96 * 1024}};
  cuda::launch_own(cuda::Stream{}, {1, 1}, kernel);
  cuda::detail::shared_limit<LaunchedUnderALowerLimit>() = 60 * 1024;
  check_error<cuda::KernelFault>(
      [&] {
        cuda::launch_own(cuda::Stream{}, {1, 1}, kernel);
      },
      {"launch", "at most 61440 bytes of shared memory", "98304"});
}

TEST_CASE("an empty grid runs nothing") {
  const auto body = [](auto&) { FAIL("ran"); };
  launch_own(Stream{}, {0, 1}, Small<decltype(body)>{body});
  launch_own(Stream{}, {1, 0}, Small<decltype(body)>{body});
}

TEST_CASE("a limit of shared memory is raised once for each device, and only where it must be") {
  struct Kernel {};
  std::vector<int> raised;
  const auto raise = [&](int bytes, int device) {
    cuda::detail::raise_shared_limit<Kernel>(bytes, device, [&](int limit) {
      CHECK(limit == cuda::shared_bytes_everywhere);
      raised.push_back(device);
    });
  };
  raise(cuda::shared_bytes_unasked, 0);
  CHECK(raised.empty());
  for (int again = 0; again < 2; ++again)
    for (const int device : {0, 1, 63}) raise(cuda::shared_bytes_unasked + 1, device);
  CHECK(raised == std::vector<int>{0, 1, 63});
}

}  // namespace fedlora::tests
