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
  std::optional<Stream> stream = {};  ///< the caller's, for all runners, one at a time; otherwise each has its own
  DeviceAllocator allocator = {};     ///< the caller's; otherwise memory is taken from the device and kept
  std::size_t memory_limit = DeviceMemory::no_limit;  ///< bytes
  /// Bytes of one runner's slot for [W | scale · B]; larger layers, and 0, add S Bᵀ to the result instead.
  std::size_t slot_bytes = std::size_t{64} << 20;
  bool graphs = true;  ///< training steps on the device are captured and launched as graphs
};

namespace detail {

/// Makes a device the current one of this thread. \throws CudaError naming how many there are
inline void use_device(int device) {
#if defined(__CUDACC__)
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
#else
  const int count = 1;
#endif
  if (device < 0 || device >= count)
    fail<CudaError>("cuda device " + std::to_string(device),
                    count == 0 ? "an NVIDIA GPU and its driver" : "one of " + std::to_string(count) + ", from 0",
                    count == 0 ? "none" : "no such device");
#if defined(__CUDACC__)
  check(cudaSetDevice(device), "cudaSetDevice");
#endif
}

}  // namespace detail

/// A runner's stream: its own, or the caller's.
class ContextStream {
 public:
  /// \throws CudaError when there is no such device.
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
      : options(std::move(given)), loading(options), memory(options.allocator, options.memory_limit) {}

  /// Makes the device the current one of this thread. \throws CudaError
  void use() const { detail::use_device(options.device); }

  Options options;
  ContextStream loading;  ///< for what is copied once, weights above all
  DeviceMemory memory;
};

}  // namespace fedlora::cuda

#endif
