// SPDX-License-Identifier: Apache-2.0
// General matrix products by oneDNN (float) for CpuBackend<float, OneDnnGemm>. Needs <oneapi/dnnl/dnnl.h> and the
// target fedlora::onednn; double precision goes to Eigen, because oneDNN has none.
#pragma once

#include <oneapi/dnnl/dnnl.h>

#if __has_include(<omp.h>)
#include <omp.h>
#else
extern "C" int omp_get_max_threads(void);
extern "C" void omp_set_num_threads(int);
#endif

#include <cstddef>
#include <cstdlib>
#include <string>
#include <type_traits>

#include "fedlora/backend/cpu/gemm_eigen.hpp"
#include "fedlora/backend/cpu/level.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// The GEMM policy over dnnl_sgemm: C = alpha · op(A) · op(B) + beta · C, row-major, one thread per worker.
/// A thread that computes must not take a signal with a handler meanwhile: oneDNN 2.6 was seen to corrupt memory then. Block
/// signals there, and wait for them on another thread (examples/federation does).
struct OneDnnGemm {
  static constexpr const char* name = "oneDNN";

  /// While it lives, products on this thread use one OpenMP thread: clients are the parallel dimension, and bits must
  /// not depend on the number of threads.
  class ThreadScope {
   public:
    ThreadScope() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
    ~ThreadScope() { omp_set_num_threads(before_); }
    ThreadScope(const ThreadScope&) = delete;
    ThreadScope& operator=(const ThreadScope&) = delete;

   private:
    int before_;
  };

  /// Shapes as in EigenGemm::multiply.
  template <class T>
  static void multiply(bool transpose_a, bool transpose_b, Index m, Index n, Index k, T alpha, const T* a, Index lda,
                       const T* b, Index ldb, T beta, T* c, Index ldc) {
    if constexpr (std::is_same_v<T, float>) {
      if (m * n * k >= large_product) fill_thread_cache();
      const dnnl_status_t status =
          dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
      if (status != dnnl_success)
        fail<Error>("dnnl_sgemm of (" + std::to_string(m) + ", " + std::to_string(k) + ") by (" + std::to_string(k) +
                        ", " + std::to_string(n) + ")",
                    "success", "status " + std::to_string(static_cast<int>(status)));
    } else {
      EigenGemm::multiply(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    }
  }

 private:
  static constexpr Index large_product = Index{1} << 26;  ///< a millisecond

  /// oneDNN packs the operands of a product in memory of posix_memalign, megabytes that it gives back afterwards. glibc
  /// before 2.38 cuts off what alignment leaves over, a piece of up to 160 bytes, and while malloc's cache of the
  /// thread has room for a piece of its size, the memory behind it does not become whole again: the next product finds
  /// another place, up to seven times, and all of them stay with the process. Where the cache is full, pieces are
  /// joined.
  static void fill_thread_cache() {
#if defined(__GLIBC__)
    for (std::size_t bytes = 24; bytes < 184; bytes += 16) {  // one size class after the other
      void* volatile pieces[7];                               // no compiler may leave them out
      for (void* volatile& piece : pieces) piece = std::malloc(bytes);
      for (void* const piece : pieces) std::free(piece);
    }
#endif
  }
};

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL

namespace fedlora {
using cpu::OneDnnGemm;
}
