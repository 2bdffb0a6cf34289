// SPDX-License-Identifier: Apache-2.0
// The functions of cuBLAS and cuBLASLt that fedlora calls, for programs that travel without these libraries (half a
// gigabyte): the first call opens them, as the dynamic linker finds them (LD_LIBRARY_PATH, the program's RUNPATH) or in
// the toolkit's usual place. Where they are not found the call throws a CudaError that names what was tried.
#include <cublasLt.h>
#include <cublas_v2.h>
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "fedlora/core/error.hpp"

namespace {

constexpr const char* toolkit_place = "/usr/local/cuda/lib64/";

/// An open library; it stays open.
class Library {
 public:
  explicit Library(const std::string& name) : name_(name + ".so." + std::to_string(CUBLAS_VER_MAJOR)) {
    std::string reasons;
    for (const std::string& place : {std::string(), std::string(toolkit_place)}) {
      handle_ = dlopen((place + name_).c_str(), RTLD_NOW | RTLD_GLOBAL);
      if (handle_ != nullptr) return;
      reasons += (reasons.empty() ? "" : "; ") + std::string(dlerror());
    }
    fedlora::fail<fedlora::CudaError>(name_, "a library that can be opened", reasons);
  }

  /// The function of that name, with the type of `like`.
  template <class Function>
  Function* find(const char* name, Function*) const {
    void* const address = dlsym(handle_, name);
    if (address == nullptr) fedlora::fail<fedlora::CudaError>(name_, std::string("the function ") + name, "none");
    return reinterpret_cast<Function*>(address);
  }

 private:
  std::string name_;
  void* handle_ = nullptr;
};

const Library& blas() {
  static const Library library("libcublas");
  return library;
}
const Library& lt() {
  static const Library library("libcublasLt");
  return library;
}

}  // namespace

#define FORWARD(library, function, ...)                            \
  static auto* const found = library().find(#function, &function); \
  return found(__VA_ARGS__)

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) { FORWARD(blas, cublasCreate_v2, handle); }
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) { FORWARD(blas, cublasDestroy_v2, handle); }
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  FORWARD(blas, cublasSetStream_v2, handle, stream);
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, std::size_t bytes) {
  FORWARD(blas, cublasSetWorkspace_v2, handle, workspace, bytes);
}
cublasStatus_t cublasSetAtomicsMode(cublasHandle_t handle, cublasAtomicsMode_t mode) {
  FORWARD(blas, cublasSetAtomicsMode, handle, mode);
}
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  FORWARD(blas, cublasSetMathMode, handle, mode);
}
cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb,
                               std::int64_t m, std::int64_t n, std::int64_t k, const void* alpha, const void* a,
                               cudaDataType a_type, std::int64_t lda, const void* b, cudaDataType b_type,
                               std::int64_t ldb, const void* beta, void* c, cudaDataType c_type, std::int64_t ldc,
                               cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
  FORWARD(blas, cublasGemmEx_64, handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c,
          c_type, ldc, compute, algorithm);
}
const char* cublasGetStatusString(cublasStatus_t status) { FORWARD(blas, cublasGetStatusString, status); }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { FORWARD(lt, cublasLtCreate, handle); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { FORWARD(lt, cublasLtDestroy, handle); }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t compute, cudaDataType scale) {
  FORWARD(lt, cublasLtMatmulDescCreate, made, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
  FORWARD(lt, cublasLtMatmulDescDestroy, operation);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  FORWARD(lt, cublasLtMatmulDescSetAttribute, operation, attribute, value, bytes);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t cols, std::int64_t leading) {
  FORWARD(lt, cublasLtMatrixLayoutCreate, made, type, rows, cols, leading);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  FORWARD(lt, cublasLtMatrixLayoutDestroy, layout);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
  FORWARD(lt, cublasLtMatmulPreferenceCreate, made);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  FORWARD(lt, cublasLtMatmulPreferenceDestroy, preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  FORWARD(lt, cublasLtMatmulPreferenceSetAttribute, preference, attribute, value, bytes);
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* count) {
  FORWARD(lt, cublasLtMatmulAlgoGetHeuristic, handle, operation, a, b, c, d, preference, wanted, results, count);
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              std::size_t bytes, cudaStream_t stream) {
  FORWARD(lt, cublasLtMatmul, handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
          algorithm, workspace, bytes, stream);
}

}  // extern "C"
