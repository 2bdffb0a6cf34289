// SPDX-License-Identifier: Apache-2.0
// What is done with rows, on the CPU.
#include "backend/rows.hpp"

#include "backend/cpu_backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(embedding, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(rows, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(transfers, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(pooling, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(loss, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(target_losses, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(dropout_mask, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(dropout_rate, CpuBackends);

}  // namespace fedlora::tests
