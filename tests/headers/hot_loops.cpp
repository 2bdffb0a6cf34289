// SPDX-License-Identifier: Apache-2.0
// All loops of the CPU backend, for hot_loops_test.cpp to compile at every level.
#include "fedlora/backend/cpu/loops.hpp"

namespace fedlora::tests {

const cpu::Loops<float>& hot_loops_of_float() { return cpu::own_loops<float>; }
const cpu::Loops<double>& hot_loops_of_double() { return cpu::own_loops<double>; }

}  // namespace fedlora::tests
