// SPDX-License-Identifier: Apache-2.0
// The level that was chosen (choice.hpp), as the backend's parts: loops and Eigen's products are compiled once for a
// level, and not for each family of models.
#pragma once

#include <type_traits>

#include "cpu/choice.hpp"
#include "cpu/level.hpp"
#include "fedlora/backend/cpu/gemm_eigen.hpp"

namespace fedlora::examples {

/// As backends ask for loops.
struct ChosenLevel {
  template <class T>
  static const cpu::Loops<T>& loops();
};
template <>
inline const cpu::Loops<float>& ChosenLevel::loops<float>() {
  return *chosen_cpu().float_loops;
}
template <>
inline const cpu::Loops<double>& ChosenLevel::loops<double>() {
  return *chosen_cpu().double_loops;
}

/// Eigen's products.
struct ChosenEigenGemm {
  static constexpr const char* name = EigenGemm::name;
  using ThreadScope = EigenGemm::ThreadScope;

  template <class T>
  static void multiply(bool transpose_a, bool transpose_b, Index m, Index n, Index k, T alpha, const T* a, Index lda,
                       const T* b, Index ldb, T beta, T* c, Index ldc) {
    if constexpr (std::is_same_v<T, float>)
      chosen_cpu().float_product(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    else
      chosen_cpu().double_product(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }
};

}  // namespace fedlora::examples
