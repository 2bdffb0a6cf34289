// SPDX-License-Identifier: Apache-2.0
// The level of vector instructions that a unit is compiled for: the one that its own flags allow. The loops of the CPU
// backend live in an inline namespace of that name, and CpuBackend has it in its type, so that units of several levels
// link into one program, for a processor that has them all: of what has no level in its name, from Arena to FedAvg, the
// linker takes one unit's for every other. So for Eigen, too: where units of several levels use EigenGemm, each defines
// it as a name of its own (-DEigen=Eigen_avx2). A program that finds its level when it runs compiles nothing but
// own_loops for each, and the rest for the lowest (CpuBackend's third argument; examples/cpu).
#pragma once

#include <cstddef>

#include "fedlora/core/standard.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define FEDLORA_CPU_LEVEL avx512  // x86-64-v4
#elif defined(__AVX2__) && defined(__FMA__)
#define FEDLORA_CPU_LEVEL avx2  // x86-64-v3
#elif defined(__SSE2__)
#define FEDLORA_CPU_LEVEL sse2  // any x86-64
#elif defined(__aarch64__)
#define FEDLORA_CPU_LEVEL neon
#else
#define FEDLORA_CPU_LEVEL portable
#endif

namespace fedlora::cpu {

/// What loops are cut to.
struct LevelTraits {
  const char* name;
  std::size_t vector_bytes;
  int registers;  ///< that hold a vector
  bool fused;     ///< a product is added in one instruction, without a register of its own
};

namespace levels {
inline constexpr LevelTraits avx512{"avx512", 64, 32, true}, avx2{"avx2", 32, 16, true}, sse2{"sse2", 16, 16, false},
    neon{"neon", 16, 32, true}, portable{"portable", 16, 16, false};
}  // namespace levels

inline namespace FEDLORA_CPU_LEVEL {

/// This unit's.
struct Level {
  static constexpr const char* name = levels::FEDLORA_CPU_LEVEL.name;
  static constexpr std::size_t vector_bytes = levels::FEDLORA_CPU_LEVEL.vector_bytes;
  static constexpr int registers = levels::FEDLORA_CPU_LEVEL.registers;
  static constexpr bool fused = levels::FEDLORA_CPU_LEVEL.fused;
};

}  // namespace FEDLORA_CPU_LEVEL
}  // namespace fedlora::cpu
