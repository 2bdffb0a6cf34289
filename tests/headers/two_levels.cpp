// SPDX-License-Identifier: Apache-2.0
// A program with units of two levels: each computes with its own loops. It ends with 77 where the processor lacks one.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

void tell_v3(std::string& level, float& sum, std::vector<float>& values);
void tell_v4(std::string& level, float& sum, std::vector<float>& values);

int main() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512cd")) {
    std::puts("skipped: this processor has no AVX-512");
    return 77;
  }
  std::string level_v3, level_v4;
  float sum_v3 = 0, sum_v4 = 0;
  std::vector<float> values_v3, values_v4;
  tell_v3(level_v3, sum_v3, values_v3);
  tell_v4(level_v4, sum_v4, values_v4);
  float worst = 0;
  for (std::size_t i = 0; i < values_v3.size(); ++i) worst = std::fmax(worst, std::fabs(values_v3[i] - values_v4[i]));
  std::printf("%s adds up to %g, %s to %g; apart from that they differ by %g\n", level_v3.c_str(),
              static_cast<double>(sum_v3), level_v4.c_str(), static_cast<double>(sum_v4), static_cast<double>(worst));
  // Of eight lanes the first takes all three numbers and loses the 1; of sixteen it takes the first and the last.
  const bool own = level_v3 == "avx2" && level_v4 == "avx512" && sum_v3 == 0 && sum_v4 == 1;
  return own && values_v3.size() == values_v4.size() && !values_v3.empty() && worst < 1e-5f ? 0 : 1;
}
