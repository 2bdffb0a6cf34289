// SPDX-License-Identifier: Apache-2.0
// LayerNorm, RMSNorm and the residual sum, on the CPU.
#include "backend/norm.hpp"

#include "backend/cpu_backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(norm, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(norm_mean, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(residual, CpuBackends);

}  // namespace fedlora::tests
