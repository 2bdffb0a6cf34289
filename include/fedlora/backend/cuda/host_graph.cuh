// SPDX-License-Identifier: Apache-2.0
// Graphs on the host: what is launched has run already, but for captures that fail on purpose (host_capture.cuh).
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && defined(FEDLORA_CUDA_ON_HOST)

#include <cstdint>

#include "fedlora/backend/cuda/host_block.cuh"
#include "fedlora/backend/cuda/host_capture.cuh"
#include "fedlora/backend/cuda/transfer.cuh"

namespace fedlora::cuda::detail {

class ExecutableGraph {
 public:
  void begin(Stream) {
    host::draw_capture_fate();
    at(host::CaptureFault::begin, "cudaStreamBeginCapture");
  }

  void end(Stream) {
    at(host::CaptureFault::end, "cudaStreamEndCapture");
    at(host::CaptureFault::call, "cudaStreamEndCapture");  // it would have come later
    at(host::CaptureFault::instantiate, "cudaGraphInstantiate");
    if (!made_) ++instantiations_;
    made_ = true;
  }

  void launch(Stream) {
    try {
      at(host::CaptureFault::launch, "cudaGraphLaunch");
      at(host::CaptureFault::half_run, "cudaGraphLaunch");
    } catch (const CudaError& error) {
      throw GraphLaunchFailed(error.what());
    }
    host::capture_fate() = {};
  }

  void abandon(Stream) noexcept { host::capture_fate() = {}; }

  std::int64_t instantiations() const { return instantiations_; }

 private:
  void at(host::CaptureFault where, const char* call) {
    try {
      host::fail_capture_at(where, call);
    } catch (...) {
      host::capture_fate() = {};
      made_ = false;
      throw;
    }
  }

  bool made_ = false;
  std::int64_t instantiations_ = 0;
};

}  // namespace fedlora::cuda::detail

#endif
