// SPDX-License-Identifier: Apache-2.0
// What the programs compute with: the CPU, with oneDNN's matrix products where the build found it, Eigen's otherwise.
#pragma once

#include <type_traits>

#include "fedlora/backend/cpu.hpp"
#ifdef FEDLORA_HAVE_ONEDNN
#include "fedlora/backend/cpu/gemm_onednn.hpp"
#endif

namespace fedlora::examples {

#ifdef FEDLORA_HAVE_ONEDNN
using ProgramGemm = OneDnnGemm;
#else
using ProgramGemm = EigenGemm;
#endif

template <class T>
using ProgramBackend = CpuBackend<T, ProgramGemm>;

/// Whose products those are; oneDNN has none of float64.
template <class T>
constexpr const char* gemm_name() {
  return std::is_same_v<T, float> ? ProgramGemm::name : EigenGemm::name;
}

}  // namespace fedlora::examples
