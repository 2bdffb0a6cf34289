// SPDX-License-Identifier: Apache-2.0
// The judge of hot_loops_test.cpp, on small functions written by hand.
#include "headers/stack_in_loops.hpp"

#include <doctest/doctest.h>

#include <initializer_list>
#include <iomanip>
#include <sstream>

namespace {

using fedlora::tests::GuiltyLoop;

/// One function as objdump has it, its instructions at 0, 1, 2, … (hexadecimal, as jumps have them). A line that begins
/// with "R_" is the relocation of the instruction before it.
std::string listing(const std::string& name, std::initializer_list<std::string> lines) {
  std::ostringstream text;
  text << "\nDisassembly of section .text." << name << ":\n\n0000000000000000 <" << name << ">:\n" << std::hex;
  int address = 0;
  for (const std::string& line : lines)
    if (line.starts_with("R_"))
      text << "\t\t\t" << address - 1 << ": " << line << "\n";
    else
      text << std::setw(4) << address++ << ":\t" << line << "\n";
  return text.str();
}

struct Judged {
  std::vector<GuiltyLoop> guilty;
  std::size_t looked_at = 0;
};

Judged judged(const std::string& text) {
  Judged result;
  result.guilty = fedlora::tests::stack_in_innermost_loops(fedlora::tests::read_disassembly(text), result.looked_at);
  return result;
}

/// The accesses of all guilty loops of one function.
std::vector<std::string> accesses(std::initializer_list<std::string> lines) {
  std::vector<std::string> all;
  for (const GuiltyLoop& loop : judged(listing("f(float*)", lines)).guilty)
    all.insert(all.end(), loop.accesses.begin(), loop.accesses.end());
  return all;
}

using Accesses = std::vector<std::string>;

}  // namespace

TEST_CASE("a spill in a loop is found, and where") {
  const Judged result = judged(listing("void scale<8, (K)1>(float*)", {
                                                                          "sub    $0x48,%rsp",
                                                                          "vmovaps %ymm3,0x20(%rsp)",
                                                                          "nopw   0x0(%rax,%rax,1)",
                                                                          "vmovups (%rdi),%ymm0",
                                                                          "vmulps 0x20(%rsp),%ymm0,%ymm0",
                                                                          "vmovups %ymm0,(%rdi)",
                                                                          "add    $0x20,%rdi",
                                                                          "cmp    %rdi,%rsi",
                                                                          "jne    3 <void scale<8, (K)1>(float*)+0x3>",
                                                                          "vmovaps 0x20(%rsp),%ymm1",
                                                                          "ret",
                                                                      }));
  CHECK(result.looked_at == 1);
  REQUIRE(result.guilty.size() == 1);
  CHECK(result.guilty[0].function == "void scale<8, (K)1>(float*)");
  CHECK(result.guilty[0].begin == 3);
  CHECK(result.guilty[0].end == 8);
  CHECK(result.guilty[0].size == 6);
  CHECK(result.guilty[0].accesses == Accesses{"vmulps 0x20(%rsp),%ymm0,%ymm0"});
}

TEST_CASE("outside of innermost loops the stack is free") {
  CHECK(accesses({
                     "mov    %rdi,0x8(%rsp)",
                     "mov    0x10(%rsp),%rcx",  // the outer loop begins
                     "vmulps (%rcx),%ymm0,%ymm0",
                     "dec    %rcx",
                     "jne    2 <f(float*)+0x2>",
                     "vmovaps %ymm0,0x20(%rsp)",
                     "decq   0x8(%rsp)",
                     "jne    1 <f(float*)+0x1>",
                     "ret",
                 })
            .empty());
  CHECK(accesses({
            "mov    0x10(%rsp),%rcx",
            "vmulps (%rcx),%ymm0,%ymm0",
            "mov    0x18(%rsp),%rdx",
            "dec    %rcx",
            "jne    1 <f(float*)+0x1>",
            "mov    0x20(%rsp),%rdx",
            "jmp    0 <f(float*)>",
        }) == Accesses{"mov    0x18(%rsp),%rdx"});
}

TEST_CASE("a loop is a loop wherever its pieces lie") {
  SUBCASE("entered in its middle") {
    CHECK(accesses({
              "jmp    3 <f(float*)+0x3>",
              "addps  0x10(%rsp),%xmm0",
              "add    $0x10,%rdi",
              "cmp    %rdi,%rsi",
              "jne    1 <f(float*)+0x1>",
              "ret",
          }) == Accesses{"addps  0x10(%rsp),%xmm0"});
  }
  SUBCASE("entered at two places") {
    CHECK(accesses({
              "test   %rdi,%rdi",
              "je     4 <f(float*)+0x4>",
              "addps  0x10(%rsp),%xmm0",
              "add    $0x10,%rdi",
              "cmp    %rdi,%rsi",
              "jne    2 <f(float*)+0x2>",
              "ret",
          }) == Accesses{"addps  0x10(%rsp),%xmm0"});
  }
  SUBCASE("with a branch, and a piece behind the function's end") {
    CHECK(accesses({
              "mulps  %xmm1,%xmm0",
              "jp     6 <f(float*)+0x6>",
              "je     4 <f(float*)+0x4>",
              "addps  %xmm2,%xmm0",
              "jne    0 <f(float*)>",
              "ret",
              "mov    0x8(%rsp),%rax",
              "jmp    4 <f(float*)+0x4>",
          }) == Accesses{"mov    0x8(%rsp),%rax"});
  }
  SUBCASE("between whose pieces lies what does not belong to it") {
    CHECK(accesses({
                       "mulps  %xmm1,%xmm0",
                       "jne    4 <f(float*)+0x4>",
                       "mov    0x8(%rsp),%rax",
                       "jmp    6 <f(float*)+0x6>",
                       "addps  %xmm1,%xmm0",
                       "jmp    0 <f(float*)>",
                       "ret",
                   })
              .empty());
  }
  SUBCASE("but not where a jump goes to another section") {
    CHECK(accesses({
                       "mulps  0x8(%rsp),%xmm0",
                       "jne    0 <f(float*)>",
                       "R_X86_64_PC32\t.text.unlikely.f-0x4",
                       "ret",
                   })
              .empty());
  }
}

TEST_CASE("addresses in the stack are known whatever register they are in") {
  SUBCASE("a frame pointer") {
    CHECK(accesses({"push   %rbp", "mov    %rsp,%rbp", "mulps  -0x20(%rbp),%xmm0", "jne    2 <f(float*)+0x2>"}) ==
          Accesses{"mulps  -0x20(%rbp),%xmm0"});
  }
  SUBCASE("%rbp that is none") {
    CHECK(
        accesses({"push   %rbp", "mov    %rdi,%rbp", "mulps  -0x20(%rbp),%xmm0", "jne    2 <f(float*)+0x2>"}).empty());
  }
  SUBCASE("a local array, over which the loop walks") {
    CHECK(accesses({"lea    0x40(%rsp),%r9", "mov    %r9,%rax", "mulps  (%rax),%xmm0", "add    $0x10,%rax",
                    "jne    2 <f(float*)+0x2>"}) == Accesses{"mulps  (%rax),%xmm0"});
    CHECK(accesses({"lea    0x40(%rsp),%r9", "mulps  (%rcx,%r9,1),%xmm0", "jne    1 <f(float*)+0x1>"}) ==
          Accesses{"mulps  (%rcx,%r9,1),%xmm0"});
  }
  SUBCASE("on one of two ways") {
    CHECK(accesses({"test   %rdi,%rdi", "jne    3 <f(float*)+0x3>", "lea    0x40(%rsp),%rdi", "mulps  (%rdi),%xmm0",
                    "jne    3 <f(float*)+0x3>"}) == Accesses{"mulps  (%rdi),%xmm0"});
  }
  SUBCASE("a register that has become something else, or an address that is not used") {
    CHECK(accesses({"lea    0x40(%rsp),%rax", "mov    (%rax),%rax", "mulps  (%rax),%xmm0", "lea    0x8(%rsp),%rcx",
                    "prefetcht0 0x8(%rsp)", "jne    2 <f(float*)+0x2>"})
              .empty());
    CHECK(accesses({"lea    0x40(%rsp),%rax", "movslq %ecx,%rax", "mulps  (%rax),%xmm0", "jne    2 <f(float*)+0x2>"})
              .empty());
  }
}

TEST_CASE("a call in a loop") {
  const std::string inner = listing("g(float*)", {"mulps  %xmm1,%xmm0", "jne    0 <g(float*)>", "ret"});
  const std::string plain = listing("h(float*)", {"mulps  %xmm1,%xmm0", "ret"});
  const auto calling = [](const std::string& callee) {
    return listing("f(float*)", {"mulps  0x8(%rsp),%xmm0", "call   6 <f(float*)+0x6>",
                                 "R_X86_64_PLT32\t" + callee + "-0x4", "jne    0 <f(float*)>"});
  };
  SUBCASE("of a function with loops makes it an outer one") {
    const Judged result = judged(calling("g(float*)") + inner);
    CHECK(result.looked_at == 1);
    CHECK(result.guilty.empty());
    CHECK(judged(calling("memcpy")).guilty.empty());
    CHECK(judged(calling(".text.g(float*)") + inner).guilty.empty());
  }
  SUBCASE("of a function that calls one with loops does, too") {
    const std::string between =
        listing("h(float*)", {"mulps  %xmm1,%xmm0", "call   6 <h(float*)+0x6>", "R_X86_64_PLT32\tg(float*)-0x4"});
    CHECK(judged(calling("h(float*)") + between + inner).guilty.empty());
  }
  SUBCASE("of erfc and its like excuses it") { CHECK(judged(calling("erfc")).guilty.empty()); }
  SUBCASE("of any other touches the stack") {
    for (const std::string callee : {"h(float*)", "sqrtf", "operator new(unsigned long)"}) {
      CAPTURE(callee);
      const Judged result = judged(calling(callee) + plain);
      REQUIRE(result.guilty.size() == 1);
      CHECK(result.guilty[0].accesses == Accesses{"mulps  0x8(%rsp),%xmm0", "call " + callee});
    }
  }
}

TEST_CASE("a loop that moves elements may walk over a local array, and no more") {
  CHECK(
      accesses({"movss  (%rdi,%rax,4),%xmm0", "movss  %xmm0,0x20(%rsp,%rax,4)", "inc    %rax", "jne    0 <f(float*)>"})
          .empty());
  CHECK(accesses({"movss  (%rdi,%rax,4),%xmm0", "movss  %xmm0,0x20(%rsp)", "inc    %rax", "jne    0 <f(float*)>"}) ==
        Accesses{"movss  %xmm0,0x20(%rsp)"});
  CHECK(accesses({"mov    %rsp,%rbp", "movss  (%rdi,%rax,4),%xmm0", "movss  %xmm0,-0x20(%rbp)", "inc    %rax",
                  "jne    1 <f(float*)+0x1>"}) == Accesses{"movss  %xmm0,-0x20(%rbp)"});
  CHECK(accesses({"mulss  (%rdi,%rax,4),%xmm0", "movss  %xmm0,0x20(%rsp,%rax,4)", "inc    %rax",
                  "jne    0 <f(float*)>"}) == Accesses{"movss  %xmm0,0x20(%rsp,%rax,4)"});
}

TEST_CASE("a loop without elements does not count") {
  const Judged result = judged(listing("f(float*)", {"cmp    %rax,0x8(%rsp)", "jne    0 <f(float*)>"}));
  CHECK(result.looked_at == 0);
  CHECK(result.guilty.empty());
}
