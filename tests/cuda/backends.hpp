// SPDX-License-Identifier: Apache-2.0
// The CUDA backend in each of its types, as types that need no argument.
#pragma once

#include <tuple>
#include <type_traits>

#include "fedlora/backend/cuda.cuh"
#include "fedlora/core/half.hpp"

namespace fedlora::tests {

template <class T, cuda::FloatMath Math = cuda::FloatMath::tf32, cuda::LowRankPath Path = cuda::LowRankPath::fused>
struct CudaWith : CudaBackend<T> {
  static constexpr bool rounds_operands = std::is_same_v<T, float> && Math == cuda::FloatMath::tf32;

  CudaWith() : CudaBackend<T>(CudaOptions{.math = Math, .low_rank = Path}) {}
};

struct CudaFloat32 : CudaWith<float, cuda::FloatMath::float32> {};
struct CudaTf32 : CudaWith<float> {};
struct CudaBf16 : CudaWith<Bf16> {};
struct CudaF16 : CudaWith<Half> {};
using CudaBackends = std::tuple<CudaFloat32, CudaTf32, CudaBf16, CudaF16>;

/// Low-rank terms by separate products, which the kernels are compared with.
struct CudaPlainFloat32 : CudaWith<float, cuda::FloatMath::float32, cuda::LowRankPath::plain> {};
struct CudaPlainBf16 : CudaWith<Bf16, cuda::FloatMath::tf32, cuda::LowRankPath::plain> {};
using CudaLowRankBackends = std::tuple<CudaFloat32, CudaTf32, CudaBf16, CudaF16, CudaPlainFloat32, CudaPlainBf16>;

}  // namespace fedlora::tests
