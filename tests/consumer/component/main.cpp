// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <fedlora/version.hpp>
#include <oneapi/dnnl/dnnl.hpp>

extern "C" void omp_set_num_threads(int);

int main() {
  omp_set_num_threads(1);
  const float a[] = {1, 2}, b[] = {3, 4};
  float c[1];
  if (dnnl_sgemm('N', 'N', 1, 1, 2, 1.0f, a, 2, b, 1, 0.0f, c, 1) != dnnl_success || c[0] != 11.0f) return 1;
  std::printf("fedlora %s: %g\n", fedlora::version, c[0]);
}
