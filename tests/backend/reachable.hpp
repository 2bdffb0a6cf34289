// SPDX-License-Identifier: Apache-2.0
// Memory that both the host and the device of a test can read and write, and how the host waits for the device. There
// is one memory on the host; compiled by nvcc it is managed by CUDA.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#if defined(FEDLORA_CUDA_COMPILED) && !defined(FEDLORA_CUDA_ON_HOST)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#endif

namespace fedlora::tests {

/// Whether kernels run where every turn of a thread costs a microsecond: on the host, under a sanitizer.
#if defined(FEDLORA_CUDA_ON_HOST) && defined(__SANITIZE_ADDRESS__)
inline constexpr bool slow_device = true;
#elif defined(FEDLORA_CUDA_ON_HOST) && defined(__has_feature)
#if __has_feature(address_sanitizer)
inline constexpr bool slow_device = true;
#else
inline constexpr bool slow_device = false;
#endif
#else
inline constexpr bool slow_device = false;
#endif

#if defined(FEDLORA_CUDA_COMPILED) && !defined(FEDLORA_CUDA_ON_HOST)

inline void require(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

/// Until every stream has run dry. What the host does to reachable memory comes after it, as not every GPU can share
/// a page while kernels run.
inline void wait_for_device() { require(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

template <class T>
class Reachable {
 public:
  explicit Reachable(std::size_t size) : size_(size) {
    void* memory = nullptr;
    require(cudaMallocManaged(&memory, size > 0 ? size * sizeof(T) : 1), "cudaMallocManaged");
    data_ = static_cast<T*>(memory);
    wait_for_device();
  }
  Reachable(Reachable&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Reachable& operator=(Reachable&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Reachable() { static_cast<void>(cudaFree(data_)); }  // which waits

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

#else

inline void wait_for_device() {}

template <class T>
using Reachable = std::vector<T>;

#endif

}  // namespace fedlora::tests
