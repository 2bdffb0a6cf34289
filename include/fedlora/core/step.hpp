// SPDX-License-Identifier: Apache-2.0
// The address of one forward and backward pass: with it every random draw inside the pass has a name.
#pragma once

#include <cstdint>

#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Names the randomness of one micro-step: dropout masks are derived from (seed, round, client, step, micro, layer,
/// site), so that they can be drawn again in backward, on another thread, or after a resume.
struct StepAddress {
  std::uint64_t seed = 0;
  Index round = 0;
  Index client = 0;
  Index step = 0;   ///< optimizer step within the client's local training, from 0
  Index micro = 0;  ///< micro-batch within the step, from 0
};

}  // namespace fedlora
