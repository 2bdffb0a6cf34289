// SPDX-License-Identifier: Apache-2.0
// The kernels of pointwise.cuh in every type: what nvcc_compiles.sh compiles.
#include "fedlora/backend/cuda/pointwise.cuh"

namespace fedlora::cuda {

template <class T>
void instantiate(Activation activation, MatrixView<T> m, const Dropout& mask, const std::int32_t* row_numbers,
                 float* sums, std::span<std::byte> workspace, Stream stream) {
  activation_forward<T>(activation, m, m.data, m, stream);
  activation_backward<T>(activation, m, m.data, m, stream);
  gated_forward<T>(activation, m, m, m, stream);
  gated_backward<T>(activation, m, m, m, m, m, stream);
  add_residual<T>(m, m.data, m, mask, row_numbers, 0, m.rows, stream);
  dropout<T>(mask, m, m, row_numbers, 0, m.rows, stream);
  copy<T>(m, m, stream);
  add<T>(m, m, stream);
  fill_zero<T>(m, stream);
  sum_rows<T>(m, sums, workspace, stream);
  convert(m.data, sums, m.rows, stream);
  convert(sums, m.data, m.rows, stream);
}
template void instantiate<float>(Activation, MatrixView<float>, const Dropout&, const std::int32_t*, float*,
                                 std::span<std::byte>, Stream);
template void instantiate<Bf16>(Activation, MatrixView<Bf16>, const Dropout&, const std::int32_t*, float*,
                                std::span<std::byte>, Stream);
template void instantiate<Half>(Activation, MatrixView<Half>, const Dropout&, const std::int32_t*, float*,
                                std::span<std::byte>, Stream);
template void convert(const Half*, Bf16*, Index, Stream);
template void convert(const Bf16*, Half*, Index, Stream);

}  // namespace fedlora::cuda
