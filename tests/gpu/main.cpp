// SPDX-License-Identifier: Apache-2.0
// The main of the tests on a GPU: says which one it is. Where there is none it says so and ends with 77, which CTest
// counts as skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#if defined(FEDLORA_TEST_MANAGED_HEAP)
#include "gpu/managed_heap.hpp"
#endif

namespace {

constexpr int skipped = 77;

int attribute(cudaDeviceAttr which) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, 0) == cudaSuccess ? value : 0;
}

/// Prints the device; false, with the reason, where there is none.
bool found_device() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaDeviceProp properties;
  if (status != cudaSuccess || count == 0 || cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::printf("skipped: no NVIDIA GPU (%s)\n",
                cudaGetErrorString(status == cudaSuccess ? cudaErrorNoDevice : status));
    return false;
  }
  int driver = 0, runtime = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  std::printf("on %s, sm_%d%d, driver for CUDA %d.%d, runtime %d.%d\n", properties.name, properties.major,
              properties.minor, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  return true;
}

/// Whether the names of the tests are all that is wanted, which takes no device.
bool only_lists(int argc, char** argv) {
  for (int i = 1; i < argc; ++i)
    if (std::strcmp(argv[i], "-ltc") == 0 || std::strcmp(argv[i], "--list-test-cases") == 0) return true;
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  doctest::Context context;
  if (only_lists(argc, argv)) {
    context.applyCommandLine(argc, argv);
    return context.run();
  }
#if defined(FEDLORA_TEST_MANAGED_HEAP)
  // These tests read what a kernel wrote as soon as its launch returns, as on the host.
  ::setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  if (!found_device()) return skipped;
  if (attribute(cudaDevAttrPageableMemoryAccess) == 0) {
    if (attribute(cudaDevAttrConcurrentManagedAccess) == 0) {
      std::puts("skipped: this GPU cannot share memory with the host while it computes");
      return skipped;
    }
    std::puts("this GPU does not reach the host's stack: without loss_test.cpp and optimizer_test.cpp");
    context.addFilter("source-file-exclude", "*loss_test.cpp,*optimizer_test.cpp");
    if (!fedlora::tests::managed_heap().open(std::size_t{1} << 28)) {
      std::puts("cudaMallocManaged failed");
      return 1;
    }
  }
  context.applyCommandLine(argc, argv);
  const int result = context.run();
  std::fflush(nullptr);
  std::_Exit(result);  // what is left in the managed heap goes with the process
#else
  if (!found_device()) return skipped;
  static_cast<void>(attribute);
  context.applyCommandLine(argc, argv);
  return context.run();
#endif
}
