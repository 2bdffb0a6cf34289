// SPDX-License-Identifier: Apache-2.0
// Device memory as the host plays it: who gets which block, what the counters say, and every misuse is seen.
#include "fedlora/backend/cuda/memory.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/staging.cuh"
#include "fedlora/core/half.hpp"

namespace fedlora::tests {
namespace {

using namespace fedlora::cuda;

constexpr std::size_t kib = 1024;
constexpr std::size_t guard = fedlora::cuda::detail::Watch::guard;

std::uintptr_t address_of(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

bool on_multiple_of(const void* pointer, std::size_t unit) { return address_of(pointer) % unit == 0; }

bool all_nan(const float* values, Index count) {
  return std::all_of(values, values + count, [](float value) { return std::isnan(value); });
}

}  // namespace

TEST_CASE("blocks are aligned, apart from each other, and begin as NaN") {
  const DeviceMemory memory;
  std::vector<std::pair<std::byte*, std::size_t>> blocks;
  for (const std::size_t bytes : {0, 1, 31, 256, 257, 1000, 4097, 131072, 131073, 1000003}) {
    auto* const block = static_cast<std::byte*>(memory.allocate(bytes, "a test", Stream{}));
    CHECK(on_multiple_of(block, DeviceMemory::alignment));
    for (const auto& [begin, size] : blocks) CHECK((block + bytes <= begin || begin + size <= block));
    CHECK(std::all_of(block, block + bytes, [](std::byte b) { return b == std::byte{0xff}; }));
    blocks.emplace_back(block, bytes);
    std::memset(block, 1, bytes);
  }
  memory.check();
  for (const auto& [block, size] : blocks) memory.release(block, Stream{});
  CHECK(memory.usage().in_use == 0);
}

TEST_CASE("what is released serves the next request of its size") {
  const DeviceMemory memory;
  const Stream stream{3};
  void* const small = memory.allocate(1000, "a test", stream);
  void* const large = memory.allocate(1000 * kib, "a test", stream);
  const std::size_t held = memory.usage().held;
  memory.release(small, stream);
  memory.release(large, stream);
  CHECK(memory.allocate(900, "a test", stream) == small);
  CHECK(memory.allocate(1000, "a test", stream) != small);
  CHECK(memory.allocate(700 * kib, "less than four fifths of it", Stream{4}) != large);
  CHECK(memory.allocate(900 * kib, "another stream, which waits", Stream{4}) == large);
  CHECK(memory.usage().held == held + 768 * kib + guard);
}

TEST_CASE("a block of the same stream is taken before one of another") {
  const DeviceMemory memory;
  void* const one = memory.allocate(5000, "a test", Stream{1});
  void* const two = memory.allocate(5000, "a test", Stream{2});
  memory.release(one, Stream{1});
  memory.release(two, Stream{2});
  CHECK(memory.allocate(5000, "a test", Stream{2}) == two);
  CHECK(memory.allocate(5000, "a test", Stream{2}) == one);
}

TEST_CASE("usage counts what is held, in use, and was in use at most") {
  const DeviceMemory memory;
  CHECK(memory.usage().held == 0);
  void* const a = memory.allocate(200 * kib, "a test", Stream{});
  CHECK(memory.usage().in_use == 256 * kib);
  CHECK(memory.usage().held == 256 * kib + guard);
  void* const b = memory.allocate(1, "a test", Stream{});
  CHECK(memory.usage().in_use == 256 * kib + 256);
  CHECK(memory.usage().held == 256 * kib + guard + 2048 * kib);
  memory.release(a, Stream{});
  memory.release(b, Stream{});
  CHECK(memory.usage().in_use == 0);
  CHECK(memory.usage().peak == 256 * kib + 256);
  memory.trim();
  CHECK(memory.usage().held == 2048 * kib);  // slabs stay
  memory.discard(memory.allocate(200 * kib, "a test", Stream{}), Stream{});
  CHECK(memory.usage().held == 2048 * kib);
}

TEST_CASE("out of memory says what was asked, for what, and what there is") {
  const DeviceMemory memory(1024 * kib);
  void* const held = memory.allocate(512 * kib, "the base", Stream{});
  check_error<CudaError>([&] { memory.allocate(600 * kib, "layer 3's weights", Stream{}); },
                         {"[cuda memory]", "expected 614400 bytes for layer 3's weights",
                          "got out of memory: held 524544, in use 524288, peak 524288", "limit 1048576"});
  CHECK(memory.usage().in_use == 512 * kib);
  memory.release(held, Stream{});
  CHECK(memory.allocate(600 * kib, "what fits when the other block has gone", Stream{}) != nullptr);
  CHECK(memory.usage().held == 640 * kib + guard);
  CHECK(memory.allocate(100, "a small block where no slab fits", Stream{}) != nullptr);
  check_error<CudaError>([&] { memory.allocate(std::numeric_limits<std::size_t>::max(), "too much", Stream{}); },
                         {"18446744073709551615 bytes for too much", "out of memory"});
}

TEST_CASE("an allocator of the caller's gets every request, and every block back at once") {
  std::set<void*> blocks;
  std::vector<std::uint64_t> streams;
  bool empty = false;
  std::size_t beside = 0;
  DeviceAllocator own;
  own.allocate = [&](std::size_t bytes, Stream stream) -> void* {
    if (empty) return nullptr;
    streams.push_back(stream.seed);
    auto* const block = static_cast<std::byte*>(::operator new (bytes + 256, std::align_val_t{256}));
    blocks.insert(block + beside);
    return block + beside;
  };
  own.release = [&](void* block, std::size_t bytes, Stream stream) {
    CHECK(bytes > 0);
    streams.push_back(stream.seed);
    CHECK(blocks.erase(block) == 1);
    ::operator delete (static_cast<std::byte*>(block) - beside, std::align_val_t{256});
  };
  {
    const DeviceMemory memory(own);
    DeviceBuffer buffer(memory, 100, "a test", Stream{1});
    CHECK(blocks.count(buffer.data()) == 1);
    buffer.set_stream(Stream{2});
    buffer = DeviceBuffer();
    CHECK(blocks.empty());
    CHECK(memory.usage().held == 0);
    CHECK(memory.usage().peak == 256);
    CHECK(streams == std::vector<std::uint64_t>{1, 2});
    empty = true;
    check_error<CudaError>([&] { memory.allocate(7, "nothing", Stream{}); }, {"7 bytes for nothing", "out of memory"});
    empty = false;
    beside = 64;
    check_error<CudaError>([&] { memory.allocate(7, "nothing", Stream{}); }, {"multiples of 256", "64 bytes beside"});
    CHECK(blocks.empty());
  }
  own.release = nullptr;
  check_error<CudaError>([&] { DeviceMemory{own}; }, {"an allocator that allocates and releases"});
}

TEST_CASE("writing behind a block is seen when it is released") {
  const DeviceMemory memory;
  auto* const block = static_cast<float*>(memory.allocate(4 * 25, "twenty-five floats", Stream{}));
  block[24] = 1.0f;
  memory.check();
  block[25] = 1.0f;
  check_error<KernelFault>([&] { memory.check(); },
                           {"[cuda memory]", "behind 100 bytes for twenty-five floats", "byte 100 changed"});
  check_error<KernelFault>([&] { memory.release(block, Stream{}); }, {"byte 100 changed"});
  check_error<CudaError>([&] { memory.release(block, Stream{}); }, {"a block in use"});
  memory.check();
  {
    const DeviceBuffer buffer(memory, 4 * 25, "a buffer", Stream{});
    buffer.as<float>()[30] = 1.0f;
  }  // a destructor keeps it for the next call
  check_error<KernelFault>([&] { memory.allocate(1, "a test", Stream{}); }, {"behind 100 bytes for a buffer"});
  CHECK(memory.allocate(1, "a test", Stream{}) != nullptr);
}

TEST_CASE("writing into a released block is seen when it is allocated again") {
  const DeviceMemory memory;
  auto* const block = static_cast<float*>(memory.allocate(100, "the first user", Stream{}));
  memory.release(block, Stream{});
  CHECK(all_nan(block, 25));
  block[3] = 1.0f;
  check_error<KernelFault>([&] { memory.allocate(100, "the second user", Stream{}); },
                           {"left alone after its end as the first user", "byte 12 changed"});
}

TEST_CASE("a buffer moves, and its memory lives as long as it does") {
  DeviceBuffer outlives;
  CHECK(outlives.empty());
  {
    const DeviceMemory memory;
    DeviceBuffer first(memory, 300, "a test", Stream{});
    std::byte* const data = first.data();
    DeviceBuffer second(std::move(first));
    CHECK(first.empty());  // NOLINT: moved from, and empty on purpose
    CHECK(second.data() == data);
    CHECK(second.bytes().size() == 300);
    DeviceBuffer third(memory, 10, "a test", Stream{});
    third = std::move(second);
    CHECK(third.data() == data);
    CHECK(third.size() == 300);
    CHECK(memory.usage().in_use == 512);
    third.discard();
    third.discard();
    CHECK(third.empty());
    CHECK(memory.usage().in_use == 0);
    const DeviceBuffer none(memory, 0, "no bytes", Stream{});
    CHECK(!none.empty());
    outlives = DeviceBuffer(memory, 5, "a test", Stream{});
  }
  std::memset(outlives.data(), 0, 5);
}

TEST_CASE_TEMPLATE("copies go up, across and down", T, float, Bf16, Half) {
  const DeviceMemory memory;
  const Stream stream{};
  std::vector<T> values(35), back(35);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = T(static_cast<float>(i));
  const DeviceBuffer buffer(memory, 35 * sizeof(T), "a test", stream);
  upload(values, buffer.as<T>(), stream);
  download(buffer.as<T>(), back, stream);
  CHECK(std::memcmp(values.data(), back.data(), 35 * sizeof(T)) == 0);
  download(buffer.as<T>() + 34, {back.data(), 1}, stream);
  CHECK(static_cast<float>(back[0]) == 34.0f);

  Arena arena(memory, stream);
  const MatrixView<T> a = arena.matrix<T>(5, 7), b = arena.matrix<T>(5, 7, 9);
  upload<T>({values.data(), 5, 7}, a, stream);
  copy<T>(a, b, stream);
  std::vector<T> rows(5 * 11, T(-1.0f));
  download<T>(b, {rows.data(), 5, 7, 11}, stream);
  for (Index i = 0; i < 5; ++i)
    for (Index j = 0; j < 11; ++j)
      CHECK(static_cast<float>(rows[static_cast<std::size_t>(i * 11 + j)]) ==
            (j < 7 ? static_cast<float>(i * 7 + j) : -1.0f));
  CHECK(std::isnan(static_cast<float>(b.data[7])));
  set_zero(b.data, b.stride, stream);
  CHECK(static_cast<float>(b(0, 6)) == 0.0f);
  CHECK(static_cast<float>(b(1, 6)) == 13.0f);
  upload(std::span<const T>{}, static_cast<T*>(nullptr), stream);
  copy<T>(MatrixView<const T>(a.data, 0, 7), MatrixView<T>(b.data, 0, 7), stream);
  check_error<ShapeError>([&] { copy<T>(a, b.rows_between(0, 4), stream); }, {"cuda::copy", "(5, 7)", "(4, 7)"});
}

TEST_CASE("copies beside what was allocated, or is no longer, are refused") {
  const DeviceMemory memory;
  const Stream stream{};
  std::vector<float> values(30);
  DeviceBuffer buffer(memory, 25 * sizeof(float), "a table", stream);
  check_error<KernelFault>([&] { upload(values, buffer.as<float>(), stream); },
                           {"[copy, to]", "bytes 0 to 120 of 100 for a table"});
  check_error<KernelFault>([&] { download(buffer.as<float>() + 20, values, stream); }, {"[copy, from]", "80 to 200"});
  check_error<KernelFault>([&] { set_zero(buffer.as<float>(), 26, stream); }, {"[set_zero]", "0 to 104"});
  const auto* const gone = buffer.as<float>();
  buffer = DeviceBuffer();
  check_error<KernelFault>([&] { download(gone, {values.data(), 1}, stream); }, {"not in use, last a table"});
  float elsewhere[30];
  upload(values, elsewhere, stream);

  Arena arena(memory, stream, "steps");
  const float* inner = nullptr;
  {
    const auto scope = arena.scope();
    const std::span<std::byte> bytes = arena.bytes(10);
    check_error<KernelFault>([&] { set_zero(bytes.data(), 11, stream); }, {"0 to 11 of 10 for a piece of steps"});
    inner = arena.take<float>(4);
  }
  check_error<KernelFault>([&] { download(inner, {values.data(), 1}, stream); }, {"not in use, last a piece of steps"});
}

TEST_CASE("an arena is a stack that keeps its memory") {
  const DeviceMemory memory;
  Arena arena(memory, Stream{});
  float* const first = arena.take<float>(100);
  CHECK(on_multiple_of(first, 256));
  CHECK(all_nan(first, 100));
  float* inner = nullptr;
  {
    const auto scope = arena.scope();
    inner = arena.take<float>(33);
    CHECK(on_multiple_of(inner, 256));
    std::fill_n(inner, 33, 1.0f);
    arena.take<double>(1000);
  }
  CHECK(arena.take<float>(33) == inner);
  CHECK(all_nan(inner, 33));
  const std::size_t before = arena.capacity();
  arena.reset();
  CHECK(arena.capacity() == before);
  CHECK(arena.take<float>(100) != nullptr);
  arena.take<float>(33);
  arena.take<double>(1000);
  CHECK(arena.capacity() == before);  // all in the one block that the blocks became
  arena.reset();
  std::fill_n(arena.take<float>(0), 0, 1.0f);
  CHECK(memory.usage().in_use >= before);
}

TEST_CASE("an arena can be given its size, and takes no more then") {
  const DeviceMemory memory;
  Arena arena(memory, Stream{});
  arena.reserve(3 * 256 + 1);
  const std::size_t capacity = arena.capacity();
  for (int i = 0; i < 4; ++i) arena.take<float>(1);
  CHECK(arena.capacity() == capacity);
  arena.reserve(100);
  CHECK(arena.capacity() == capacity);
}

TEST_CASE_TEMPLATE("rows of an arena's matrices begin on multiples of 16 bytes", T, float, Bf16, Half) {
  const DeviceMemory memory;
  Arena arena(memory, Stream{});
  for (const Index cols : {0, 1, 7, 8, 9, 64, 67})
    for (const Index extra : {0, 3, 16}) {
      const MatrixView<T> m = arena.matrix<T>(3, cols, extra);
      CHECK(m.rows == 3);
      CHECK(m.cols == cols);
      CHECK(m.stride >= cols + extra);
      CHECK(m.stride < cols + extra + 16 / static_cast<Index>(sizeof(T)));
      CHECK(on_multiple_of(m.row(1), 16));
      for (Index i = 0; i < 3; ++i) std::fill_n(m.row(i), m.stride, T(0.0f));
    }
  arena.reset();
  CHECK(arena.matrix<T>(0, 0).data != nullptr);
}

TEST_CASE("writing behind a piece of an arena is seen at the next call after its end") {
  const DeviceMemory memory;
  {
    Arena arena(memory, Stream{}, "activations");
    {
      const auto scope = arena.scope();
      arena.take<float>(5)[5] = 1.0f;
    }
    check_error<KernelFault>([&] { arena.take<float>(1); },
                             {"behind 20 bytes for a piece of activations", "byte 20 changed"});
    arena.take<float>(64)[64] = 1.0f;
    check_error<KernelFault>([&] { arena.reset(); }, {"behind 256 bytes for a piece of activations"});
    arena.reset();
    arena.take<float>(3)[3] = 1.0f;
  }
  check_error<KernelFault>([&] { memory.check(); }, {"behind 12 bytes for a piece of activations"});
}

TEST_CASE("memory that went back to the device is anybody's") {
  std::vector<std::byte> own(4096);
  for (const bool whole_blocks : {true, false}) {  // those of a caller's allocator go back at once, slabs with the pool
    const DeviceAllocator lent = {[&](std::size_t, Stream) { return own.data() + (-address_of(own.data()) & 255); },
                                  [](void*, std::size_t, Stream) {}};
    void* piece = nullptr;
    {
      const DeviceMemory memory = whole_blocks ? DeviceMemory(lent) : DeviceMemory();
      Arena arena(memory, Stream{});
      piece = arena.take<float>(8);
    }
    CHECK_NOTHROW(fedlora::cuda::detail::check_range("a test", piece, 32));
  }
}

TEST_CASE("tables are where upload said once they are flushed, and keep their places") {
  const DeviceMemory memory;
  Staging staging(memory, Stream{}, 256);
  std::vector<const void*> places[3];
  for (int batch = 0; batch < 3; ++batch) {
    staging.reset();
    const std::vector<std::int32_t> ids = {batch, 2, 3};
    const std::vector<float> weights(33, static_cast<float>(batch));
    const std::vector<std::int64_t> none;
    const std::int32_t* const ids_there = staging.upload(ids);
    const float* const weights_there = staging.upload(weights);
    CHECK(ids_there[0] == -1);  // nothing has been copied
    staging.flush();
    const std::int64_t* const none_there = staging.upload(none);
    const float* const late = staging.upload(std::span<const float>(weights).first(2));
    CHECK(std::isnan(late[0]));
    staging.flush();
    staging.flush();
    CHECK(std::equal(ids.begin(), ids.end(), ids_there));
    CHECK(std::equal(weights.begin(), weights.end(), weights_there));
    CHECK(late[1] == static_cast<float>(batch));
    places[batch] = {ids_there, weights_there, none_there, late};
    for (const void* const place : places[batch]) CHECK(on_multiple_of(place, 16));
  }
  CHECK(places[1] == places[2]);
  const std::set<const void*> different(places[1].begin(), places[1].end());
  CHECK(different.size() == 4);
}

TEST_CASE("staging grows with the batch, and is one piece again for the next") {
  const DeviceMemory memory;
  Staging staging(memory, Stream{}, 100);
  CHECK(staging.capacity() == 256);
  std::vector<std::vector<std::int32_t>> tables;
  for (int size = 0; size < 200; size += 7) tables.emplace_back(static_cast<std::size_t>(size), size);
  for (int batch = 0; batch < 3; ++batch) {
    staging.reset();
    std::vector<const std::int32_t*> there;
    for (const auto& table : tables) there.push_back(staging.upload(table));
    staging.flush();
    for (std::size_t i = 0; i < tables.size(); ++i) CHECK(std::equal(tables[i].begin(), tables[i].end(), there[i]));
    for (std::size_t i = 1; batch > 0 && i < tables.size(); ++i) CHECK(there[i] > there[i - 1]);
  }
  const std::size_t in_use = memory.usage().in_use;
  CHECK(in_use >= staging.capacity());
  staging.reset();
  CHECK(memory.usage().in_use == in_use);
}

TEST_CASE("tables of the last batch are gone after reset") {
  const DeviceMemory memory;
  Staging staging(memory, Stream{});
  const float* const there = staging.upload(std::vector<float>{1.0f, 2.0f});
  staging.flush();
  CHECK(there[1] == 2.0f);
  staging.reset();
  CHECK(all_nan(there, 2));
}

TEST_CASE("streams are told apart") {
  OwnedStream one(1), two(2);
  CHECK(stream_id(one.get()) != stream_id(two.get()));
  two = std::move(one);
  CHECK(stream_id(two.get()) == 1);
  synchronize(two.get());
}

}  // namespace fedlora::tests
