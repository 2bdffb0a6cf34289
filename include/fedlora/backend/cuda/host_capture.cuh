// SPDX-License-Identifier: Apache-2.0
// Captures that fail on purpose, and how many objects a GPU's libraries would have had to make: for tests.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && defined(FEDLORA_CUDA_ON_HOST)

#include <atomic>

#include "fedlora/core/error.hpp"

namespace fedlora::cuda::host {

/// Where a capture fails. Nothing of it runs, as on a GPU, but for `half_run`.
enum class CaptureFault {
  none,
  begin,        ///< cudaStreamBeginCapture
  call,         ///< a launch, a copy or a product in it
  end,          ///< cudaStreamEndCapture, which says that something made it invalid
  instantiate,  ///< cudaGraphInstantiate
  launch,       ///< cudaGraphLaunch, which has refused it
  half_run,     ///< cudaGraphLaunch, though the step has run
};

/// What befalls the captures of this process from now on.
struct CaptureFaults {
  std::atomic<CaptureFault> fault{CaptureFault::none};
  std::atomic<int> captures{0};  ///< that fail: the next ones
  std::atomic<int> call{0};      ///< which call of a capture fails, from 0, where that is the fault

  void set(CaptureFault where, int how_many, int which = 0) {
    fault = where;
    call = which;
    captures = how_many;
  }
};

inline CaptureFaults& capture_faults() {
  static CaptureFaults faults;
  return faults;
}

/// What befalls the capture of this thread.
struct CaptureFate {
  CaptureFault fault = CaptureFault::none;
  int calls_left = 0;
};

inline CaptureFate& capture_fate() {
  thread_local CaptureFate fate;
  return fate;
}

/// The next capture's, which this thread begins.
inline void draw_capture_fate() {
  CaptureFaults& faults = capture_faults();
  capture_fate() = {};
  if (faults.captures > 0 && faults.captures-- > 0) capture_fate() = {faults.fault, faults.call};
}

/// \throws CudaError if this is where the capture of this thread fails
inline void fail_capture_at(CaptureFault where, const char* call) {
  if (capture_fate().fault == where) fail<CudaError>(call, "success", "a fault on purpose");
}

/// Whether what is queued now runs at once: not in a capture that will fail. \throws CudaError where it fails here
inline bool runs_at_once() {
  CaptureFate& fate = capture_fate();
  if (fate.fault == CaptureFault::none || fate.fault == CaptureFault::half_run) return true;
  if (fate.calls_left-- <= 0) fail_capture_at(CaptureFault::call, "a call in a capture");
  return false;
}

/// What was made so far in this process.
struct Made {
  std::atomic<int> streams{0};
  std::atomic<int> pinned_blocks{0};
  std::atomic<int> blas_handles{0};
};

inline Made& made() {
  static Made made;
  return made;
}

}  // namespace fedlora::cuda::host

#endif
