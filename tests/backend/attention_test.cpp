// SPDX-License-Identifier: Apache-2.0
// Attention and rotary positions, on the CPU.
#include "backend/attention.hpp"

#include "backend/cpu_backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(attention_dims, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(attention_lengths, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(attention_groups, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(attention_selected, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(attention_dropout, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(attention_range, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(attention_unseen, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(attention_uncovered, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(rotary, CpuBackends);

}  // namespace fedlora::tests
