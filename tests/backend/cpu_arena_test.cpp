// SPDX-License-Identifier: Apache-2.0
// The memory of a CPU's runner.
#include "fedlora/backend/cpu/arena.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace fedlora::tests {

TEST_CASE_TEMPLATE("the arena gives memory in stack order, aligned, and keeps it", T, float, double) {
  cpu::Arena<T> arena;
  std::vector<std::pair<T*, Index>> taken;
  for (Index size : {1, 0, 17, 1000, 3, 100000, 64}) {
    const MatrixView<T> matrix = arena.matrix(size, 3);
    CHECK(matrix.rows == size);
    CHECK(matrix.stride == 3);
    CHECK(reinterpret_cast<std::uintptr_t>(matrix.data) % 64 == 0);
    for (Index i = 0; i < size; ++i) std::fill_n(matrix.row(i), 3, static_cast<T>(taken.size()));
    taken.emplace_back(matrix.data, 3 * size);
  }
  for (std::size_t t = 0; t < taken.size(); ++t)  // nobody wrote into anybody else's
    CHECK(std::count(taken[t].first, taken[t].first + taken[t].second, static_cast<T>(t)) == taken[t].second);
  T* inner = nullptr;
  {
    const auto scope = arena.scope();
    inner = arena.take(10);
    arena.take(1 << 20);  // needs another block
  }
  CHECK(arena.take(10) == inner);
  arena.reset();
  const Index capacity = arena.capacity();
  for (int step = 0; step < 3; ++step) {  // the steady state allocates nothing
    arena.reset();
    T* first = arena.take(5);
    arena.take(capacity / 2);
    CHECK(arena.capacity() == capacity);
    arena.reset();
    CHECK(arena.take(5) == first);
  }
  arena.reset();
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  arena.take(capacity / line * line);
  CHECK(arena.capacity() == capacity);  // to the last line
  arena.take(1);
  CHECK(arena.capacity() > capacity);
}

TEST_CASE("rewinding an arena gives back what was taken since, across scopes and blocks") {
  cpu::Arena<float> arena;
  arena.take(100);
  const cpu::Arena<float>::Mark low = arena.mark();
  float* const first = arena.take(100);
  const Index before = arena.capacity();
  arena.take(3 << 20);
  CHECK(arena.capacity() > before);
  const cpu::Arena<float>::Mark high = arena.mark();
  arena.rewind(low);
  CHECK(arena.capacity() == before);  // the block that was needed since is the system's again
  arena.rewind(high);                 // what was given back does not come again
  CHECK(arena.take(100) == first);
  {
    const auto scope = arena.scope();
    arena.rewind(low);
    CHECK(arena.take(50) == first);
  }
  CHECK(arena.take(100) == first + 64);  // the scope ends where the stack is lower than where it began
}

TEST_CASE("an arena that has grown becomes one block as large as what was taken at a time, and a quarter more") {
  cpu::Arena<float> arena;
  constexpr Index large = 1 << 20;
  for (int layer = 0; layer < 3; ++layer) {
    arena.take(large);
    const auto scope = arena.scope();
    arena.take(2 * large);
  }
  arena.reset();
  CHECK(arena.capacity() == 5 * large * 5 / 4);
  arena.take(6 * large);
  CHECK(arena.capacity() == 5 * large * 5 / 4);
  arena.reset();
  {
    const auto scope = arena.scope();
    arena.take(8 * large);
  }
  arena.take(1);
  arena.reset();  // what only a scope needed counts, too: it would come from the system in every step
  CHECK(arena.capacity() == 8 * large * 5 / 4);
}

}  // namespace fedlora::tests
