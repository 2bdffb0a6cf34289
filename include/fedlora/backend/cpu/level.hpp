// SPDX-License-Identifier: Apache-2.0
// The level of vector instructions that a unit is compiled for: the one that its own flags allow. The loops of the CPU
// backend live in an inline namespace of that name, and CpuBackend has it in its type, so that units of several levels
// link into one program. Eigen's functions have no such name: where units of several levels use EigenGemm, each defines
// Eigen as a name of its own (-DEigen=Eigen_avx2), or the linker takes one level's for all.
#pragma once

#include <cstddef>

#include "fedlora/core/standard.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define FEDLORA_CPU_LEVEL avx512  // x86-64-v4
#elif defined(__AVX2__) && defined(__FMA__)
#define FEDLORA_CPU_LEVEL avx2  // x86-64-v3
#elif defined(__SSE2__)
#define FEDLORA_CPU_LEVEL sse2  // any x86-64
#elif defined(__ARM_NEON)
#define FEDLORA_CPU_LEVEL neon  // any AArch64
#else
#define FEDLORA_CPU_LEVEL portable
#endif

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// What loops are cut to.
struct Level {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
  static constexpr const char* name = "avx512";
  static constexpr std::size_t vector_bytes = 64;
  static constexpr int registers = 32;  ///< that hold a vector
  static constexpr bool fused = true;   ///< a product is added in one instruction, without a register of its own
#elif defined(__AVX2__) && defined(__FMA__)
  static constexpr const char* name = "avx2";
  static constexpr std::size_t vector_bytes = 32;
  static constexpr int registers = 16;
  static constexpr bool fused = true;
#elif defined(__SSE2__)
  static constexpr const char* name = "sse2";
  static constexpr std::size_t vector_bytes = 16;
  static constexpr int registers = 16;
  static constexpr bool fused = false;
#elif defined(__ARM_NEON)
  static constexpr const char* name = "neon";
  static constexpr std::size_t vector_bytes = 16;
  static constexpr int registers = 32;
  static constexpr bool fused = true;
#else
  static constexpr const char* name = "portable";
  static constexpr std::size_t vector_bytes = 16;
  static constexpr int registers = 16;
  static constexpr bool fused = false;
#endif
};

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
