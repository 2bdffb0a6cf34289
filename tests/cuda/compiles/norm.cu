// SPDX-License-Identifier: Apache-2.0
// The kernels of norm.cuh in every type: what nvcc_compiles.sh compiles.
#include "fedlora/backend/cuda/norm.cuh"

namespace fedlora::cuda {

template void norm_forward<float>(NormKind, MatrixView<const float>, const float*, const float*, double,
                                  MatrixView<float>, MatrixView<float>, Stream);
template void norm_forward<Bf16>(NormKind, MatrixView<const Bf16>, const Bf16*, const Bf16*, double, MatrixView<Bf16>,
                                 MatrixView<float>, Stream);
template void norm_forward<Half>(NormKind, MatrixView<const Half>, const Half*, const Half*, double, MatrixView<Half>,
                                 MatrixView<float>, Stream);
template void norm_backward<float>(NormKind, MatrixView<const float>, MatrixView<const float>, MatrixView<const float>,
                                   const float*, MatrixView<float>, bool, Stream);
template void norm_backward<Bf16>(NormKind, MatrixView<const Bf16>, MatrixView<const Bf16>, MatrixView<const float>,
                                  const Bf16*, MatrixView<Bf16>, bool, Stream);
template void norm_backward<Half>(NormKind, MatrixView<const Half>, MatrixView<const Half>, MatrixView<const float>,
                                  const Half*, MatrixView<Half>, bool, Stream);

}  // namespace fedlora::cuda
