// SPDX-License-Identifier: Apache-2.0
// General matrix products by Eigen: the policy that needs nothing else.
#pragma once

#include <Eigen/Core>

#include "fedlora/backend/cpu/level.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// A GEMM policy of CpuBackend: C = alpha · op(A) · op(B) + beta · C, row-major, single thread. `beta == 0` never reads
/// C.
struct EigenGemm {
  static constexpr const char* name = "Eigen";

  /// What a worker thread holds while it calls `multiply`.
  struct ThreadScope {};

  /// op(A) is (m, k), op(B) is (k, n), C is (m, n); `lda`… are row strides of the stored matrices.
  template <class T>
  static void multiply(bool transpose_a, bool transpose_b, Index m, Index n, Index k, T alpha, const T* a, Index lda,
                       const T* b, Index ldb, T beta, T* c, Index ldc) {
    using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using Stride = Eigen::OuterStride<>;
    using ConstMap = Eigen::Map<const RowMajor, Eigen::Unaligned, Stride>;
    Eigen::Map<RowMajor, Eigen::Unaligned, Stride> out(c, m, n, Stride(ldc));
    if (beta == T(0))
      out.setZero();
    else if (beta != T(1))
      out *= beta;
    if (k == 0) return;
    const ConstMap left(a, transpose_a ? k : m, transpose_a ? m : k, Stride(lda));
    const ConstMap right(b, transpose_b ? n : k, transpose_b ? k : n, Stride(ldb));
    if (!transpose_a && !transpose_b)
      out.noalias() += alpha * left * right;
    else if (!transpose_a)
      out.noalias() += alpha * left * right.transpose();
    else if (!transpose_b)
      out.noalias() += alpha * left.transpose() * right;
    else
      out.noalias() += alpha * left.transpose() * right.transpose();
  }
};

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL

namespace fedlora {
using cpu::EigenGemm;
}
