// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <fedlora/backend/cpu/gemm_onednn.hpp>
#include <fedlora/version.hpp>

int main() {
  const fedlora::OneDnnGemm::ThreadScope one_thread;
  const float a[] = {1, 2}, b[] = {3, 4};
  float c[1];
  fedlora::OneDnnGemm::multiply(false, false, 1, 1, 2, 1.0f, a, 2, b, 1, 0.0f, c, 1);
  if (c[0] != 11.0f) return 1;
  std::printf("fedlora %s: %g\n", fedlora::version, c[0]);
}
