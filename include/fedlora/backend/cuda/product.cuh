// SPDX-License-Identifier: Apache-2.0
// What both faces of Blas (gpu_blas.cuh, host_blas.cuh) speak of: a product in the terms of BLAS.
#pragma once

#include <string>
#include <type_traits>

#include "fedlora/backend/cuda/fragment.cuh"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda::detail {

/// C = alpha · op(A) op(B) + beta · C with matrices column by column: op(A) is (m, k), op(B) is (k, n), C is (m, n),
/// and element (i, j) of a stored matrix is data[i + j · ld]. op(X) = Xᵀ where it is said to be transposed.
template <class T, class C>
struct ColumnMajorProduct {
  bool transpose_a, transpose_b;
  Index m, n, k;
  float alpha;
  const T* a;
  Index lda;
  const T* b;
  Index ldb;
  float beta;
  C* c;
  Index ldc;

  /// Shapes of A and B as they are stored.
  Index a_rows() const { return transpose_a ? k : m; }
  Index a_cols() const { return transpose_a ? m : k; }
  Index b_rows() const { return transpose_b ? n : k; }
  Index b_cols() const { return transpose_b ? k : n; }

  /// For messages, row by row again.
  std::string text() const { return shape_text(n, k) + " by " + shape_text(k, m); }
};

/// The row-major product C (m, n) = alpha · op(A) op(B) + beta · C. A row-major matrix is its transpose read column by
/// column, and Cᵀ = op(B)ᵀ op(A)ᵀ: the operands change places, and nothing else.
template <class T, class C>
ColumnMajorProduct<T, C> row_major_product(bool transpose_a, bool transpose_b, Index m, Index n, Index k, float alpha,
                                           const T* a, Index lda, const T* b, Index ldb, float beta, C* c, Index ldc) {
  return {transpose_b, transpose_a, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc};
}

template <class T>
constexpr const char* type_name() {
  return std::is_same_v<T, float> ? "float" : std::is_same_v<T, Half> ? "float16" : "bfloat16";
}

}  // namespace fedlora::cuda::detail

#endif
