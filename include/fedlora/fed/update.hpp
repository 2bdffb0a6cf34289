// SPDX-License-Identifier: Apache-2.0
// What a client sends back: the only thing besides a broadcast that crosses the boundary.
#pragma once

#include "fedlora/core/shape.hpp"
#include "fedlora/lora/adapter.hpp"

namespace fedlora {

/// Facts about one client's local training. They hold no example.
struct ClientMetrics {
  double train_loss = 0;  ///< mean over everything the client trained on, dropout included
  Index loss_count = 0;   ///< what the mean is over: examples, or predicted tokens
  Index steps = 0;        ///< optimizer steps
  Index skipped_steps = 0;  ///< of these, steps that changed nothing because a gradient overflowed 16 bits; never sent
  double seconds = 0;     ///< wall clock; the only number here that is not repeatable, so it is never sent
};

/// The adapter a client ended with, the number of examples that weighs it, and where it came from.
template <class T>
struct Update {
  using Scalar = T;

  Index client = 0;
  Index round = 0;
  Index num_examples = 0;
  ClientMetrics metrics;
  Adapter<T> adapter;
};

}  // namespace fedlora
