// SPDX-License-Identifier: Apache-2.0
// What is done to every element by itself, sums of columns, conversions, in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void activation_forward<T>(Activation, MatrixView<const T>, const T*, MatrixView<T>, Stream);
template void activation_backward<T>(Activation, MatrixView<const T>, const T*, MatrixView<T>, Stream);
template void gated_forward<T>(Activation, MatrixView<const T>, MatrixView<const T>, MatrixView<T>, Stream);
template void gated_backward<T>(Activation, MatrixView<const T>, MatrixView<const T>, MatrixView<const T>,
                                MatrixView<T>, MatrixView<T>, Stream);
template void add_residual<T>(MatrixView<T>, const T*, MatrixView<const T>, const Dropout&, const std::int32_t*, Index,
                              Index, Stream);
template void dropout<T>(const Dropout&, MatrixView<const T>, MatrixView<T>, const std::int32_t*, Index, Index, Stream);
template void copy<T>(MatrixView<const T>, MatrixView<T>, Stream);
template void add<T>(MatrixView<const T>, MatrixView<T>, Stream);
template void fill_zero<T>(MatrixView<T>, Stream);
template void sum_rows<T>(MatrixView<const T>, float*, std::span<std::byte>, Stream);
template void convert<T, float>(const float*, T*, Index, Stream);
template void convert<T, Bf16>(const Bf16*, T*, Index, Stream);
template void convert<T, Half>(const Half*, T*, Index, Stream);
template void launch<PresetKernel<T>>(Stream, Grid, const PresetKernel<T>&);  // before a product

}  // namespace fedlora::cuda
