// SPDX-License-Identifier: Apache-2.0
// One level, the one of this unit's flags; compiled once for each. Everything that it defines must carry the level's
// name, for the linker keeps one of equal names, and that of a higher level is no code for a lesser processor: CMake
// gives Eigen's namespace a name of its own here (tests/programs/level_symbols.sh looks).
#include "cpu/level.hpp"

#include <string_view>

#include "fedlora/backend/cpu/gemm_eigen.hpp"

namespace fedlora::examples::FEDLORA_CPU_LEVEL {

#ifdef FEDLORA_LEVEL_ASKED
static_assert(std::string_view(cpu::Level::name) == FEDLORA_LEVEL_ASKED,
              "the compiler's flags make this object of another level than " FEDLORA_LEVEL_ASKED
              ": give them as -march, which the level's own replaces, not as -mavx2, -mno-avx2 and the like");
#endif

extern const CpuLevel level;
const CpuLevel level = {cpu::Level::name, &cpu::own_loops<float>, &cpu::own_loops<double>, &EigenGemm::multiply<float>,
                        &EigenGemm::multiply<double>};

}  // namespace fedlora::examples::FEDLORA_CPU_LEVEL
