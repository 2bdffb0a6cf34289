// SPDX-License-Identifier: Apache-2.0
// Linear layers, on the CPU.
#include "backend/linear.hpp"

#include "backend/cpu_backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(linear, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(dense, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(adopt, CpuBackends);

}  // namespace fedlora::tests
