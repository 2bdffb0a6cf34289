// SPDX-License-Identifier: Apache-2.0
// The kernels that are the same for every type.
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/loss.cuh"
#include "fedlora/backend/cuda/optimizer_state.cuh"

namespace fedlora::cuda {

template void launch<PresetKernel<float>>(Stream, Grid, const PresetKernel<float>&);  // gradients in float32
template void launch<LossWeightKernel>(Stream, Grid, const LossWeightKernel&);
template void launch<SumLossesKernel>(Stream, Grid, const SumLossesKernel&);
template void launch<SquaresKernel>(Stream, Grid, const SquaresKernel&);
template void launch<NormKernel>(Stream, Grid, const NormKernel&);
template void launch<UpdateScaleKernel>(Stream, Grid, const UpdateScaleKernel&);
template void launch<RecordStepKernel>(Stream, Grid, const RecordStepKernel&);

}  // namespace fedlora::cuda
