// SPDX-License-Identifier: Apache-2.0
// Which sequences of a packed batch belong to which client.
#pragma once

#include <cstdint>

#include "fedlora/core/standard.hpp"

namespace fedlora {

/// A run of sequences that share one adapter and one gradient: a client in a batch of several, or the whole batch.
struct Segment {
  std::int32_t first_sequence = 0;
  std::int32_t last_sequence = 0;  ///< one past the end
  std::int32_t slot = 0;           ///< which adapter, and which gradient
};

}  // namespace fedlora
