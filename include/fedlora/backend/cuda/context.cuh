// SPDX-License-Identifier: Apache-2.0
// What all runners of one CUDA backend share: a device, its memory, and the choices that were made.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/runtime.cuh"
#include "fedlora/backend/cuda/tile.cuh"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// How the low-rank part of a linear layer is computed. Results differ by rounding alone.
enum class LowRankPath {
  fused,  ///< by the kernels of low_rank_*.cuh, as part of the base product where that is right
  plain,  ///< by one product of whole matrices after another; the comparison
};

/// What a CudaBackend may be told.
struct Options {
  int device = 0;
  FloatMath math = FloatMath::tf32;  ///< how floats are multiplied; 16-bit types have one way
  LowRankPath low_rank = LowRankPath::fused;
  std::optional<Stream> stream = {};  ///< the caller's, for one runner at a time; otherwise each has its own
  DeviceAllocator allocator = {};     ///< the caller's; otherwise memory is taken from the device and kept
  std::size_t memory_limit = DeviceMemory::no_limit;  ///< bytes
  /// Bytes of one runner's slot for [W | scale · B]; larger layers, and 0, add S Bᵀ to the result instead.
  std::size_t slot_bytes = std::size_t{64} << 20;
  bool graphs = true;  ///< training steps on the device are captured and launched as graphs
};

namespace detail {

/// Whether there is such a device that these kernels run on. \throws CudaError
inline void require_device(int device) {
  const std::string where = "cuda device " + std::to_string(device);
  int count = 1;
#if !defined(FEDLORA_CUDA_ON_HOST)
  int driver = 0;  // stays so where there is none
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  const cudaError_t status = driver == 0 ? cudaErrorNoDevice : cudaGetDeviceCount(&count);
  if (status != cudaSuccess && status != cudaErrorNoDevice)
    fail<NoDeviceError>(where, "an NVIDIA GPU and its driver", cudaGetErrorString(status));
  if (status != cudaSuccess || count == 0) fail<NoDeviceError>(where, "an NVIDIA GPU and its driver", "none");
#endif
  if (device < 0 || device >= count)
    fail<NoDeviceError>(where, "one of " + std::to_string(count) + ", from 0", "no such device");
#if !defined(FEDLORA_CUDA_ON_HOST)
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  if (major < 8)
    fail<CudaError>(where, "compute capability 8.0 or more", std::to_string(major) + "." + std::to_string(minor));
#endif
}

/// Makes a device the current one of this thread. \throws CudaError
inline void use_device([[maybe_unused]] int device) {
#if !defined(FEDLORA_CUDA_ON_HOST)
  check(cudaSetDevice(device), "cudaSetDevice");
#endif
}

}  // namespace detail

/// A runner's stream: its own, or the caller's.
class ContextStream {
 public:
  /// \throws CudaError
  explicit ContextStream(const Options& options) {
    detail::use_device(options.device);
    if (options.stream)
      stream_ = *options.stream;
    else
      stream_ = own_.emplace().get();
  }

  Stream get() const { return stream_; }

 private:
  std::optional<OwnedStream> own_;
  Stream stream_{};
};

/// Shared by a backend's copies, their runners, and what they have put on the device.
struct Context {
  /// \throws CudaError when there is no such device.
  explicit Context(Options given)
      : options(checked(std::move(given))), loading(options), memory(options.allocator, options.memory_limit) {}

  /// Makes the device the current one of this thread. \throws CudaError
  void use() const { detail::use_device(options.device); }

  const Options options;
  ContextStream loading;  ///< for what is copied once, weights above all
  DeviceMemory memory;

 private:
  static Options checked(Options options) {
    detail::require_device(options.device);
    return options;
  }
};

}  // namespace fedlora::cuda

#endif
