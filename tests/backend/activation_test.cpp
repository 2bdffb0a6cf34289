// SPDX-License-Identifier: Apache-2.0
// Activations, on the CPU.
#include "backend/activation.hpp"

#include "backend/cpu_backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(activation, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(activation_nan, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(activation_bias, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(gated, CpuBackends);

}  // namespace fedlora::tests
