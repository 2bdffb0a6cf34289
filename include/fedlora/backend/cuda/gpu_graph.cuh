// SPDX-License-Identifier: Apache-2.0
// Graphs of the CUDA runtime behind graph.cuh.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && !defined(FEDLORA_CUDA_ON_HOST)

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "fedlora/backend/cuda/gpu_runtime.cuh"

namespace fedlora::cuda::detail {

/// A graph that can be launched, and updated from one that was captured.
class ExecutableGraph {
 public:
  void begin(Stream stream) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  }

  void end_and_launch(Stream stream) {
    Graph graph;
    check(cudaStreamEndCapture(stream, graph.out()), "cudaStreamEndCapture");
    if (!update(graph.get())) {
      Executable made;
      check(cudaGraphInstantiate(made.out(), graph.get(), 0), "cudaGraphInstantiate");
      executable_ = std::move(made);  // the one before is freed when it has run
      ++instantiations_;
    }
    check(cudaGraphLaunch(executable_.get(), stream), "cudaGraphLaunch");
  }

  void abandon(Stream stream) noexcept {
    Graph graph;
    static_cast<void>(cudaStreamEndCapture(stream, graph.out()));
    static_cast<void>(cudaGetLastError());  // a capture that something made invalid says so
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
