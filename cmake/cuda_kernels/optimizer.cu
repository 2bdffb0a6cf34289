// SPDX-License-Identifier: Apache-2.0
// Optimizer steps whose rounded parameters are in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/optimizer.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void adamw_step<T>(const AdamWParameters&, const StepArrays<T>&, float*, float*, const StepSegments&,
                            StepState*, Stream);
template void sgd_step<T>(const SgdParameters&, const StepArrays<T>&, float*, const StepSegments&, StepState*, Stream);

}  // namespace fedlora::cuda
