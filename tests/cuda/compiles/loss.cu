// SPDX-License-Identifier: Apache-2.0
// The losses, in every type.
#include "fedlora/backend/cuda/loss.cuh"

namespace fedlora::cuda {

template <class T>
void instantiate(MatrixView<T> m, std::int32_t* numbers, float* losses, double* sum, Stream stream) {
  cross_entropy<T>(m, numbers, losses, losses, stream);
  cross_entropy_loss<T>(m, numbers, losses, numbers, stream);
  sum_losses(losses, m.rows, sum, false, stream);
  sum_losses(losses, numbers, m.rows, sum, true, stream);
}
template void instantiate<float>(MatrixView<float>, std::int32_t*, float*, double*, Stream);
template void instantiate<Bf16>(MatrixView<Bf16>, std::int32_t*, float*, double*, Stream);
template void instantiate<Half>(MatrixView<Half>, std::int32_t*, float*, double*, Stream);

}  // namespace fedlora::cuda
