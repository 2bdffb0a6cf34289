// SPDX-License-Identifier: Apache-2.0
// The federation and the runs it is compared with, over a base of one family on one backend. The instantiations are in
// families/FAMILY.cpp for the CPU and in cuda/TYPE.cu for a GPU, so that they compile side by side.
#pragma once

#include <string>

#include "federation/assignment.hpp"
#include "fedlora/lora/pretrained.hpp"

namespace fedlora::examples {

/// Runs what the options ask for; `machine` is what computes, for the first line that a person reads. Returns the exit
/// status: 0, or 130 when a signal stopped it.
template <class Arch, class B>
int run_experiment(Pretrained<Arch, B> base, const std::string& machine, Assignment& assignment);

}  // namespace fedlora::examples
