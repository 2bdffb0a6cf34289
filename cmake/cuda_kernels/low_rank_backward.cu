// SPDX-License-Identifier: Apache-2.0
// Low-rank terms backward in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/low_rank_backward.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void low_rank_backward_group<T>(MatrixView<const T>, std::span<const BackwardTerm<T>>, MatrixView<T>,
                                         std::span<std::byte>, Stream, FloatMath);

}  // namespace fedlora::cuda
