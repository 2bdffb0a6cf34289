// SPDX-License-Identifier: Apache-2.0
// No innermost loop of a hot function touches the stack: hot_loops.cpp is compiled as users compile it, with g++ and
// clang, for every level of x86-64, and what objdump shows is judged by stack_in_loops.hpp. And whatever is in the object has
// the level in its name, so that a program may link several.
#include <doctest/doctest.h>

#include <array>
#include <cstdlib>
#include <future>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "headers/stack_in_loops.hpp"
#include "support.hpp"

namespace {

using fedlora::tests::GuiltyLoop;

/// Loops that may: what stands in the name of their function, and why.
struct Exception {
  const char* function;
  const char* why;
};
constexpr std::array exceptions = {
    Exception{"(fedlora::Activation)10, ",
              "the rare activations: a switch and the standard library, one scalar at a time"},
};

constexpr std::array levels = {"", "-march=x86-64-v2", "-march=x86-64-v3", "-march=x86-64-v4"};

bool runs(const std::string& command) { return std::system(command.c_str()) == 0; }

/// The first of these compilers that is there and compiles for x86-64; otherwise prints why not, and returns nothing.
std::string first_of(std::initializer_list<std::string> names) {
  for (const std::string& name : names)
    if (runs("command -v " + name + " >/dev/null 2>&1")) {
      if (runs(name + " -dumpmachine | grep -q '^x86_64'")) return name;
      std::cout << "skipped: " << name << " compiles for another processor\n";
      return "";
    }
  std::cout << "skipped: no " << *names.begin() << "\n";
  return "";
}

std::vector<std::string> compilers() {
  if (!runs("command -v objdump >/dev/null 2>&1")) {
    std::cout << "skipped: no objdump (binutils)\n";
    return {};
  }
  std::vector<std::string> found = {first_of({"g++-12", "g++"}), first_of({"clang++-14", "clang++"})};
  std::erase(found, "");
  return found;
}

std::string level_of(const std::string& flags) {
  return fedlora::tests::has(flags, "v4") ? "avx512" : fedlora::tests::has(flags, "v3") ? "avx2" : "sse2";
}

/// What came of one compiler at one level.
struct Compiled {
  std::string how;    ///< compiler and flags
  std::string level;  ///< as the library names it
  bool compiled = false;
  std::vector<std::string> without_level;  ///< functions that the linker would take for those of another level
  std::size_t looked_at = 0;
  std::vector<GuiltyLoop> guilty;
};

Compiled judge(const std::string& compiler, const std::string& flags, const std::filesystem::path& source) {
  Compiled result{compiler + (flags.empty() ? "" : " " + flags), level_of(flags), false, {}, 0, {}};
  const fedlora::tests::TemporaryDirectory directory;
  const std::string object = (directory.path() / "loops.o").string();
  const std::string listing = (directory.path() / "loops.s").string();
  const std::string symbols = (directory.path() / "symbols").string();
  result.compiled =
      runs(std::string(FEDLORA_TEST_LAUNCHER " ") + compiler + " \"@" FEDLORA_TEST_FLAGS_FILE "\" -O3 -DNDEBUG " +
           "-fno-jump-tables " + flags + " -c \"" + source.string() + "\" -o \"" + object + "\"") &&
      runs("LC_ALL=C objdump -dr --no-show-raw-insn -C \"" + object + "\" >\"" + listing + "\"") &&
      runs("LC_ALL=C nm -C --defined-only \"" + object + "\" >\"" + symbols + "\"");
  if (!result.compiled) return result;
  std::istringstream lines(fedlora::tests::read_text(symbols));
  for (std::string line; std::getline(lines, line);)  // "0000000000000000 W void fedlora::cpu::avx2::…"
    if (const std::string_view defines = "TWVuBDR"; line.size() > 19 && defines.find(line[17]) != defines.npos)
      if (!fedlora::tests::has(line, "cpu::" + result.level) && !fedlora::tests::has(line, "hot_loops_of_"))
        result.without_level.push_back(line.substr(19));
  const std::string text = fedlora::tests::read_text(listing);
  result.guilty = fedlora::tests::stack_in_innermost_loops(fedlora::tests::read_disassembly(text), result.looked_at);
  return result;
}

std::string told(const GuiltyLoop& loop) {
  std::ostringstream text;
  text << "the loop of " << loop.size << " instructions from " << std::hex << loop.begin << " to " << loop.end
       << std::dec << " touches the stack " << loop.accesses.size() << " times:";
  for (std::size_t i = 0; i < std::min<std::size_t>(3, loop.accesses.size()); ++i) text << "\n    " << loop.accesses[i];
  return text.str();
}

}  // namespace

TEST_CASE("no innermost loop of a hot function touches the stack") {
  const std::filesystem::path source = std::filesystem::path(FEDLORA_TEST_DIR) / "headers" / "hot_loops.cpp";
  std::vector<std::future<std::vector<Compiled>>> all;
  for (const std::string& compiler : compilers())
    all.push_back(std::async(std::launch::async, [compiler, source] {
      std::vector<Compiled> results;
      for (const char* const level : levels) results.push_back(judge(compiler, level, source));
      return results;
    }));
  std::array<bool, exceptions.size()> used{};
  for (auto& one : all)
    for (const Compiled& result : one.get()) {
      CAPTURE(result.how);
      REQUIRE(result.compiled);
      CHECK(result.looked_at > 100);  // an object without loops would pass in silence
      for (const std::string& symbol : result.without_level) FAIL_CHECK("a symbol without a level: " << symbol);
      std::map<std::string, std::vector<const GuiltyLoop*>> functions;
      for (const GuiltyLoop& loop : result.guilty) {
        bool excused = false;
        for (std::size_t i = 0; i < exceptions.size(); ++i)
          if (fedlora::tests::has(loop.function, exceptions[i].function)) excused = used[i] = true;
        if (!excused) functions[loop.function].push_back(&loop);
      }
      std::cout << result.how << ": " << result.looked_at << " innermost loops, " << functions.size()
                << " functions with loops that touch the stack\n";
      for (const auto& [function, loops] : functions)
        FAIL_CHECK(function << "\n  " << loops.size() << " loops; " << told(*loops.front()));
    }
  if (all.empty()) return;
  for (std::size_t i = 0; i < exceptions.size(); ++i)
    CHECK_MESSAGE(used[i], "nothing in need of this exception is left: " << exceptions[i].function);
}

TEST_CASE("a tile that is too large for the registers is found") {
  const fedlora::tests::TemporaryDirectory directory;
  const std::filesystem::path source = directory.path() / "tile.cpp";
  fedlora::tests::write_text(source, R"(
    typedef float Lanes __attribute__((vector_size(BYTES), aligned(4), may_alias));
    void tile(const float* weights, const float* x, long stride, long rows, float* to) {
      Lanes sums[8][2] = {};
      for (long i = 0; i < rows; ++i)
        for (int r = 0; r < 8; ++r)
          for (int v = 0; v < 2; ++v) {
            Lanes values = *reinterpret_cast<const Lanes*>(x + i * stride + v * (BYTES / 4));
            sums[r][v] += values * weights[i * 8 + r];
          }
      for (int r = 0; r < 8; ++r)
        for (int v = 0; v < 2; ++v) *reinterpret_cast<Lanes*>(to + (2 * r + v) * (BYTES / 4)) = sums[r][v];
    })");
  for (const std::string& compiler : compilers()) {
    CAPTURE(compiler);
    const Compiled large = judge(compiler, "-march=x86-64-v3 -DBYTES=64", source);
    REQUIRE(large.compiled);
    REQUIRE(large.guilty.size() == 1);
    CHECK(fedlora::tests::has(large.guilty[0].function, "tile("));
    CHECK(large.guilty[0].accesses.size() >= 16);
    const Compiled fitting = judge(compiler, "-march=x86-64-v4 -mprefer-vector-width=512 -DBYTES=64", source);
    REQUIRE(fitting.compiled);
    CHECK(fitting.looked_at == 1);
    CHECK(fitting.guilty.empty());
  }
}
