// SPDX-License-Identifier: Apache-2.0
// A training step as one launch. Hundreds of short kernels cost more to launch than to run; captured as a graph they
// cost one call.
#pragma once

#include <cstdint>

#include "fedlora/backend/cuda/runtime.cuh"
#include "fedlora/core/error.hpp"
#if defined(FEDLORA_CUDA_ON_HOST)
#include "fedlora/backend/cuda/host_graph.cuh"
#else
#include "fedlora/backend/cuda/gpu_graph.cuh"
#endif

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Captures what one thread puts into one stream, and launches it as a graph:
///
///   graph.run(stream, [&] { step(batch); });
///
/// Nothing has run when `step` returns, so it may launch kernels and products, copy on the device and set zeros, but
/// not allocate, upload, download or synchronise: what such a call needs belongs before the capture. (It throws a
/// CudaError then. Memory may be released; it goes to nobody else before the graph has run.)
///
/// The graph is captured anew for every step, because sizes and pointers change, and the executable one is updated in
/// place, which costs little; it is made again only where kernels differ in number, kind or order. The first step, and
/// the first of a larger batch, should run without a capture: arenas grow in it, and libraries load their kernels.
///
/// On the host a capture runs at once what is launched in it, and checks the protocol.
class StepGraph {
 public:
  StepGraph() = default;
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;
  ~StepGraph() { abandon(); }

  /// From now on this thread records what it puts into `stream`. \throws CudaError if it captures already
  void begin(Stream stream) {
    const void*& capture = detail::capture_of_thread();
    if (capturing_ || capture != nullptr)
      fail<CudaError>("cuda::StepGraph::begin", "no capture by this thread",
                      capture == this ? "a second begin" : "one of another StepGraph, or by another thread");
    executable_.begin(stream);
    capture = this;
    capturing_ = true;
    stream_ = stream;
  }

  /// Ends the capture and launches it in the stream. Called by the thread that began. \throws CudaError; the capture
  /// has ended then, and nothing of it has run, unless it is a detail::GraphLaunchFailed: CUDA does not promise it then
  void end_and_launch(Stream stream) {
    constexpr const char* where = "cuda::StepGraph::end_and_launch";
    if (!capturing_) fail<CudaError>(where, "a begin before", "none");
    if (detail::capture_of_thread() != this) fail<CudaError>(where, "the thread that began", "another");
    if (stream_id(stream) != stream_id(stream_)) fail<CudaError>(where, "the stream of begin", "another");
    leave();
    executable_.end(stream);
    executable_.launch(stream);
    ++launches_;
  }

  /// Ends a capture, if there is one, and forgets what was recorded.
  void abandon() noexcept {
    if (!capturing_) return;
    leave();
    executable_.abandon(stream_);
  }

  /// `body()` between `begin` and `end_and_launch`; what it throws comes through, and nothing of it has run. After a
  /// capture that failed the stream, and this, are as before it.
  template <class Body>
  void run(Stream stream, Body&& body) {
    begin(stream);
    try {
      body();
    } catch (...) {
      abandon();
      throw;
    }
    end_and_launch(stream);
  }

  bool capturing() const { return capturing_; }

  /// How many graphs were launched, and how many of them needed a new executable one. (On the host: the first,
  /// and the first after a failure.)
  std::int64_t launches() const { return launches_; }
  std::int64_t instantiations() const { return executable_.instantiations(); }

 private:
  void leave() noexcept {
    if (detail::capture_of_thread() == this) detail::capture_of_thread() = nullptr;
    capturing_ = false;
  }

  detail::ExecutableGraph executable_;
  Stream stream_{};
  bool capturing_ = false;
  std::int64_t launches_ = 0;
};

}  // namespace fedlora::cuda

#endif
