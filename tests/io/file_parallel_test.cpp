// SPDX-License-Identifier: Apache-2.0
// Atomic writes from several threads.
#include <doctest/doctest.h>

#include <filesystem>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "fedlora/io/file.hpp"
#include "support.hpp"

namespace fs = std::filesystem;
using fedlora::write_file_atomically;
using fedlora::tests::read_text;
using fedlora::tests::TemporaryDirectory;

TEST_CASE("many threads that write one file leave one of their texts, whole") {
  const TemporaryDirectory dir;
  const fs::path path = dir.path() / "contended";
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&path, t] {
      for (int i = 0; i < 10; ++i) write_file_atomically(path, std::string(50'000, static_cast<char>('a' + t)));
    });
  }
  for (auto& thread : threads) thread.join();
  const std::string text = read_text(path);
  REQUIRE(text.size() == 50'000);
  CHECK(text == std::string(50'000, text[0]));
  CHECK(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()) == 1);
}
