// SPDX-License-Identifier: Apache-2.0
// Products on the host, as BLAS states them. Products of two elements and their sums are taken in double, where they
// are exact or nearly so, and rounded to float32 at the end and from there to the type of the output.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && defined(FEDLORA_CUDA_ON_HOST)

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "fedlora/backend/cuda/host_capture.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/product.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/shape.hpp"

namespace fedlora::cuda::detail {

class BlasHandle {
 public:
  BlasHandle(const DeviceMemory&, Stream) { ++host::made().blas_handles; }

  template <class T, class C>
  void multiply(const ColumnMajorProduct<T, C>& product, FloatMath math) {
    compute<T, C>(product, nullptr, math);
  }

  template <class T>
  bool multiply_bias(const ColumnMajorProduct<T, T>& product, const T* bias, FloatMath math) {
    check_range("cuda::Blas, bias", bias, static_cast<std::size_t>(product.m) * sizeof(T));
    for (const void* const operand : {static_cast<const void*>(product.a), static_cast<const void*>(product.b),
                                      static_cast<const void*>(product.c), static_cast<const void*>(bias)})
      check_multiple_of_16("an operand", reinterpret_cast<std::uintptr_t>(operand));
    for (const Index leading : {product.lda, product.ldb, product.ldc})
      check_multiple_of_16("a row", static_cast<std::uintptr_t>(leading) * sizeof(T));
    compute<T, T>(product, bias, math);
    return true;
  }

 private:
  /// What the plans of cuBLASLt are told of their operands.
  static void check_multiple_of_16(const char* what, std::uintptr_t bytes) {
    if (bytes % 16 != 0)
      fail<KernelFault>("cuda::Blas, bias", std::string(what) + " on a multiple of 16 bytes",
                        std::to_string(bytes % 16) + " beside one");
  }

  template <class T, class C>
  static void compute(const ColumnMajorProduct<T, C>& p, const C* bias, FloatMath math) {
    check_matrix("cuda::Blas, B", p.a, p.a_rows(), p.a_cols(), p.lda);  // as the caller knows them: row by row
    check_matrix("cuda::Blas, A", p.b, p.b_rows(), p.b_cols(), p.ldb);
    check_matrix("cuda::Blas, C", p.c, p.m, p.n, p.ldc);
    if (!host::runs_at_once()) return;
    const std::vector<double> rows =
        unpacked(p.a, p.m, p.k, p.transpose_a ? p.lda : 1, p.transpose_a ? 1 : p.lda, math);
    const std::vector<double> cols =
        unpacked(p.b, p.n, p.k, p.transpose_b ? 1 : p.ldb, p.transpose_b ? p.ldb : 1, math);
    for (Index j = 0; j < p.n; ++j)
      for (Index i = 0; i < p.m; ++i) {
        const double* const row = rows.data() + i * p.k;
        const double* const col = cols.data() + j * p.k;
        double sums[4] = {};
        Index l = 0;
        for (; l + 4 <= p.k; l += 4)
          for (Index e = 0; e < 4; ++e) sums[e] += row[l + e] * col[l + e];
        for (; l < p.k; ++l) sums[0] += row[l] * col[l];
        double value = static_cast<double>(p.alpha) * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
        C& result = p.c[i + j * p.ldc];
        if (p.beta != 0.0f) value += static_cast<double>(p.beta) * static_cast<double>(static_cast<float>(result));
        if (bias != nullptr) value += static_cast<double>(static_cast<float>(bias[i]));
        result = C(static_cast<float>(value));
      }
  }

  /// Element (i, l) of an operand lies at i · step + l · step_k.
  template <class T>
  static std::vector<double> unpacked(const T* from, Index count, Index k, Index step, Index step_k, FloatMath math) {
    std::vector<double> values(static_cast<std::size_t>(count * k));
    for (Index i = 0; i < count; ++i)
      for (Index l = 0; l < k; ++l) {
        float value = static_cast<float>(from[i * step + l * step_k]);
        if constexpr (std::is_same_v<T, float>)
          if (math == FloatMath::tf32)
            value = __builtin_bit_cast(float, round_to_tf32(__builtin_bit_cast(std::uint32_t, value)));
        values[static_cast<std::size_t>(i * k + l)] = static_cast<double>(value);
      }
    return values;
  }

  template <class U>
  static void check_matrix(const char* where, const U* data, Index rows, Index cols, Index ld) {
    check_range(where, data, static_cast<std::size_t>((cols - 1) * ld + rows) * sizeof(U));
  }
};

}  // namespace fedlora::cuda::detail

#endif
