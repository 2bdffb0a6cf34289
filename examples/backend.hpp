// SPDX-License-Identifier: Apache-2.0
// What the programs compute with: the CPU, with oneDNN's matrix products where the build found it, Eigen's otherwise.
#pragma once

#include <type_traits>

#include "cpu/chosen.hpp"
#include "fedlora/backend/cpu.hpp"
#ifdef FEDLORA_HAVE_ONEDNN
#include "fedlora/backend/cpu/gemm_onednn.hpp"
#endif

namespace fedlora::examples {

#ifdef FEDLORA_HAVE_ONEDNN
template <class T>
using ProgramGemm = std::conditional_t<std::is_same_v<T, float>, OneDnnGemm, ChosenEigenGemm>;  // it has no float64
#else
template <class T>
using ProgramGemm = ChosenEigenGemm;
#endif

template <class T>
using ProgramBackend = CpuBackend<T, ProgramGemm<T>, ChosenLevel>;

}  // namespace fedlora::examples
