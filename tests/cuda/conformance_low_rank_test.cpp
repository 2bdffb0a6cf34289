// SPDX-License-Identifier: Apache-2.0
// Low-rank terms of the CUDA backend, held to what every backend is held to.
#include "backend/low_rank.hpp"
#include "cuda/backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(low_rank, CudaLowRankBackends);
TEST_CASE_TEMPLATE_APPLY(low_rank_dropout, CudaLowRankBackends);
TEST_CASE_TEMPLATE_APPLY(low_rank_segments, CudaLowRankBackends);

}  // namespace fedlora::tests
