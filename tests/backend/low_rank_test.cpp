// SPDX-License-Identifier: Apache-2.0
// Low-rank terms, on the CPU.
#include "backend/low_rank.hpp"

#include "backend/cpu_backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(low_rank, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(low_rank_dropout, CpuBackends);
TEST_CASE_TEMPLATE_APPLY(low_rank_segments, CpuBackends);

}  // namespace fedlora::tests
