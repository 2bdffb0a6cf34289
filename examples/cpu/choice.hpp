// SPDX-License-Identifier: Apache-2.0
// --cpu: which of the levels that the program was built for computes. With FEDLORA_NATIVE there is one, this machine's;
// otherwise all that an x86-64 processor may have, side by side, and the best that is there unless one is asked for.
#pragma once

#include <string>

namespace fedlora::examples {

struct CpuLevel;

/// Fixes the level, and oneDNN's with it; to be called before the first product. `asked` is native or a level's name.
/// \throws UsageError for a level that the program was not built for, or that this processor does not have.
void choose_cpu(const std::string& asked);

/// The level that computes: the best that is there until another is chosen.
const CpuLevel& chosen_cpu();

/// Those that the program was built for, "sse2, avx2, avx512".
std::string cpu_level_names();

}  // namespace fedlora::examples
