// SPDX-License-Identifier: Apache-2.0
// The operations that move rows, in every type.
#include "fedlora/backend/cuda/rows.cuh"

namespace fedlora::cuda {

template <class T>
void instantiate(MatrixView<T> m, MatrixView<const float> angles, const std::int32_t* numbers, Stream stream) {
  const MatrixView<const T> tables[3] = {m, m, m};
  const std::int32_t* const ids[3] = {numbers, numbers, numbers};
  embed<T>(tables, ids, m, stream);
  gather_rows<T>(m, numbers, m, stream);
  scatter_rows_add<T>(m, numbers, m, stream);
  mean_rows<T>(m, numbers, m, stream);
  mean_rows_backward<T>(m, numbers, m, stream);
  rotate<T>(m, 1, 2, numbers, angles, angles, false, stream);
}
template void instantiate<float>(MatrixView<float>, MatrixView<const float>, const std::int32_t*, Stream);
template void instantiate<Bf16>(MatrixView<Bf16>, MatrixView<const float>, const std::int32_t*, Stream);
template void instantiate<Half>(MatrixView<Half>, MatrixView<const float>, const std::int32_t*, Stream);

}  // namespace fedlora::cuda
