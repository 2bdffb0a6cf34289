// SPDX-License-Identifier: Apache-2.0
// A program with units of several levels: each computes with its own loops. It ends with 77 where the processor lacks
// one.
#include "two_levels.hpp"

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <utility>

int main() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512cd")) {
    std::puts("skipped: this processor has no AVX-512");
    return 77;
  }
  const Told first = tell_v1();
  bool passed = first.values.size() == 7 * 48 + 7 * 7;
  // A lane takes every fourth, eighth or sixteenth column, and one that holds 2²⁴ loses what is added to it.
  const std::pair<Told, float> expected[] = {{first, 0.0f}, {tell_v3(), 1.0f}, {tell_v4(), 2.0f}};
  const char* const levels[] = {"sse2", "avx2", "avx512"};
  for (std::size_t i = 0; i < 3; ++i) {
    const auto& [told, sum] = expected[i];
    float worst = 0;
    for (std::size_t j = 0; j < told.values.size(); ++j)
      worst = std::fmax(worst, std::fabs(told.values[j] - first.values[j]));
    std::printf("%s adds up to %g; apart from that it differs by %g\n", told.level.c_str(),
                static_cast<double>(told.sum), static_cast<double>(worst));
    passed = passed && told.level == levels[i] && told.sum == sum && told.values.size() == first.values.size() &&
             worst < 1e-5f;
  }
  return passed ? 0 : 1;
}
