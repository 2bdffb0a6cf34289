// SPDX-License-Identifier: Apache-2.0
// Every backend of the CPU that is built.
#pragma once

#include <tuple>

#include "fedlora/backend/cpu.hpp"
#if defined(FEDLORA_HAVE_ONEDNN)
#include "fedlora/backend/cpu/gemm_onednn.hpp"
#endif

namespace fedlora::tests {

using CpuBackends = std::tuple<CpuBackend<double>, CpuBackend<float>
#if defined(FEDLORA_HAVE_ONEDNN)
                               ,
                               CpuBackend<float, OneDnnGemm>
#endif
                               >;

}  // namespace fedlora::tests
