// SPDX-License-Identifier: Apache-2.0
// What both faces of the thin layer (gpu_block.cuh, host_block.cuh) speak of: operands of tensor-core products, vectors
// of 16 bytes, and the sizes of a launch.
#pragma once

#include <atomic>
#include <cstdint>

#include "fedlora/core/half.hpp"
#include "fedlora/core/random.hpp"

#if defined(__CUDACC__)
#define FEDLORA_DEVICE __device__ __forceinline__
#elif defined(FEDLORA_CUDA_ON_HOST) || defined(FEDLORA_CUDA_COMPILED)
#define FEDLORA_DEVICE inline
#else
#error \
    "fedlora: this header holds CUDA kernels; compile it with nvcc, with -DFEDLORA_CUDA_COMPILED where they are compiled elsewhere, or with -DFEDLORA_CUDA_ON_HOST to run them here"
#endif
// A loop that nvcc must leave a loop, because it runs once or twice, or where all its copies would only take registers
// from what runs always.
#if defined(__CUDACC__)
#define FEDLORA_ROLLED _Pragma("unroll 1")
#else
#define FEDLORA_ROLLED
#endif
#if defined(FEDLORA_CUDA_ON_HOST) && defined(__CUDACC__)
#error "fedlora: FEDLORA_CUDA_ON_HOST runs kernels on the host; it does not go with nvcc"
#undef FEDLORA_DEVICE
#endif

#if defined(FEDLORA_DEVICE)  // without it the line above is the only error

namespace fedlora::cuda {

/// One lane's part of the A operand of `mma`. With g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for
/// mma.m16n8k16" and "mma.m16n8k8"):
///   16 bits, (16, 16): words hold elements (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) and each one's right
///                      neighbour in the upper half
///   tf32, (16, 8):     words hold elements (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
struct FragmentA {
  std::uint32_t words[4];
};

/// One lane's part of the B operand.
///   16 bits, (16, 8): words hold elements (2t, g), (2t + 8, g) and each one's lower neighbour in the upper half
///   tf32, (8, 8):     words hold elements (t, g), (t + 4, g)
struct FragmentB {
  std::uint32_t words[2];
};

/// One lane's part of the (16, 8) sums: elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
struct Accumulator {
  float sums[4];
};

/// The length of the inner dimension of one `mma`.
template <class T>
inline constexpr int mma_depth = 32 / static_cast<int>(sizeof(T));

/// Elements in 16 bytes, the longest access of one thread.
template <class T>
inline constexpr int vector_length = 16 / static_cast<int>(sizeof(T));

/// 16 bytes of elements.
template <class T>
struct alignas(16) Vector {
  T elements[vector_length<T>];
};

/// Shared memory that a block may have on every architecture from sm_80 on (sm_86 and sm_89 have the least).
inline constexpr int shared_bytes_everywhere = 99 * 1024;

/// Shared memory that a block may have without its kernel's limit being raised.
inline constexpr int shared_bytes_unasked = 48 * 1024;

namespace detail {

/// Before a launch with so much shared memory on a device: raises the kernel's limit there, the first time that it has
/// to be, with set_limit(limit). The limit belongs to the kernel and not to a launch: one that followed each launch's
/// own need would be lowered by one thread under the launch of another. So there is one value, which is enough for all.
template <class Kernel, class SetLimit>
void raise_shared_limit(int bytes, int device, SetLimit&& set_limit) {
  static std::atomic<std::uint64_t> raised{0};  // a bit for each device
  const std::uint64_t bit = std::uint64_t{1} << (device % 64);
  if (bytes <= shared_bytes_unasked || (raised.load(std::memory_order_acquire) & bit) != 0) return;
  set_limit(shared_bytes_everywhere);  // by two threads at once: the same value
  raised.fetch_or(bit, std::memory_order_release);
}

}  // namespace detail

/// How many blocks a launch has. A kernel says itself how many threads a block has and how much shared memory.
struct Grid {
  std::int64_t x = 1;  ///< at most 2^31 - 1
  std::int64_t y = 1;  ///< at most 65535
};

/// The nearest tf32 number (8 exponent, 10 fraction bits), ties away from zero, as the bits of a float.
FEDLORA_HOST_DEVICE constexpr std::uint32_t round_to_tf32(std::uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace fedlora::cuda

#endif
