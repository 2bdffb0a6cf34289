// SPDX-License-Identifier: Apache-2.0
// What moves and rotates rows in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/rows.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void embed<T>(std::span<const MatrixView<const T>>, std::span<const std::int32_t* const>, MatrixView<T>,
                       Stream);
template void gather_rows<T>(MatrixView<const T>, const std::int32_t*, MatrixView<T>, Stream);
template void scatter_rows_add<T>(MatrixView<const T>, const std::int32_t*, MatrixView<T>, Stream);
template void mean_rows<T>(MatrixView<const T>, const std::int32_t*, MatrixView<T>, Stream);
template void mean_rows_backward<T>(MatrixView<const T>, const std::int32_t*, MatrixView<T>, Stream);
template void rotate<T>(MatrixView<T>, Index, Index, const std::int32_t*, MatrixView<const float>,
                        MatrixView<const float>, bool, Stream);

}  // namespace fedlora::cuda
