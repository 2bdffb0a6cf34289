// SPDX-License-Identifier: Apache-2.0
// Work that is recorded once and timed again and again: a CUDA graph between two events that are nodes of it, so that
// launching it costs no time that is counted. On the host the work runs again, and a clock stands for the events.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/context.cuh"
#include "fedlora/backend/cuda/runtime.cuh"
#if defined(FEDLORA_CUDA_ON_HOST)
#include <chrono>
#endif

namespace fedlora::benchmarks {

/// What is at hand.
struct DeviceFacts {
  std::string name;
  std::size_t l2_bytes = 0;
  std::vector<std::pair<std::string, std::string>> others;  ///< for a reader of the results
};

/// For as long as it lives, what cannot be part of a graph is refused on this thread.
class Capturing {
 public:
  Capturing() { cuda::detail::capture_of_thread() = this; }
  Capturing(const Capturing&) = delete;
  Capturing& operator=(const Capturing&) = delete;
  ~Capturing() { cuda::detail::capture_of_thread() = nullptr; }
};

#if !defined(FEDLORA_CUDA_ON_HOST)

/// \throws CudaError when there is no such device.
inline DeviceFacts device_facts(int device) {
  cuda::detail::require_device(device);
  cuda::detail::use_device(device);
  cudaDeviceProp properties{};
  cuda::detail::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  int driver = 0;
  cuda::detail::check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  const auto version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  DeviceFacts facts;
  facts.name = properties.name;
  facts.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  facts.others = {{"compute capability", std::to_string(properties.major) + "." + std::to_string(properties.minor)},
                  {"multiprocessors", std::to_string(properties.multiProcessorCount)},
                  {"L2 MiB", std::to_string(facts.l2_bytes >> 20)},
                  {"memory MiB", std::to_string(properties.totalGlobalMem >> 20)},
                  {"driver supports CUDA", version(driver)},
                  {"CUDA runtime", version(CUDART_VERSION)}};
  return facts;
}

class Recording {
 public:
  /// Captures what `work()` puts into the stream; it has run before, and allocates nothing any more. \throws CudaError
  Recording(cuda::Stream stream, const std::function<void()>& work) : stream_(stream) {
    using cuda::detail::check;
    check(cudaEventCreate(begin_.out()), "cudaEventCreate");
    check(cudaEventCreate(end_.out()), "cudaEventCreate");
    cuda::Handle<cudaGraph_t, cudaGraphDestroy> graph;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    try {
      const Capturing capturing;
      mark(begin_.get());
      work();
      mark(end_.get());
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, graph.out()));
      static_cast<void>(cudaGetLastError());
      throw;
    }
    check(cudaStreamEndCapture(stream, graph.out()), "cudaStreamEndCapture");
    check(cudaGraphGetNodes(graph.get(), nullptr, &nodes_), "cudaGraphGetNodes");
    check(cudaGraphInstantiate(executable_.out(), graph.get(), 0), "cudaGraphInstantiate");
    check(cudaGraphUpload(executable_.get(), stream), "cudaGraphUpload");
  }

  void launch() { cuda::detail::check(cudaGraphLaunch(executable_.get(), stream_), "cudaGraphLaunch"); }

  /// Of the latest launch. Waits for all that the stream holds.
  double seconds() {
    cuda::detail::wait_for(stream_);
    float milliseconds = 0;
    cuda::detail::check(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "cudaEventElapsedTime");
    return 1e-3 * static_cast<double>(milliseconds);
  }

  /// Kernels, copies and memory sets.
  std::size_t nodes() const { return nodes_ - 2; }

 private:
  void mark(cudaEvent_t event) {
    cuda::detail::check(cudaEventRecordWithFlags(event, stream_, cudaEventRecordExternal), "cudaEventRecordWithFlags");
  }

  cuda::Stream stream_;
  cuda::Handle<cudaEvent_t, cudaEventDestroy> begin_, end_;
  cuda::Handle<cudaGraphExec_t, cudaGraphExecDestroy> executable_;
  std::size_t nodes_ = 0;
};

#else

/// A cache so small that data of small shapes takes turns as well.
inline DeviceFacts device_facts(int device) {
  cuda::detail::use_device(device);
  return {"the host, which times nothing that counts", std::size_t{1} << 15, {}};
}

class Recording {
 public:
  Recording(cuda::Stream, std::function<void()> work) : work_(std::move(work)) {}

  void launch() {
    const Capturing capturing;
    const auto begin = std::chrono::steady_clock::now();
    work_();
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  double seconds() const { return seconds_; }
  std::size_t nodes() const { return 0; }

 private:
  std::function<void()> work_;
  double seconds_ = 0;
};

#endif

}  // namespace fedlora::benchmarks
