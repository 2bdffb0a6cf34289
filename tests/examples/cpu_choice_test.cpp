// SPDX-License-Identifier: Apache-2.0
// What --cpu chooses is what computes: loops as wide as the level's registers, and no more of the processor for
// oneDNN. A process chooses once, so each choice has one of its own.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#include "command_line.hpp"
#include "cpu/choice.hpp"
#include "cpu/level.hpp"
#if defined(FEDLORA_HAVE_ONEDNN) && defined(__x86_64__)
#include <oneapi/dnnl/dnnl.h>
#endif

namespace fedlora::tests {
namespace {

using namespace fedlora::examples;

/// The levels of x86-64 that this processor has, the least first.
std::vector<std::string> levels_here() {
  std::vector<std::string> levels;
#if defined(__x86_64__)
  levels.push_back("sse2");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) levels.push_back("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) levels.push_back("avx512");
#endif
  return levels;
}

/// What a process that asked for `asked` computes with is `level`'s.
bool computes_with(const std::string& asked, const std::string& level) {
  const std::map<std::string, Index> bytes = {
      {"sse2", 16}, {"neon", 16}, {"portable", 16}, {"avx2", 32}, {"avx512", 64}};
  choose_cpu(asked);
  const CpuLevel& chosen = chosen_cpu();
  bool right = chosen.name == level && chosen.float_loops->lanes == bytes.at(level) / 4 &&
               chosen.double_loops->lanes == bytes.at(level) / 8;
#if defined(FEDLORA_HAVE_ONEDNN) && defined(__x86_64__)
  const dnnl_cpu_isa_t cap = level == "avx512" ? dnnl_cpu_isa_avx512_core
                             : level == "avx2" ? dnnl_cpu_isa_avx2
                                               : dnnl_cpu_isa_sse41;
  right = right && dnnl_get_effective_cpu_isa() == cap;
#endif
  return right;
}

/// In a process of its own: 0 where it is so.
int told_by_child(const std::string& asked, const std::string& level) {
  const pid_t child = fork();
  if (child == 0) {
    int status = 2;
    try {
      status = computes_with(asked, level) ? 0 : 1;
    } catch (const std::exception&) {
    }
    _exit(status);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_CASE("the level that is chosen computes, and caps oneDNN") {
  std::vector<std::string> built;
  for (const std::string& name : comma_separated(cpu_level_names())) built.push_back(name);
  REQUIRE_FALSE(built.empty());
  if (built.size() == 1) {
    CHECK(told_by_child("native", built.front()) == 0);
    CHECK(told_by_child(built.front(), built.front()) == 0);
    return;
  }
  CHECK(built == std::vector<std::string>{"sse2", "avx2", "avx512"});
  const auto here = levels_here();
  CHECK(told_by_child("native", here.back()) == 0);
  for (const std::string& level : here) {
    CAPTURE(level);
    CHECK(told_by_child(level, level) == 0);
  }
  for (std::size_t i = here.size(); i < built.size(); ++i) CHECK(told_by_child(built[i], built[i]) == 2);
}

}  // namespace
}  // namespace fedlora::tests
