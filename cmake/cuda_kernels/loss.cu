// SPDX-License-Identifier: Apache-2.0
// Losses in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/loss.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void cross_entropy<T>(MatrixView<T>, const std::int32_t*, LossWeights, float*, Stream);
template void cross_entropy_loss<T>(MatrixView<const T>, const std::int32_t*, float*, std::int32_t*, Stream);
template void mean_squared_error<T>(MatrixView<T>, const float*, LossWeights, float*, Stream);
template void binary_cross_entropy<T>(MatrixView<T>, const float*, LossWeights, float*, Stream);

}  // namespace fedlora::cuda
