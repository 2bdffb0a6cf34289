// SPDX-License-Identifier: Apache-2.0
// The thin layer on a GPU: each member is one instruction or two (PTX ISA 8.0, sm_80 and newer). With
// FEDLORA_CUDA_COMPILED kernels are compiled elsewhere, once, and any compiler reads this.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "fedlora: kernels need sm_80 or newer; set CMAKE_CUDA_ARCHITECTURES, or nvcc's -arch"
#endif

#if defined(FEDLORA_DEVICE) && !defined(FEDLORA_CUDA_ON_HOST)

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "fedlora/core/error.hpp"

namespace fedlora::cuda {

/// The queue that a launch goes to.
using Stream = cudaStream_t;

namespace detail {

inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) fail<CudaError>(call, "success", cudaGetErrorString(status));
}

}  // namespace detail

#if defined(__CUDACC__)

/// A thread's view of its block of so many threads; see device.cuh for what each member promises.
template <int Threads>
class GpuBlock {
 public:
  FEDLORA_DEVICE explicit GpuBlock(std::byte* shared) : shared_(shared) {}

  FEDLORA_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  FEDLORA_DEVICE static constexpr int threads() { return Threads; }
  FEDLORA_DEVICE int lane() const { return static_cast<int>(threadIdx.x % 32); }
  FEDLORA_DEVICE int warp() const { return static_cast<int>(threadIdx.x / 32); }
  FEDLORA_DEVICE std::int64_t x() const { return blockIdx.x; }
  FEDLORA_DEVICE std::int64_t y() const { return blockIdx.y; }

  FEDLORA_DEVICE void sync() const { __syncthreads(); }
  FEDLORA_DEVICE void sync_warp() const { __syncwarp(); }

  template <class T>
  FEDLORA_DEVICE T* shared(int count) {
    T* const begin = reinterpret_cast<T*>(shared_ + used_);
    used_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
    return begin;
  }

  FEDLORA_DEVICE void restart_shared() { used_ = 0; }

  template <class T>
  FEDLORA_DEVICE T shuffle(T value, int source) const {
    return __shfl_sync(0xffffffffu, value, source);
  }
  template <class T>
  FEDLORA_DEVICE T shuffle_xor(T value, int mask) const {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }
  template <class T>
  FEDLORA_DEVICE T shuffle_down(T value, int distance) const {
    return __shfl_down_sync(0xffffffffu, value, distance);
  }

  template <class T>
  FEDLORA_DEVICE void mma(Accumulator& c, const FragmentA& a, const FragmentB& b) const {
    float(&s)[4] = c.sums;
    const std::uint32_t(&p)[4] = a.words;
    const std::uint32_t(&q)[2] = b.words;
    if constexpr (std::is_same_v<T, Bf16>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
          : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]));
    } else if constexpr (std::is_same_v<T, Half>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
          : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]));
    } else {
      static_assert(std::is_same_v<T, float>);
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
          : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]));
    }
  }

  template <class T>
  FEDLORA_DEVICE void load_matrices(std::uint32_t (&words)[4], const T* row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
  template <class T>
  FEDLORA_DEVICE void load_matrices_transposed(std::uint32_t (&words)[4], const T* row) const {
    static_assert(sizeof(T) == 2);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
  }

  template <class T>
  FEDLORA_DEVICE void copy_async(T* to, const T* from, int bytes) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  }
  template <class T>
  FEDLORA_DEVICE void copy_async_if(bool exists, T* to, const T* from) const {
    asm volatile(
        "{ .reg .pred absent; setp.eq.u32 absent, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, absent; }" ::"r"(
            shared_address(to)),
        "l"(from), "r"(static_cast<std::uint32_t>(exists))
        : "memory");
  }
  FEDLORA_DEVICE void commit_copies() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int Pending>
  FEDLORA_DEVICE void wait_copies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
  }

  template <class T>
  FEDLORA_DEVICE Vector<T> load_vector(const T* from) const {
    return *reinterpret_cast<const Vector<T>*>(from);
  }
  template <class T>
  FEDLORA_DEVICE void store_vector(T* to, const Vector<T>& vector) const {
    // One instruction. A plain assignment becomes several where nvcc cannot tell that the elements are neighbours.
    const auto words = __builtin_bit_cast(Words, vector);
    asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.word[0]),
                 "r"(words.word[1]), "r"(words.word[2]), "r"(words.word[3])
                 : "memory");
  }

 private:
  struct Words {
    std::uint32_t word[4];
  };

  template <class T>
  FEDLORA_DEVICE static std::uint32_t shared_address(const T* at) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(at));
  }

  std::byte* shared_;
  int used_ = 0;
};

namespace detail {

/// The one entry of every kernel.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads) run(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(128) std::byte shared[];
  GpuBlock<Kernel::threads> block(shared);
  kernel(block);
}

}  // namespace detail

/// `launch` of a kernel that is compiled here, whatever else is compiled elsewhere.
template <class Kernel>
void launch_own(Stream stream, Grid grid, const Kernel& kernel) {
  if (grid.x <= 0 || grid.y <= 0) return;
  const int bytes = kernel.shared_bytes();
  int device = 0;
  if (bytes > shared_bytes_unasked) detail::check(cudaGetDevice(&device), "cudaGetDevice");
  detail::raise_shared_limit<Kernel>(bytes, device, [](int limit) {
    detail::check(cudaFuncSetAttribute(detail::run<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, limit),
                  "cudaFuncSetAttribute");
  });
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  detail::run<Kernel><<<blocks, Kernel::threads, static_cast<std::size_t>(bytes), stream>>>(kernel);
  detail::check(cudaGetLastError(), "kernel launch");
}

#else

template <class Kernel>
void launch_own(Stream, Grid, const Kernel&) {
  static_assert(sizeof(Kernel) == 0, "a kernel that is compiled here needs nvcc");
}

#endif

}  // namespace fedlora::cuda

#endif
