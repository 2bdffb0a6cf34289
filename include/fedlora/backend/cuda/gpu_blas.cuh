// SPDX-License-Identifier: Apache-2.0
// cuBLAS and cuBLASLt behind blas.cuh. Programs link -lcublas -lcublasLt.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && !defined(FEDLORA_CUDA_ON_HOST)

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/product.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/error.hpp"

namespace fedlora::cuda::detail {

inline void check_blas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) fail<CudaError>(call, "success", cublasGetStatusString(status));
}

template <class T>
inline constexpr cudaDataType_t data_type = std::is_same_v<T, float>  ? CUDA_R_32F
                                            : std::is_same_v<T, Bf16> ? CUDA_R_16BF
                                                                      : CUDA_R_16F;

/// Sums are float32 in any case. Without FAST_TF32, float operands are multiplied as they are.
template <class T>
constexpr cublasComputeType_t compute_type(FloatMath math) {
  return std::is_same_v<T, float> && math == FloatMath::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

constexpr cublasOperation_t operation_of(bool transpose) { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; }

/// One handle of each library, and the memory both work in.
class BlasHandle {
 public:
  BlasHandle(const DeviceMemory& memory, Stream stream)
      : stream_(stream), workspace_(memory, workspace_bytes, "the workspace of cuBLAS", stream) {
    check_blas(cublasCreate(blas_.out()), "cublasCreate");
    check_blas(cublasSetStream(blas_.get(), stream), "cublasSetStream");  // before the workspace, which it takes away
    check_blas(cublasSetWorkspace(blas_.get(), workspace_.data(), workspace_.size()), "cublasSetWorkspace");
    check_blas(cublasSetAtomicsMode(blas_.get(), CUBLAS_ATOMICS_NOT_ALLOWED), "cublasSetAtomicsMode");
    // Sums that are split over blocks stay float32 until the end.
    constexpr auto math =
        static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    check_blas(cublasSetMathMode(blas_.get(), math), "cublasSetMathMode");
    check_blas(cublasLtCreate(lt_.out()), "cublasLtCreate");
  }

  template <class T, class C>
  void multiply(const ColumnMajorProduct<T, C>& p, FloatMath math) {
    const cublasStatus_t status =
        cublasGemmEx_64(blas_.get(), operation_of(p.transpose_a), operation_of(p.transpose_b), p.m, p.n, p.k, &p.alpha,
                        p.a, data_type<T>, p.lda, p.b, data_type<T>, p.ldb, &p.beta, p.c, data_type<C>, p.ldc,
                        compute_type<T>(math), CUBLAS_GEMM_DEFAULT);
    if (status != CUBLAS_STATUS_SUCCESS)
      fail<CudaError>(std::string("cublasGemmEx of ") + type_name<T>() + ", " + p.text(), "success",
                      cublasGetStatusString(status));
  }

  /// The product plus a bias for every row of C; false if cuBLASLt has no algorithm for it.
  /// \pre alpha == 1, beta == 0; all pointers and leading dimensions are multiples of 16 bytes
  template <class T>
  bool multiply_bias(const ColumnMajorProduct<T, T>& p, const T* bias, FloatMath math) {
    Plan& plan = plan_for(p, math);
    if (!plan.found) return false;
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    const cublasStatus_t status =
        cublasLtMatmul(lt_.get(), plan.operation.get(), &p.alpha, p.a, plan.a.get(), p.b, plan.b.get(), &p.beta, p.c,
                       plan.c.get(), p.c, plan.c.get(), &plan.algorithm, workspace_.data(), workspace_.size(), stream_);
    if (status != CUBLAS_STATUS_SUCCESS)
      fail<CudaError>(std::string("cublasLtMatmul of ") + type_name<T>() + ", " + p.text(), "success",
                      cublasGetStatusString(status));
    return true;
  }

 private:
  /// What NVIDIA recommends for Hopper. The same on every device: what is chosen may depend on it.
  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20;
  static constexpr std::size_t most_plans = 4096;

  using Operation = Handle<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
  using Layout = Handle<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
  using Preference = Handle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

  /// How cuBLASLt computes products of one shape.
  struct Plan {
    bool found = false;
    Operation operation;
    Layout a, b, c;
    cublasLtMatmulAlgo_t algorithm{};
  };

  template <class Value>
  static void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    check_blas(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof(value)),
               "cublasLtMatmulDescSetAttribute");
  }
  template <class Value>
  static void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
               "cublasLtMatmulPreferenceSetAttribute");
  }

  template <class T>
  Plan& plan_for(const ColumnMajorProduct<T, T>& p, FloatMath math) {
    const std::array<Index, 10> key = {p.m,
                                       p.n,
                                       p.k,
                                       p.lda,
                                       p.ldb,
                                       p.ldc,
                                       p.transpose_a,
                                       p.transpose_b,
                                       static_cast<Index>(data_type<T>),
                                       static_cast<Index>(compute_type<T>(math))};
    if (const auto known = plans_.find(key); known != plans_.end()) return known->second;
    if (plans_.size() >= most_plans) plans_.clear();  // batches of ever new sizes must not fill the memory
    return plans_.emplace(key, make_plan(p, math)).first->second;
  }

  template <class T>
  Plan make_plan(const ColumnMajorProduct<T, T>& p, FloatMath math) {
    Plan plan;
    check_blas(cublasLtMatmulDescCreate(plan.operation.out(), compute_type<T>(math), CUDA_R_32F),
               "cublasLtMatmulDescCreate");
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, operation_of(p.transpose_a));
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, operation_of(p.transpose_b));
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    // The choice depends on how the bias is aligned. It must be good for all of them, so it sees one that is a
    // multiple of 16 and no more.
    const void* const some_bias = workspace_.data() + 16;
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, some_bias);
    const auto layout = [](Layout& made, Index rows, Index cols, Index ld) {
      check_blas(cublasLtMatrixLayoutCreate(made.out(), data_type<T>, static_cast<std::uint64_t>(rows),
                                            static_cast<std::uint64_t>(cols), ld),
                 "cublasLtMatrixLayoutCreate");
    };
    layout(plan.a, p.a_rows(), p.a_cols(), p.lda);
    layout(plan.b, p.b_rows(), p.b_cols(), p.ldb);
    layout(plan.c, p.m, p.n, p.ldc);

    Preference preference;
    check_blas(cublasLtMatmulPreferenceCreate(preference.out()), "cublasLtMatmulPreferenceCreate");
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(workspace_.size()));
    // Partial sums in float32, added in order: neither in place nor in the type of the output.
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(preference, attribute, std::uint32_t{16});

    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(lt_.get(), plan.operation.get(), plan.a.get(), plan.b.get(), plan.c.get(),
                                       plan.c.get(), preference.get(), 1, &result, &count);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) check_blas(status, "cublasLtMatmulAlgoGetHeuristic");
    plan.found = status == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    plan.algorithm = result.algo;
    return plan;
  }

  Stream stream_;
  DeviceBuffer workspace_;
  Handle<cublasHandle_t, cublasDestroy> blas_;
  Handle<cublasLtHandle_t, cublasLtDestroy> lt_;
  std::map<std::array<Index, 10>, Plan> plans_;
};

}  // namespace fedlora::cuda::detail

#endif
