// SPDX-License-Identifier: Apache-2.0
// The one target of an executable, as libFuzzer calls it. What a target throws ends the run, and libFuzzer keeps the
// input.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "fuzz/target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  (*fedlora::fuzz::Target::all().front())({reinterpret_cast<const char*>(data), size});
  return 0;
}
