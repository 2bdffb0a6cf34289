// SPDX-License-Identifier: Apache-2.0
// Activations of the CUDA backend, held to what every backend is held to.
#include "backend/activation.hpp"
#include "cuda/backends.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_APPLY(activation, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(activation_nan, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(activation_bias, CudaBackends);
TEST_CASE_TEMPLATE_APPLY(gated, CudaBackends);

}  // namespace fedlora::tests
