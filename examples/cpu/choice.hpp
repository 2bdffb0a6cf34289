// SPDX-License-Identifier: Apache-2.0
// --cpu: which of the levels that the program was built for computes. With FEDLORA_NATIVE there is one, this machine's;
// otherwise all that an x86-64 processor may have, side by side, and the best that is there unless one is asked for.
// Either way loops and Eigen's products are compiled once for a level, and not for each family of models.
#pragma once

#include <string>
#include <type_traits>

#include "cpu/level.hpp"
#include "fedlora/backend/cpu/gemm_eigen.hpp"

namespace fedlora::examples {

/// Fixes the level, and oneDNN's with it; to be called before the first product. `asked` is native or a level's name.
/// \throws UsageError for a level that the program was not built for, or that this processor does not have.
void choose_cpu(const std::string& asked);

/// The level that computes: the best that is there until another is chosen.
const CpuLevel& chosen_cpu();

/// The chosen level, as backends ask for loops.
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

/// Eigen's products, compiled for the chosen level.
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
