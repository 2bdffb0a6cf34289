// SPDX-License-Identifier: Apache-2.0
// The kernels of attention, in every type and width of head: what nvcc_compiles.sh compiles.
#include "fedlora/backend/cuda/attention_backward.cuh"
#include "fedlora/backend/cuda/attention_forward.cuh"

namespace fedlora::cuda {

template <class T>
void instantiate(const AttentionShape& shape, const AttentionTables& tables, MatrixView<T> m,
                 std::span<std::byte> workspace, Stream stream, FloatMath math) {
  attention_forward<T>(shape, tables, m, m, m, m, stream, math);
  attention_backward<T>(shape, tables, m, m, m, m, m, m, m, workspace, stream, math);
}
template void instantiate<float>(const AttentionShape&, const AttentionTables&, MatrixView<float>, std::span<std::byte>,
                                 Stream, FloatMath);
template void instantiate<Bf16>(const AttentionShape&, const AttentionTables&, MatrixView<Bf16>, std::span<std::byte>,
                                Stream, FloatMath);
template void instantiate<Half>(const AttentionShape&, const AttentionTables&, MatrixView<Half>, std::span<std::byte>,
                                Stream, FloatMath);

}  // namespace fedlora::cuda
