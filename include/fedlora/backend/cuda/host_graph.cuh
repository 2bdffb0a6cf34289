// SPDX-License-Identifier: Apache-2.0
// Graphs on the host: what is launched has run already.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && defined(FEDLORA_CUDA_ON_HOST)

#include <cstdint>

#include "fedlora/backend/cuda/host_block.cuh"

namespace fedlora::cuda::detail {

class ExecutableGraph {
 public:
  void begin(Stream) {}
  void end_and_launch(Stream) {}
  void abandon(Stream) noexcept {}
  std::int64_t instantiations() const { return 0; }
};

}  // namespace fedlora::cuda::detail

#endif
