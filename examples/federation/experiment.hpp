// SPDX-License-Identifier: Apache-2.0
// The federation and the runs it is compared with, over a base of one family in one precision. The instantiations are in
// run_FAMILY.cpp, so that they compile side by side.
#pragma once

#include "backend.hpp"
#include "federation/inputs.hpp"
#include "federation/options.hpp"
#include "fedlora/lora/pretrained.hpp"

namespace fedlora::examples {

/// Runs what the options ask for. Returns the exit status: 0, or 130 when a signal stopped it.
template <class Arch, class T>
int run_experiment(Pretrained<Arch, ProgramBackend<T>> base, const Options& options, const Inputs& inputs);

}  // namespace fedlora::examples
