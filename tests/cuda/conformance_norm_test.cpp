// SPDX-License-Identifier: Apache-2.0
// Norms and residual sums of the CUDA backend, held to what every backend is held to.
#include "backend/norm.hpp"
#include "cuda/backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(norm, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(norm_mean, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(residual, CudaBackends);

}  // namespace fedlora::tests
