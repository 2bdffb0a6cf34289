// SPDX-License-Identifier: Apache-2.0
// Norms in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/norm.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void norm_forward<T>(NormKind, MatrixView<const T>, const T*, const T*, double, MatrixView<T>,
                              MatrixView<float>, Stream);
template void norm_backward<T>(NormKind, MatrixView<const T>, MatrixView<const T>, MatrixView<const float>, const T*,
                               MatrixView<T>, bool, Stream);

}  // namespace fedlora::cuda
