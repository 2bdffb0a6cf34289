// SPDX-License-Identifier: Apache-2.0
// What both faces of the runtime (gpu_runtime.cuh, host_runtime.cuh) speak of.
#pragma once

#include <cstddef>

#include "fedlora/backend/cuda/fragment.cuh"
#include "fedlora/core/error.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda::detail {

/// From where to where a copy goes.
enum class Copy { to_device, to_host, on_device };

/// Bytes that end on a multiple of `unit`.
constexpr std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

/// The graph that this thread is capturing, or null (graph.cuh).
inline const void*& capture_of_thread() {
  thread_local const void* graph = nullptr;
  return graph;
}

/// A call that cannot be a node of a graph.
class CaptureRefused : public CudaError {
 public:
  using CudaError::CudaError;
};

/// A graph that was captured and then not launched, or, for all that is known, not as a whole.
class GraphLaunchFailed : public CudaError {
 public:
  using CudaError::CudaError;
};

/// \throws CaptureRefused while this thread captures.
inline void refuse_in_capture(const char* where) {
  if (capture_of_thread() != nullptr)
    fail<CaptureRefused>(where, "no capture by this thread", "a StepGraph between begin and end_and_launch");
}

}  // namespace fedlora::cuda::detail

#endif
