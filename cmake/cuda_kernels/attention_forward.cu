// SPDX-License-Identifier: Apache-2.0
// Attention forward in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/attention_forward.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void attention_forward<T>(const AttentionShape&, const AttentionTables&, MatrixView<const T>,
                                   MatrixView<const T>, MatrixView<const T>, MatrixView<T>, Stream, FloatMath);

}  // namespace fedlora::cuda
