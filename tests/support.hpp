// SPDX-License-Identifier: Apache-2.0
// What the tests share: a temporary directory, and the way to real data that may not be there.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>

namespace fedlora::tests {

/// A fresh directory, removed with everything in it at the end of the scope.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "fedlora-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed for " + pattern);
    path_ = pattern;
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// The directory of real data: $FEDLORA_DATA, else ../shared/data beside the project. Without it, prints why the calling test
/// skips and returns nothing.
inline std::optional<std::filesystem::path> shared_data() {
  const char* set = std::getenv("FEDLORA_DATA");
  const std::filesystem::path path =
      set != nullptr ? std::filesystem::path(set) : std::filesystem::path(FEDLORA_TEST_DIR) / "../../shared/data";
  if (std::filesystem::is_directory(path)) return path;
  std::cout << "skipped: no real data at " << path.string() << " (set FEDLORA_DATA)\n";
  return std::nullopt;
}

/// Whether `part` stands in `text`.
inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  if (!out) throw std::runtime_error("cannot write " + path.string());
}

}  // namespace fedlora::tests
