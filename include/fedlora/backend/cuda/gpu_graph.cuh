// SPDX-License-Identifier: Apache-2.0
// Graphs of the CUDA runtime behind graph.cuh.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && !defined(FEDLORA_CUDA_ON_HOST)

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "fedlora/backend/cuda/gpu_runtime.cuh"
#include "fedlora/backend/cuda/transfer.cuh"
#include "fedlora/core/error.hpp"

namespace fedlora::cuda::detail {

/// A graph that can be launched, and updated from one that was captured.
class ExecutableGraph {
 public:
  void begin(Stream stream) {
    const cudaError_t status = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (status != cudaSuccess) abandon(stream);
    check(status, "cudaStreamBeginCapture");
  }

  /// Ends the capture, and makes what it has recorded ready to be launched. \throws CudaError; there is no capture then
  void end(Stream stream) {
    Graph graph;
    try {
      check(cudaStreamEndCapture(stream, graph.out()), "cudaStreamEndCapture");
      if (update(graph.get())) return;
      Executable made;
      check(cudaGraphInstantiate(made.out(), graph.get(), 0), "cudaGraphInstantiate");
      executable_ = std::move(made);  // the one before is freed when it has run
      ++instantiations_;
    } catch (...) {
      abandon(stream);
      throw;
    }
  }

  /// \throws GraphLaunchFailed; the next one is made anew
  void launch(Stream stream) {
    const cudaError_t status = cudaGraphLaunch(executable_.get(), stream);
    if (status == cudaSuccess) return;
    executable_ = Executable();
    static_cast<void>(cudaGetLastError());
    fail<GraphLaunchFailed>("cudaGraphLaunch", "success", cudaGetErrorString(status));
  }

  /// Takes the stream out of a capture, whatever has become of it, and leaves no error for the next launch to find.
  void abandon(Stream stream) noexcept {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    Graph graph;
    if (cudaStreamIsCapturing(stream, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone)
      static_cast<void>(cudaStreamEndCapture(stream, graph.out()));
    static_cast<void>(cudaGetLastError());
  }

  std::int64_t instantiations() const { return instantiations_; }

 private:
  using Graph = Handle<cudaGraph_t, cudaGraphDestroy>;
  using Executable = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;

  /// Whether the executable graph does now what `graph` says. If not, it is to be made anew, whatever the reason.
  bool update(cudaGraph_t graph) {
    cudaGraphExecUpdateResultInfo result{};
    if (!executable_) return false;
    if (cudaGraphExecUpdate(executable_.get(), graph, &result) == cudaSuccess) return true;
    static_cast<void>(cudaGetLastError());
    return false;
  }

  Executable executable_;
  std::int64_t instantiations_ = 0;
};

}  // namespace fedlora::cuda::detail

#endif
