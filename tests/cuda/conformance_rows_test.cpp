// SPDX-License-Identifier: Apache-2.0
// Operations on rows of the CUDA backend, held to what every backend is held to.
#include "backend/rows.hpp"
#include "cuda/backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(embedding, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(rows, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(transfers, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(pooling, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(loss, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(target_losses, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(dropout_mask, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(dropout_rate, CudaBackends);

}  // namespace fedlora::tests
