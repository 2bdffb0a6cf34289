// SPDX-License-Identifier: Apache-2.0
#include "cpu/choice.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "command_line.hpp"
#include "cpu/level.hpp"
#ifdef FEDLORA_HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#endif

namespace fedlora::examples {

#ifdef FEDLORA_PROGRAM_LEVELS
namespace sse2 {
extern const CpuLevel level;
}
namespace avx2 {
extern const CpuLevel level;
}
namespace avx512 {
extern const CpuLevel level;
}
#else
namespace FEDLORA_CPU_LEVEL {
extern const CpuLevel level;
}
#endif

namespace {

/// A level that the program was built for.
struct Built {
  const CpuLevel* level;
  bool here;  ///< this processor has it
};

/// All of them, the best first.
std::vector<Built> built_levels() {
#ifdef FEDLORA_PROGRAM_LEVELS
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  return {{&avx512::level, has_avx512}, {&avx2::level, has_avx2}, {&sse2::level, true}};
#else
  return {{&FEDLORA_CPU_LEVEL::level, true}};
#endif
}

/// "sse2, avx2": of all, or of those that are here.
std::string names_of(const std::vector<Built>& levels, bool here_alone) {
  std::string names;
  for (auto built = levels.rbegin(); built != levels.rend(); ++built)
    if (built->here || !here_alone) names += (names.empty() ? "" : ", ") + std::string(built->level->name);
  return names;
}

const CpuLevel* chosen = nullptr;

/// The last of them is there on every processor that starts the program.
const CpuLevel& best_level() {
  const std::vector<Built> levels = built_levels();
  return *std::find_if(levels.begin(), levels.end(), [](const Built& built) { return built.here; })->level;
}

/// Keeps oneDNN's products to the level's instructions (its lowest of x86 is SSE4.1; of others it has one). It refuses
/// once it has computed, which would be our mistake.
void cap_onednn([[maybe_unused]] const std::string& level) {
#if defined(FEDLORA_HAVE_ONEDNN) && defined(__x86_64__)
  const dnnl_cpu_isa_t isa = level == "avx512" ? dnnl_cpu_isa_avx512_core
                             : level == "avx2" ? dnnl_cpu_isa_avx2
                                               : dnnl_cpu_isa_sse41;
  if (const dnnl_status_t status = dnnl_set_max_cpu_isa(isa); status != dnnl_success)
    fail<Error>("dnnl_set_max_cpu_isa, " + level, "success", "status " + std::to_string(static_cast<int>(status)));
#endif
}

}  // namespace

std::string cpu_level_names() { return names_of(built_levels(), false); }

const CpuLevel& chosen_cpu() {
  static const CpuLevel& best = best_level();
  return chosen != nullptr ? *chosen : best;
}

void choose_cpu(const std::string& asked) {
  if (asked == "native") {
    chosen = &best_level();
    cap_onednn(chosen->name);
    return;
  }
  const std::vector<Built> levels = built_levels();
  for (const Built& built : levels) {
    if (built.level->name != asked) continue;
    if (!built.here)
      fail<UsageError>("--cpu",
                       "a level that this processor has (" + names_of(levels, true) + "; native is the best of them)",
                       asked);
    chosen = built.level;
    cap_onednn(asked);
    return;
  }
  fail<UsageError>("--cpu", "native or a level that this program was built for (" + cpu_level_names() + ")",
                   asked + (levels.size() == 1 ? "; -DFEDLORA_NATIVE=OFF builds it for all of them" : ""));
}

}  // namespace fedlora::examples
