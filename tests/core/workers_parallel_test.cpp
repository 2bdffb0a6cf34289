// SPDX-License-Identifier: Apache-2.0
// Items shared among threads: each once, errors repeatably, nothing started after one.
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "fedlora/core/parallel.hpp"

namespace fedlora {

TEST_CASE("every item is worked on once, by a worker of its own at any time") {
  for (const int threads : {0, 1, 2, 3, 7, 50})
    for (const std::size_t items : {0, 1, 2, 10, 200}) {
      std::vector<std::atomic<int>> seen(items);
      std::vector<std::atomic<int>> busy(static_cast<std::size_t>(worker_count(threads)));
      std::atomic<int> clashes{0};
      parallel_for(items, threads, [&](int worker, std::size_t item) {
        auto& mine = busy.at(static_cast<std::size_t>(worker));
        if (mine.fetch_add(1) != 0) ++clashes;
        ++seen[item];
        mine.fetch_sub(1);
      });
      int wrong = 0;
      for (const auto& count : seen) wrong += count == 1 ? 0 : 1;
      CHECK(wrong == 0);
      CHECK(clashes == 0);
    }
}

TEST_CASE("the error of the lowest item that failed is thrown, and later items are not started") {
  for (const int threads : {1, 2, 4}) {
    std::atomic<int> started{0};
    std::string message;
    try {
      parallel_for(10000, threads, [&](int, std::size_t item) {
        ++started;
        if (item >= 5) throw std::runtime_error("item " + std::to_string(item));
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message == "item 5");
    CHECK(started < 10000);
  }
}

TEST_CASE("zero threads means one per hardware thread, never none") {
  CHECK(worker_count(0) >= 1);
  CHECK(worker_count(3) == 3);
  CHECK(worker_count(-1) >= 1);
}

}  // namespace fedlora
