// SPDX-License-Identifier: Apache-2.0
// Attention and rotary positions of the CUDA backend, held to what every backend is held to.
#include "backend/attention.hpp"
#include "cuda/backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(attention_dims, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(attention_lengths, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(attention_groups, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(attention_selected, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(attention_dropout, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(attention_range, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(attention_unseen, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(attention_uncovered, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(rotary, CudaBackends);

}  // namespace fedlora::tests
