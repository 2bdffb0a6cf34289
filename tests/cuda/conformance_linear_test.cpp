// SPDX-License-Identifier: Apache-2.0
// Linear layers of the CUDA backend, held to what every backend is held to.
#include "backend/linear.hpp"
#include "cuda/backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(linear, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(dense, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(adopt, CudaBackends);

}  // namespace fedlora::tests
