// SPDX-License-Identifier: Apache-2.0
// What all runners of one CUDA backend share: a device, its memory, and the choices that were made.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "fedlora/backend/cuda/idle.cuh"
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
  /// The caller's, for one runner at a time; otherwise each has its own. It must live as long as a call, and may end
  /// between two: what is made for it (cuBLAS handles, graphs, working memory) ends with each runner, and is not kept.
  std::optional<Stream> stream = {};
  DeviceAllocator allocator = {};  ///< the caller's; otherwise memory is taken from the device and kept
  std::size_t memory_limit = DeviceMemory::no_limit;  ///< bytes
  /// Bytes of one runner's slot for [W | scale · B]; larger layers, and 0, add S Bᵀ to the result instead.
  std::size_t slot_bytes = std::size_t{64} << 20;
  bool graphs = true;  ///< training steps on the device are captured and launched as graphs
  /// Told, once for a backend, that a step ran without a graph because its capture failed, and why; from any thread.
  /// Results do not depend on it.
  std::function<void(const std::string&)> on_notice = {};
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
///
/// It keeps the resources of runners that have ended. They do not keep it: what they hold of it is its memory alone,
/// and they end when it does, or when memory runs out. At the end of a process, when the device is out of reach, they
/// are left to the driver.
struct Context {
  /// \throws CudaError when there is no such device.
  explicit Context(Options given)
      : options(checked(std::move(given))), memory(options.allocator, options.memory_limit) {
    memory.on_shortage([kept = std::weak_ptr<IdleResources>(idle)] {
      if (const auto resources = kept.lock()) resources->clear();
    });
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() {
    try {
      use();
      idle->clear();
    } catch (const CudaError&) {
      idle->abandon();
    }
  }

  /// Makes the device the current one of this thread. \throws CudaError
  void use() const { detail::use_device(options.device); }

  /// Gives back to the device what no runner is at work with. \throws CudaError
  void trim() const {
    use();
    idle->clear();
    memory.trim();
  }

  /// A step ran without a graph, for this reason.
  void capture_failed(const std::string& reason) const {
    tally.add(&Counts::captures_failed);
    if (!said_.exchange(true) && options.on_notice)
      options.on_notice("a training step could not be captured as a graph and ran without one, more slowly: " + reason);
  }

  const Options options;
  OwnedStream loading;  ///< for what is copied once, weights above all
  DeviceMemory memory;
  mutable Tally tally;
  const std::shared_ptr<IdleResources> idle = std::make_shared<IdleResources>();

 private:
  static Options checked(Options options) {
    detail::require_device(options.device);
    detail::use_device(options.device);  // for the streams that follow
    return options;
  }

  mutable std::atomic<bool> said_{false};
};

}  // namespace fedlora::cuda

#endif
