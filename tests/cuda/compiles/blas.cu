// SPDX-License-Identifier: Apache-2.0
// The products of cuBLAS in every type: what nvcc_compiles.sh compiles.
#include "fedlora/backend/cuda/blas.cuh"

namespace fedlora::cuda {

template <class T>
void instantiate(MatrixView<T> m, MatrixView<float> sums, Stream stream, FloatMath math) {
  Blas blas(DeviceMemory(), stream);
  blas.multiply<T>(false, true, m.rows, m.cols, m.cols, 1.0f, m.data, m.stride, m.data, m.stride, 0.0f, m.data,
                   m.stride, math);
  blas.multiply<T>(true, false, m.rows, m.cols, m.cols, 1.0f, m.data, m.stride, m.data, m.stride, 1.0f, sums.data,
                   sums.stride, math);
  blas.multiply_bias<T>(m, m, m.data, m, math);
}
template void instantiate<float>(MatrixView<float>, MatrixView<float>, Stream, FloatMath);
template void instantiate<Bf16>(MatrixView<Bf16>, MatrixView<float>, Stream, FloatMath);
template void instantiate<Half>(MatrixView<Half>, MatrixView<float>, Stream, FloatMath);

}  // namespace fedlora::cuda
