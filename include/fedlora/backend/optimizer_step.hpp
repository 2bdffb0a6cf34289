// SPDX-License-Identifier: Apache-2.0
// An optimizer's step as values, for backends that take it where the parameters are, in one pass.
#pragma once

#include "fedlora/core/standard.hpp"

namespace fedlora {

/// AdamW with the order of operations of torch.optim.AdamW; optim/adamw.hpp has the formula.
struct AdamWStep {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
};

/// The factors of one step of AdamW on a CPU, rounded to T once, as torch's kernels do with Python's numbers.
template <class T>
struct AdamWFactors {
  T decay, blend, keep, fresh, step_size, correction, eps;
};

/// The same of SGD. `first`: the momentum buffer is new.
template <class T>
struct SgdFactors {
  T rate, decay, mu, fresh;
  bool first, nesterov;
};

/// SGD with momentum as torch.optim.SGD has it; optim/sgd.hpp has the formula.
struct SgdStep {
  double lr = 1e-3;
  double momentum = 0.0;
  double dampening = 0.0;
  double weight_decay = 0.0;
  bool nesterov = false;
};

}  // namespace fedlora
