// SPDX-License-Identifier: Apache-2.0
// What one level of vector instructions brings to the programs: its loops, and Eigen's products compiled for it.
#pragma once

#include "fedlora/backend/cpu/loops.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::examples {

/// C = alpha · op(A) · op(B) + beta · C, as a GEMM policy has it (backend/concepts.hpp).
template <class T>
using Product = void (*)(bool transpose_a, bool transpose_b, Index m, Index n, Index k, T alpha, const T* a, Index lda,
                         const T* b, Index ldb, T beta, T* c, Index ldc);

struct CpuLevel {
  const char* name;  ///< sse2, avx2, avx512, …
  const cpu::Loops<float>* float_loops;
  const cpu::Loops<double>* double_loops;
  Product<float> float_product;
  Product<double> double_product;
};

}  // namespace fedlora::examples
