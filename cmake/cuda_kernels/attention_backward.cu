// SPDX-License-Identifier: Apache-2.0
// Attention backward in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/attention_backward.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void attention_backward<T>(const AttentionShape&, const AttentionTables&, MatrixView<const T>,
                                    MatrixView<const T>, MatrixView<const T>, MatrixView<const T>, MatrixView<T>,
                                    MatrixView<T>, MatrixView<T>, std::span<std::byte>, Stream, FloatMath);

}  // namespace fedlora::cuda
