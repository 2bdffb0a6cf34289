// SPDX-License-Identifier: Apache-2.0
// What runners and trainees are made of. A backend keeps it from one to the next (idle.cuh), so that a round of a
// federation creates nothing that the round before had.
#pragma once

#include <memory>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/context.cuh"
#include "fedlora/backend/cuda/graph.cuh"
#include "fedlora/backend/cuda/idle.cuh"
#include "fedlora/backend/cuda/linear.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/staging.cuh"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// What a Trainee keeps on the device, for one client after another, and what it has learnt of captures.
struct TraineeResources {
  StepGraph graph;
  DeviceBuffer weights, gradient, rounded, start, moments[2], losses, partials;
  DeviceBuffer states;     ///< the state now, then the state after each step
  Index size = 0;          ///< of the adapter; another one is another model
  Index largest_rows = 0;  ///< of the steps that have run with it
  Index most_sequences = 0;
  int failures = 0;  ///< of captures, one after another
};

/// What a Runner works with. What is in its memory means nothing to the next runner: their bits do not depend on it.
template <class T>
struct RunnerResources : KeptResources {
  /// \throws CudaError
  explicit RunnerResources(const Context& context)
      : stream(context.options),
        arena(context.memory, stream.get(), "a worker's matrices"),
        staging(context.memory, stream.get()),
        blas(context.memory, stream.get()),
        linear(context.options, context.memory, stream.get()) {}

  /// Waits for all that was queued, and forgets what was taken; whether the next runner may have it: on the host not
  /// where memory is damaged. \throws CudaError for what went wrong in the stream, or if it is being captured
  bool quiesce() {
    synchronize(stream.get());
    staging.reset();
    return arena.forget();
  }

  ContextStream stream;
  Arena arena;
  Staging staging;
  Blas blas;
  Linear<T> linear;
  DeviceBuffer parameters, rounded, gradient, own_loss, rotary;
  std::unique_ptr<TraineeResources> trainee;  ///< unless a Trainee has it
};

}  // namespace fedlora::cuda

#endif
