// SPDX-License-Identifier: Apache-2.0
// What the backend asks of the CUDA runtime beside launches: streams, events, allocations and copies. Compiled by nvcc
// they are calls of the runtime (gpu_runtime.cuh); with FEDLORA_CUDA_ON_HOST they happen at once in host memory, and
// what a GPU would suffer in silence is an error (host_runtime.cuh). Both sides have
//   OwnedStream                         a queue of its own for as long as the value lives; `get()` is its Stream
//   stream_id(stream)                   tells streams apart, also from those that are gone
//   detail::wait_for(stream)            until all it holds has run
//   detail::Event                       a point in a stream that another stream, or the host, can wait for
//   detail::PinnedMemory                host memory that a copy reads while the host goes on
//   detail::device_allocate(bytes)      device memory, on a multiple of 256 bytes; null if there is none left
//   detail::device_release(block)       its end
//   detail::copy, copy_rows, set_zero   queued in the stream
//   detail::Watch                       knows who may touch which bytes; on a GPU it does nothing
// A stream belongs to the device that was current when it was made; all calls want that device to be current.
#pragma once

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/transfer.cuh"
#if defined(FEDLORA_CUDA_ON_HOST)
#include "fedlora/backend/cuda/host_runtime.cuh"
#else
#include "fedlora/backend/cuda/gpu_runtime.cuh"
#endif

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Waits until everything in the stream has run. \throws CudaError, also for what went wrong in it before
inline void synchronize(Stream stream) {
  detail::refuse_in_capture("cuda::synchronize");
  detail::wait_for(stream);
}

}  // namespace fedlora::cuda

#endif
