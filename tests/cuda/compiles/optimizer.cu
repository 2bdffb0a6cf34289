// SPDX-License-Identifier: Apache-2.0
// The optimizer steps, in every type of shadow.
#include "fedlora/backend/cuda/optimizer.cuh"

namespace fedlora::cuda {

template <class T>
void instantiate(const StepArrays<T>& arrays, float* m, float* v, const StepSegments& segments, StepState* states,
                 std::span<std::byte> workspace, Stream stream) {
  gradient_norm(arrays, segments, states, workspace, stream);
  adamw_step(AdamWParameters{}, arrays, m, v, segments, states, stream);
  sgd_step(SgdParameters{}, arrays, m, segments, states, stream);
  update_scale(default_loss_scaling<T>, segments, states, stream);
}
template void instantiate<float>(const StepArrays<float>&, float*, float*, const StepSegments&, StepState*,
                                 std::span<std::byte>, Stream);
template void instantiate<Bf16>(const StepArrays<Bf16>&, float*, float*, const StepSegments&, StepState*,
                                std::span<std::byte>, Stream);
template void instantiate<Half>(const StepArrays<Half>&, float*, float*, const StepSegments&, StepState*,
                                std::span<std::byte>, Stream);

}  // namespace fedlora::cuda
