// SPDX-License-Identifier: Apache-2.0
// Finds what innermost loops keep on the stack, in the words of `objdump -dr --no-show-raw-insn -C` for x86-64.
//
// Loops. Each function is cut into basic blocks. A loop is a strongly connected component of these; what is left of it
// without the edges into its entries (the blocks that are reached from outside) is looked at the same way, and a loop
// in which nothing is left that goes round is an innermost one. Where blocks lie does not matter: a loop may be entered
// in its middle, jump forwards, or have pieces behind the function's end. Two loops that share one entry are one. A
// loop that calls a function with loops of its own, or memcpy and its like, is not innermost: the callee's are. Jumps
// through a table have no targets here, so compile with -fno-jump-tables; any indirect jump leaves the function then.
//
// Stack. %rsp is an address in it, and so is, as far as it can have come there, each register that was made of one by
// mov, lea, add and their like: a frame pointer, the realigned one of g++, or the address of a local array. A memory
// operand on such a register touches the stack, as do push, pop and calls; lea and prefetches do not. (The address of a
// local array that was itself kept on the stack is not known again.)
//
// What counts. A loop in which no vector register occurs reckons with addresses and counters; elements are not in it.
// In all others, whatever touches the stack is guilty, with two exceptions. A loop that only moves elements may walk
// over a local array (the registers of the access change in the loop), for so the padded end of a row is filled, less
// than a vector of it; an access whose address stays is a spill there, too. And a call to one of `excusing_calls`
// excuses its loop: no vector register survives a call, so that the caller has to keep what it has somewhere.
#pragma once

#include <algorithm>
#include <array>
#include <bitset>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fedlora::tests {

struct Instruction {
  std::uint64_t address = 0;
  std::string text;                   ///< as objdump has it
  std::string name;                   ///< without prefixes
  std::vector<std::string> operands;  ///< the last is the destination, as a rule
  std::string relocation;             ///< "symbol-0x4", or nothing
};

struct Function {
  std::string section;
  std::string name;
  std::vector<Instruction> code;
};

/// An innermost loop that touches the stack.
struct GuiltyLoop {
  std::string function;
  std::uint64_t begin = 0;  ///< of its first instruction, in the function's section
  std::uint64_t end = 0;    ///< of its last
  std::size_t size = 0;     ///< instructions
  std::vector<std::string> accesses;
};

namespace disassembly {

/// What the standard library is asked for element by element, in double, and in float by tanh and the losses.
inline constexpr std::array excusing_calls = {"erfc", "exp", "expf", "log", "log1p", "tanh", "tanhf"};
inline constexpr std::array calls_with_loops = {"memcpy", "memmove", "memset"};

inline bool is_one_of(std::string_view name, const auto& names) { return std::ranges::count(names, name) > 0; }

// --- reading ---------------------------------------------------------------------------------------------------------

inline std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

/// The hexadecimal number at the front of `text`; false where there is none.
inline bool read_address(std::string_view text, std::uint64_t& address, std::string_view* rest = nullptr) {
  if (text.starts_with("0x")) text.remove_prefix(2);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), address, 16);
  if (error != std::errc()) return false;
  if (rest != nullptr) *rest = text.substr(static_cast<std::size_t>(end - text.data()));
  return true;
}

inline std::vector<std::string> split_operands(std::string_view text) {
  std::vector<std::string> operands;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] == '(') ++depth;
    if (i < text.size() && text[i] == ')') --depth;
    if (i < text.size() && (text[i] != ',' || depth > 0)) continue;
    if (i > begin) operands.emplace_back(trimmed(text.substr(begin, i - begin)));
    begin = i + 1;
  }
  return operands;
}

inline Instruction read_instruction(std::uint64_t address, std::string_view text) {
  Instruction result;
  result.address = address;
  result.text = trimmed(text);
  std::string_view rest = result.text;
  constexpr std::array prefixes = {"bnd", "cs", "data16", "ds", "es", "lock", "notrack", "rep", "repnz", "repz"};
  do {
    rest = trimmed(rest);
    const std::size_t end = std::min(rest.find_first_of(" \t"), rest.size());
    result.name = rest.substr(0, end);
    rest.remove_prefix(end);
  } while (!rest.empty() && is_one_of(result.name, prefixes));
  const bool target = result.name.starts_with('j') || result.name == "call";  // what follows in <> may hold anything
  rest = rest.substr(0, rest.find(target ? '<' : '#'));
  result.operands = split_operands(rest);
  return result;
}

}  // namespace disassembly

/// The functions of an object, in the order of `objdump -dr --no-show-raw-insn -C`.
inline std::vector<Function> read_disassembly(std::string_view text) {
  using namespace disassembly;
  std::vector<Function> functions;
  std::string section;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    std::uint64_t address = 0;
    std::string_view rest;
    if (constexpr std::string_view head = "Disassembly of section "; line.starts_with(head)) {
      section = line.substr(head.size(), line.size() - head.size() - 1);  // without the colon
    } else if (!read_address(trimmed(line), address, &rest)) {
      continue;
    } else if (rest.starts_with(" <") && rest.ends_with(">:")) {
      functions.push_back({section, std::string(rest.substr(2, rest.size() - 4)), {}});
    } else if (rest.starts_with(": R_") && !functions.empty() && !functions.back().code.empty()) {
      functions.back().code.back().relocation = trimmed(rest.substr(rest.find('\t')));
    } else if (rest.starts_with(':') && !functions.empty()) {
      functions.back().code.push_back(read_instruction(address, rest.substr(1)));
    }
  }
  return functions;
}

namespace disassembly {

// --- registers -------------------------------------------------------------------------------------------------------

/// Of the sixteen general registers, by number; -1 for anything else. `operand` is "%eax" or the like.
inline int general_register(std::string_view operand) {
  if (!operand.starts_with('%')) return -1;
  operand.remove_prefix(1);
  constexpr std::array<std::string_view, 8> old = {"ax", "bx", "cx", "dx", "si", "di", "bp", "sp"};
  for (std::size_t i = 0; i < old.size(); ++i) {
    const std::string_view name = old[i];
    if (operand == name || (operand.size() == 3 && operand.ends_with(name) && (operand[0] == 'r' || operand[0] == 'e')))
      return static_cast<int>(i);
    if (operand.size() >= 2 && operand.ends_with('l') && operand.substr(0, operand.size() - 1) == name)
      return static_cast<int>(i);  // sil, dil, bpl, spl
    if (i < 4 && operand.size() == 2 && operand[0] == name[0] && (operand[1] == 'l' || operand[1] == 'h'))
      return static_cast<int>(i);
  }
  if (operand.size() < 2 || operand[0] != 'r') return -1;
  int number = 0;
  const auto [end, error] = std::from_chars(operand.data() + 1, operand.data() + operand.size(), number);
  return error == std::errc() && number >= 8 && number < 16 ? number : -1;
}

inline constexpr int stack_pointer = 7;
using Registers = std::bitset<16>;

struct MemoryOperand {
  int base = -1;
  int index = -1;
  bool plain_index = false;  ///< the index is not scaled, so it may as well be the address
};

/// Whether the operand is one on general registers.
inline bool read_memory(std::string_view operand, MemoryOperand& memory) {
  const std::size_t open = operand.find('(');
  const std::size_t close = operand.find(')');
  if (open == operand.npos || close == operand.npos) return false;
  const std::string_view inside = operand.substr(open + 1, close - open - 1);
  const std::size_t comma = inside.find(',');
  memory.base = general_register(inside.substr(0, comma));
  if (comma == inside.npos) return memory.base >= 0;
  const std::string_view index = inside.substr(comma + 1);
  memory.index = general_register(index.substr(0, index.find(',')));
  memory.plain_index = index.find(',') == index.npos || index.ends_with(",1");
  return memory.base >= 0 || memory.index >= 0;
}

inline bool on_stack(const MemoryOperand& memory, const Registers& stack) {
  return (memory.base >= 0 && stack[static_cast<std::size_t>(memory.base)]) ||
         (memory.plain_index && memory.index >= 0 && stack[static_cast<std::size_t>(memory.index)]);
}

/// Neither what it names is read or written, nor does anything go into its last operand.
inline bool has_no_destination(std::string_view name) {
  return name.starts_with("nop") || name.starts_with("cmp") || name.starts_with("test") || name.starts_with("push") ||
         name.starts_with('j') || name.starts_with("prefetch") || name == "bt" || name == "call" || name == "ret";
}

/// rep stos, rep movsq and their like.
inline bool is_string_instruction(const Instruction& one) {
  return std::ranges::any_of(one.operands,
                             [](const std::string& operand) { return operand.starts_with("%es:(%rdi)"); });
}

/// The general registers that change, the stack pointer left out.
inline Registers written(const Instruction& one) {
  Registers result;
  const auto set = [&](int number) {
    if (number >= 0 && number != stack_pointer) result.set(static_cast<std::size_t>(number));
  };
  constexpr int ax = 0, cx = 2, dx = 3, si = 4, di = 5;
  if (one.name == "call") {
    for (const int number : {ax, cx, dx, si, di, 8, 9, 10, 11}) set(number);
  } else if (is_string_instruction(one)) {
    for (const int number : {cx, si, di}) set(number);
  } else if (one.name == "cqto" || one.name == "cltd") {
    set(dx);
  } else if (one.name == "cltq" || one.name == "cwtl") {
    set(ax);
  } else if (!has_no_destination(one.name) && !one.operands.empty()) {
    set(general_register(one.operands.back()));
    if (one.name.starts_with("xchg") || one.name.starts_with("mulx")) set(general_register(one.operands.front()));
    if (one.operands.size() == 1 && (one.name.starts_with("mul") || one.name.starts_with("div") ||
                                     one.name.starts_with("imul") || one.name.starts_with("idiv")))
      set(ax), set(dx);
  }
  return result;
}

/// Which registers may hold addresses in the stack behind an instruction, from those in front of it.
inline void pass(const Instruction& one, Registers& stack) {
  const Registers changes = written(one);
  if (changes.none()) return;
  const auto holds = [&](std::string_view operand) {
    const int number = general_register(operand);
    return number >= 0 && stack[static_cast<std::size_t>(number)];
  };
  const std::string_view name = one.name;
  const std::size_t count = one.operands.size();
  bool address = false;
  if (is_string_instruction(one)) return;  // addresses only go on
  if (name == "lea") {
    MemoryOperand memory;
    address = read_memory(one.operands.front(), memory) && on_stack(memory, stack);
  } else if (name == "mov") {
    address = holds(one.operands.front());
  } else if (name == "sub") {
    address = holds(one.operands.back()) && !holds(one.operands.front());
  } else if (name == "add" || name == "or" || name.starts_with("cmov")) {
    address = holds(one.operands.back()) || holds(one.operands.front());
  } else if (name == "and" || name == "inc" || name == "dec") {
    address = holds(one.operands.back());
  } else if (name == "xchg" && count == 2) {
    address = holds(one.operands.back()) || holds(one.operands.front());
  }
  stack &= ~changes;
  if (address) stack |= changes;
}

// --- blocks and loops ------------------------------------------------------------------------------------------------

struct Block {
  std::size_t begin = 0, end = 0;  ///< instructions
  std::vector<std::size_t> next;
};

inline bool is_jump(const Instruction& one) { return one.name.starts_with('j'); }

/// Nothing follows: not even after a call that does not come back.
inline bool ends_here(const Instruction& one) {
  if (one.name == "call")
    return one.relocation.find("throw") != std::string::npos || one.relocation.find("_Unwind_Resume") == 0 ||
           one.relocation.find("terminate") != std::string::npos || one.relocation.find("::fail<") != std::string::npos;
  return one.name == "jmp" || one.name == "ret" || one.name == "ud2" || one.name == "hlt" || one.name == "int3";
}

/// The instruction of `function` that a direct jump goes to, or its size where it leaves.
inline std::size_t jump_target(const Function& function, const Instruction& jump) {
  const std::size_t nowhere = function.code.size();
  std::uint64_t address = 0;
  if (!jump.relocation.empty() || jump.operands.empty() || !read_address(jump.operands[0], address)) return nowhere;
  const auto at = std::ranges::lower_bound(function.code, address, {}, &Instruction::address);
  if (at == function.code.end() || at->address != address) return nowhere;
  return static_cast<std::size_t>(at - function.code.begin());
}

inline std::vector<Block> blocks_of(const Function& function) {
  const std::vector<Instruction>& code = function.code;
  std::set<std::size_t> leaders = {0};
  for (std::size_t i = 0; i < code.size(); ++i) {
    if (is_jump(code[i])) leaders.insert(jump_target(function, code[i]));
    if (is_jump(code[i]) || ends_here(code[i])) leaders.insert(i + 1);
  }
  leaders.erase(code.size());
  std::vector<Block> blocks;
  std::map<std::size_t, std::size_t> block_at;
  for (const std::size_t leader : leaders) {
    if (!blocks.empty()) blocks.back().end = leader;
    block_at[leader] = blocks.size();
    blocks.push_back({leader, code.size(), {}});
  }
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const Instruction& last = code[blocks[b].end - 1];
    if (!ends_here(last) && b + 1 < blocks.size()) blocks[b].next.push_back(b + 1);
    if (!is_jump(last)) continue;
    if (const auto target = block_at.find(jump_target(function, last)); target != block_at.end())
      blocks[b].next.push_back(target->second);
  }
  return blocks;
}

using Loop = std::set<std::size_t>;  ///< of blocks
using Graph = std::map<std::size_t, std::vector<std::size_t>>;

/// Strongly connected components that go round (Tarjan 1972).
inline std::vector<Loop> rounds(const Graph& graph) {
  std::vector<Loop> found;
  std::map<std::size_t, std::size_t> number, low;
  std::vector<std::size_t> path;
  std::set<std::size_t> on_path;
  const std::function<void(std::size_t)> visit = [&](std::size_t node) {
    number[node] = low[node] = number.size();
    path.push_back(node);
    on_path.insert(node);
    for (const std::size_t next : graph.at(node)) {
      if (!number.contains(next)) visit(next);
      if (on_path.contains(next)) low[node] = std::min(low[node], low[next]);
    }
    if (low[node] != number[node]) return;
    Loop component;
    std::size_t taken;
    do {
      taken = path.back();
      path.pop_back();
      on_path.erase(taken);
      component.insert(taken);
    } while (taken != node);
    if (component.size() > 1 || std::ranges::count(graph.at(node), node) > 0) found.push_back(std::move(component));
  };
  for (const auto& [node, _] : graph)
    if (!number.contains(node)) visit(node);
  return found;
}

/// The blocks of each innermost loop.
inline std::vector<Loop> innermost_loops(const std::vector<Block>& blocks) {
  Graph all;
  for (std::size_t b = 0; b < blocks.size(); ++b) all[b] = blocks[b].next;
  std::vector<Loop> innermost;
  const std::function<bool(const Graph&)> look = [&](const Graph& graph) {
    const auto loops = rounds(graph);
    for (const Loop& loop : loops) {
      std::set<std::size_t> entries;
      for (std::size_t b = 0; b < blocks.size(); ++b)
        for (const std::size_t next : blocks[b].next)
          if (!loop.contains(b) && loop.contains(next)) entries.insert(next);
      if (entries.empty()) entries.insert(*loop.begin());  // the function begins in it
      Graph inside;
      for (const std::size_t b : loop) {
        std::vector<std::size_t>& edges = inside[b];
        for (const std::size_t next : graph.at(b))
          if (loop.contains(next) && !entries.contains(next)) edges.push_back(next);
      }
      if (!look(inside)) innermost.push_back(loop);
    }
    return !loops.empty();
  };
  look(all);
  return innermost;
}

/// For each block, the registers that may hold addresses in the stack where it begins.
inline std::vector<Registers> stack_addresses(const Function& function, const std::vector<Block>& blocks) {
  std::vector<Registers> at(blocks.size(), Registers(1u << stack_pointer));
  for (bool changed = true; changed;) {
    changed = false;
    for (const Block& block : blocks) {
      Registers stack = at[static_cast<std::size_t>(&block - blocks.data())];
      for (std::size_t i = block.begin; i < block.end; ++i) pass(function.code[i], stack);
      for (const std::size_t next : block.next) {
        changed = changed || (stack & ~at[next]).any();
        at[next] |= stack;
      }
    }
  }
  return at;
}

// --- judging ---------------------------------------------------------------------------------------------------------

inline bool has_vector_register(const Instruction& one) {
  return std::ranges::any_of(one.operands, [](const std::string& operand) {
    return operand.starts_with("%xmm") || operand.starts_with("%ymm") || operand.starts_with("%zmm");
  });
}

/// Whether it computes with vector registers: not, when it moves, shuffles or clears.
inline bool is_arithmetic(const Instruction& one) {
  if (!has_vector_register(one)) return false;
  std::string_view name = one.name;
  if (name.starts_with('v')) name.remove_prefix(1);
  constexpr std::array<std::string_view, 23> begins = {"add",  "sub",  "mul",  "div", "sqrt", "rsqrt",  "rcp",  "max",
                                                       "min",  "fm",   "fnm",  "cmp", "comi", "ucomi",  "cvt",  "padd",
                                                       "psub", "pmul", "pcmp", "psl", "psr",  "scalef", "round"};
  return std::ranges::any_of(begins, [&](std::string_view begin) { return name.starts_with(begin); });
}

/// Where a call goes: its symbol, or the section and address in it.
inline std::string callee(const Function& function, const Instruction& call, const std::vector<Function>& all) {
  std::string section = function.section;
  std::uint64_t address = 0;
  if (!call.relocation.empty()) {
    const std::size_t sign = std::min(call.relocation.find_last_of("+-"), call.relocation.size());
    const std::string symbol = call.relocation.substr(0, sign);
    if (!symbol.starts_with(".text")) return symbol;
    section = symbol;
    if (sign == call.relocation.size()) return symbol;
    if (!read_address(call.relocation.substr(sign + 1), address)) return symbol;
    if (call.relocation[sign] == '-') address = -address;
    address += 4;  // relocations count from the end of their four bytes
  } else if (call.operands.empty() || !read_address(call.operands[0], address)) {
    return "*";
  }
  for (const Function& one : all)
    if (one.section == section && !one.code.empty() && one.code.front().address == address) return one.name;
  return "*";
}

struct Analysed {
  std::vector<Block> blocks;
  std::vector<Loop> loops;
  std::vector<Registers> stack;              ///< see stack_addresses
  std::map<std::size_t, std::string> calls;  ///< whom each call calls, by instruction
};

inline Analysed analyse(const Function& function, const std::vector<Function>& all) {
  Analysed result;
  if (function.code.empty()) return result;
  result.blocks = blocks_of(function);
  result.loops = innermost_loops(result.blocks);
  result.stack = stack_addresses(function, result.blocks);
  for (std::size_t i = 0; i < function.code.size(); ++i)
    if (function.code[i].name == "call") result.calls[i] = callee(function, function.code[i], all);
  return result;
}

/// What of a loop touches the stack.
inline std::vector<std::string> stack_accesses(const Function& function, const Analysed& analysed, const Loop& loop) {
  bool computes = false;
  Registers changed;
  for (const std::size_t b : loop)
    for (std::size_t i = analysed.blocks[b].begin; i < analysed.blocks[b].end; ++i) {
      computes = computes || is_arithmetic(function.code[i]);
      changed |= written(function.code[i]);
    }
  const auto moves = [&](int number) { return number >= 0 && changed[static_cast<std::size_t>(number)]; };
  std::vector<std::string> found;
  for (const std::size_t b : loop) {
    Registers stack = analysed.stack[b];
    for (std::size_t i = analysed.blocks[b].begin; i < analysed.blocks[b].end; ++i) {
      const Instruction& one = function.code[i];
      bool guilty = one.name == "push" || one.name == "pop" || one.name == "call";
      const bool looks = one.name != "lea" && !one.name.starts_with("nop") && !one.name.starts_with("prefetch");
      for (const std::string& operand : one.operands)
        if (MemoryOperand memory; looks && read_memory(operand, memory) && on_stack(memory, stack))
          guilty = guilty || computes || !(moves(memory.base) || moves(memory.index));
      if (guilty) found.push_back(one.name == "call" ? "call " + analysed.calls.at(i) : one.text);
      pass(one, stack);
    }
  }
  return found;
}

/// Judges one loop. False when it is not innermost after all, or when it does not count.
inline bool judge(const Function& function, const Analysed& analysed, const Loop& loop,
                  const std::set<std::string>& with_loops, GuiltyLoop& found) {
  bool elements = false, excused = false;
  found = {function.name, ~std::uint64_t{0}, 0, 0, {}};
  for (const std::size_t b : loop)
    for (std::size_t i = analysed.blocks[b].begin; i < analysed.blocks[b].end; ++i) {
      const Instruction& one = function.code[i];
      found.begin = std::min(found.begin, one.address);
      found.end = std::max(found.end, one.address);
      ++found.size;
      elements = elements || has_vector_register(one);
      if (one.name != "call") continue;
      const std::string& callee = analysed.calls.at(i);
      if (with_loops.contains(callee)) return false;
      excused = excused || is_one_of(callee, excusing_calls);
    }
  if (elements && !excused) found.accesses = stack_accesses(function, analysed, loop);
  return elements;
}

}  // namespace disassembly

/// The innermost loops of an object that touch the stack, and in `looked_at` how many there are that count.
inline std::vector<GuiltyLoop> stack_in_innermost_loops(const std::vector<Function>& functions,
                                                        std::size_t& looked_at) {
  using namespace disassembly;
  std::vector<Analysed> analysed;
  std::set<std::string> with_loops(calls_with_loops.begin(), calls_with_loops.end());
  for (const Function& function : functions) {
    analysed.push_back(analyse(function, functions));
    if (!analysed.back().loops.empty()) with_loops.insert(function.name);
  }
  for (bool more = true; more;) {  // who calls a function with loops has them, too
    more = false;
    for (std::size_t f = 0; f < functions.size(); ++f)
      for (const auto& [at, callee] : analysed[f].calls)
        if (with_loops.contains(callee)) more = with_loops.insert(functions[f].name).second || more;
  }
  std::vector<GuiltyLoop> guilty;
  looked_at = 0;
  for (std::size_t f = 0; f < functions.size(); ++f)
    for (const Loop& loop : analysed[f].loops) {
      GuiltyLoop found;
      if (judge(functions[f], analysed[f], loop, with_loops, found)) ++looked_at;
      if (!found.accesses.empty()) guilty.push_back(std::move(found));
    }
  return guilty;
}

}  // namespace fedlora::tests
