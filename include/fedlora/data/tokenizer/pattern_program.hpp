// SPDX-License-Identifier: Apache-2.0
// Matches regular expressions (pattern_tree.hpp). Characters that no class of the expression tells apart become one
// *symbol*; the expression becomes a short program over symbols, and a text is turned into symbols once and then
// matched by backtracking: the first alternative that leads to a match wins, as in Perl. Every choice knows which
// symbols each way can go on with, so that expressions for words hardly ever go back.
//
// Expressions come from files, so work is bounded: the size of the program, the steps over a text (a megabyte takes
// ten seconds at the worst), and the memory for ways still to be tried.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer/character_set.hpp"
#include "fedlora/data/tokenizer/pattern_tree.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"

namespace fedlora::detail {

using Symbol = std::uint16_t;

/// The characters, each with its symbol. Two have the same one when every set has both or neither. There is one more
/// symbol, `end()`, of no character: what stands after the text.
class SymbolTable {
 public:
  /// \throws FormatError with `where` for more than `most` symbols.
  SymbolTable(const std::vector<CharacterSet>& sets, std::size_t most, const std::string& where) {
    std::vector<std::uint32_t> ends{last_code_point + 1};  // of runs of characters that no set tells apart
    for (const CharacterSet& set : sets) {
      for (const CodePointRange& range : set.ranges()) {
        ends.push_back(range.first);
        ends.push_back(range.last + 1);
      }
    }
    std::sort(ends.begin(), ends.end());
    ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
    if (ends.front() == 0) ends.erase(ends.begin());
    std::vector<Symbol> symbols(ends.size());  // of the runs; every set parts them further
    std::vector<std::size_t> parts;
    for (const CharacterSet& set : sets) {
      parts.assign(2 * count_, none);
      count_ = 0;
      for_each_run(ends, set, [&](std::size_t run, bool member) {
        std::size_t& part = parts[2 * std::size_t{symbols[run]} + (member ? 1 : 0)];
        if (part == none) part = count_++;
        symbols[run] = static_cast<Symbol>(part);
      });
      if (count_ > most)
        fail<FormatError>(
            where, "a regular expression that tells at most " + std::to_string(most) + " kinds of characters apart",
            std::to_string(count_) + " or more");
    }
    rows_.resize(sets.size() * (count_ + 1));
    for (std::size_t s = 0; s < sets.size(); ++s) {
      for_each_run(ends, sets[s],
                   [&](std::size_t run, bool member) { rows_[s * (count_ + 1) + symbols[run]] = member; });
    }
    fill_pages(ends, symbols);
  }

  std::size_t size() const { return count_; }
  Symbol end() const { return static_cast<Symbol>(count_); }
  Symbol of(char32_t c) const { return pages_[std::size_t{page_of_[c >> 8]} * 256 + (c & 0xFF)]; }
  /// By set and then symbol, the end's included: is it a member?
  const std::vector<std::uint8_t>& rows() const { return rows_; }

 private:
  static constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

  template <class Visit>
  static void for_each_run(const std::vector<std::uint32_t>& ends, const CharacterSet& set, Visit&& visit) {
    auto range = set.ranges().begin();
    for (std::size_t run = 0; run < ends.size(); ++run) {
      while (range != set.ranges().end() && range->last < ends[run] - 1) ++range;
      visit(run, range != set.ranges().end() && range->first < ends[run]);
    }
  }

  /// A table of pages of 256 characters; those of one symbol alone once for each symbol.
  void fill_pages(const std::vector<std::uint32_t>& ends, const std::vector<Symbol>& symbols) {
    std::vector<std::size_t> plain(count_, none);
    std::size_t run = 0;
    for (std::uint32_t page = 0; page < page_of_.size(); ++page) {
      const std::uint32_t begin = page * 256, end = begin + 256;
      while (ends[run] <= begin) ++run;
      std::size_t number = pages_.size() / 256;
      if (ends[run] >= end) {
        std::size_t& known = plain[symbols[run]];
        if (known == none) known = number;
        number = known;
      }
      page_of_[page] = static_cast<std::uint16_t>(number);
      if (number < pages_.size() / 256) continue;
      for (std::uint32_t c = begin; c < end; ++c) {
        while (ends[run] <= c) ++run;
        pages_.push_back(symbols[run]);
      }
    }
  }

  std::size_t count_ = 1;
  std::vector<std::uint8_t> rows_;
  std::array<std::uint16_t, (last_code_point + 1) / 256> page_of_{};
  std::vector<Symbol> pages_;
};

/// One step of a program.
struct Instruction {
  enum class Step : std::uint8_t {
    one,     ///< a symbol of row `row`
    run,     ///< `least` to `most` symbols of `row`, as many as there are; `flag`: never fewer
    choose,  ///< one of the ways from `first` on that row `row` of the choices allows, earlier ones first
    jump,    ///< to `first`
    mark,    ///< a repetition begins: remember the place in slot `first`
    check,   ///< it ends: if it was empty go on behind the next instruction, which repeats
    peek,    ///< a symbol of `row` next (`behind`: last); `flag`: none
    look,    ///< what follows until `first` matches here (`behind`: ends here, `least` to `most` symbols); `flag`: not
    atomic,  ///< what follows until `first` matches, once and for all
    text_start,  ///< nothing before
    text_end,    ///< nothing after
    accept
  };
  Step step;
  bool flag = false, behind = false;
  std::uint32_t row = 0, first = 0, least = 0, most = 0;
};

/// Memory for matching, to be used again.
struct PatternScratch {
  struct Way {
    std::uint32_t instruction;
    std::size_t position;
    std::uint64_t rest;  ///< of a choice: ways still to be tried; of a run: the least position
  };
  std::vector<Symbol> symbols;
  std::vector<Way> ways;
  std::vector<std::size_t> slots;
};

/// A compiled expression. Immutable: many threads may match with one.
class PatternProgram {
 public:
  PatternProgram(const Expression& expression, const std::string& where)
      : table_(expression.sets, max_symbols, where), stride_(static_cast<std::uint32_t>(table_.size() + 1)) {
    const Row anything(stride_, 1);
    starts_ = can_begin(expression.root, anything);
    emit(expression.root, anything, where);
    add({Instruction::Step::accept}, where);
    begins_with_run_ = code_[0].step == Step::run && code_[0].most == Node::unlimited;
  }

  /// How many steps a text of so many bytes may take.
  static constexpr std::uint64_t max_steps(std::size_t bytes) { return (std::uint64_t{1} << 23) + 1024 * bytes; }

  /// Calls `found(begin, end)`, bytes, for every match in valid UTF-8, in order; false if the work is too much.
  template <class Found>
  bool find(std::string_view text, PatternScratch& scratch, Found&& found) const {
    if (text.empty()) return true;  // as Hugging Face: nothing is found in nothing
    to_symbols(text, scratch.symbols);
    scratch.slots.resize(slots_);
    scratch.ways.clear();
    Matcher matcher{*this, scratch.symbols, scratch.ways, scratch.slots, max_steps(text.size())};
    const std::size_t length = scratch.symbols.size() - 1;
    constexpr std::size_t never = Matcher::failed;
    std::size_t place = 0, byte = 0;  // the same place in characters and in bytes
    const auto byte_of = [&](std::size_t wanted) {
      if (text.size() == length) return wanted;
      for (; place < wanted; ++place) byte += utf8_length(text[byte]);
      return byte;
    };
    for (std::size_t from = 0, last_end = never; from <= length;) {
      std::size_t begin = from, end = never;
      for (; begin <= length; ++begin) {
        if (starts_[scratch.symbols[begin]] == 0) continue;
        end = matcher.match(0, begin, Matcher::anywhere);
        if (matcher.exhausted) return false;
        if (end != never) break;
        if (!begins_with_run_) continue;
        while (matcher.has(code_[0].row, begin + 1)) ++begin;  // a later beginning tries no other end of the run
      }
      if (end == never) return true;
      if (begin == end && end == last_end) {  // no empty match right after a match
        from = end + 1;
        continue;
      }
      const std::size_t first_byte = byte_of(begin);
      found(first_byte, byte_of(end));
      from = last_end = end;
    }
    return true;
  }

  /// Whether the whole of a text (valid UTF-8) matches; nothing when that takes more than `steps_left`, which becomes
  /// less by what it took.
  std::optional<bool> matches(std::string_view text, PatternScratch& scratch, std::uint64_t& steps_left) const {
    to_symbols(text, scratch.symbols);
    scratch.slots.resize(slots_);
    scratch.ways.clear();
    Matcher matcher{*this, scratch.symbols, scratch.ways, scratch.slots, steps_left};
    const bool found = matcher.match(0, 0, scratch.symbols.size() - 1) != Matcher::failed;
    steps_left -= std::min(steps_left, matcher.steps);
    return matcher.exhausted ? std::nullopt : std::optional(found);
  }

  /// Its instructions.
  std::size_t size() const { return code_.size(); }

 private:
  using Node = ExpressionNode;
  using Kind = Node::Kind;
  using Step = Instruction::Step;
  using Row = std::vector<std::uint8_t>;  ///< which symbols; the last: the end of the text

  static constexpr std::size_t max_symbols = 1024, max_instructions = 20000, max_choices = std::size_t{1} << 22;

  // Compiling ------------------------------------------------------------------------------------------------------

  /// The symbols with which a node that `follow` follows can begin: more of them do no harm.
  Row can_begin(const Node& node, const Row& follow) const {
    const auto unite = [](Row a, const Row& b) {
      for (std::size_t i = 0; i < a.size(); ++i) a[i] |= b[i];
      return a;
    };
    switch (node.kind) {
      case Kind::characters: {
        const auto row = table_.rows().begin() + static_cast<std::ptrdiff_t>(node.set * stride_);
        return Row(row, row + static_cast<std::ptrdiff_t>(stride_));
      }
      case Kind::sequence: {
        auto part = std::find_if(node.parts.begin(), node.parts.end(), [](const Node& p) { return !can_be_empty(p); });
        Row out = part == node.parts.end() ? follow : can_begin(*part, follow);
        while (part != node.parts.begin()) out = can_begin(*--part, out);
        return out;
      }
      case Kind::alternatives: {
        Row out(stride_);
        for (const Node& part : node.parts) out = unite(std::move(out), can_begin(part, follow));
        return out;
      }
      case Kind::repeat:
        if (node.most == 0) return follow;
        return node.least > 0 ? can_begin(node.parts[0], follow) : unite(can_begin(node.parts[0], follow), follow);
      case Kind::atomic:
        return can_begin(node.parts[0], follow);
      default:
        return follow;
    }
  }

  std::uint32_t here() const { return static_cast<std::uint32_t>(code_.size()); }

  std::uint32_t add(Instruction instruction, const std::string& where) {
    if (code_.size() == max_instructions || choices_.size() > max_choices)
      fail<FormatError>(where, "a regular expression of at most 20000 steps", "a longer one");
    code_.push_back(instruction);
    return here() - 1;
  }

  /// A choice between ways that begin with the symbols of `rows`; the targets are set by the caller.
  std::uint32_t add_choice(const std::vector<Row>& rows, const std::string& where) {
    Instruction choice{Step::choose};
    choice.first = static_cast<std::uint32_t>(targets_.size());
    choice.row = static_cast<std::uint32_t>(choices_.size());
    for (std::size_t symbol = 0; symbol < stride_; ++symbol) {
      std::uint64_t ways = 0;
      for (std::size_t way = 0; way < rows.size(); ++way) ways |= std::uint64_t{rows[way][symbol]} << way;
      choices_.push_back(ways);
    }
    targets_.resize(targets_.size() + rows.size());
    return add(choice, where);
  }
  std::uint32_t& target(std::uint32_t choice, std::size_t way) { return targets_[code_[choice].first + way]; }

  void emit(const Node& node, const Row& follow, const std::string& where) {
    switch (node.kind) {
      case Kind::characters:
        add({.step = Step::one, .row = node.set * stride_}, where);
        break;
      case Kind::sequence: {
        std::vector<Row> follows(node.parts.size(), follow);
        for (std::size_t i = node.parts.size(); i-- > 1;) follows[i - 1] = can_begin(node.parts[i], follows[i]);
        for (std::size_t i = 0; i < node.parts.size(); ++i) emit(node.parts[i], follows[i], where);
        break;
      }
      case Kind::alternatives:
        emit_alternatives(node, 0, follow, where);
        break;
      case Kind::repeat:
        emit_repeat(node, follow, where);
        break;
      case Kind::atomic:
        emit_inner({.step = Step::atomic}, node.parts[0], where);
        break;
      case Kind::look:
        emit_look(node, where);
        break;
      case Kind::text_start:
        add({.step = Step::text_start}, where);
        break;
      case Kind::text_end:
        add({.step = Step::text_end}, where);
        break;
    }
  }

  /// The alternatives from one on: 64 ways in a choice, the last of them to those that are left.
  void emit_alternatives(const Node& node, std::size_t from, const Row& follow, const std::string& where) {
    const std::size_t left = node.parts.size() - from;
    const std::size_t ways = std::min<std::size_t>(left, 64);
    const std::size_t here_ways = left > 64 ? 63 : left;
    std::vector<Row> rows;
    for (std::size_t way = 0; way < here_ways; ++way) rows.push_back(can_begin(node.parts[from + way], follow));
    if (ways > here_ways) rows.emplace_back(stride_, std::uint8_t{1});
    const std::uint32_t choice = add_choice(rows, where);
    std::vector<std::uint32_t> jumps;
    for (std::size_t way = 0; way < here_ways; ++way) {
      target(choice, way) = here();
      emit(node.parts[from + way], follow, where);
      if (way + 1 < ways) jumps.push_back(add({.step = Step::jump}, where));
    }
    if (ways > here_ways) {
      target(choice, here_ways) = here();
      emit_alternatives(node, from + here_ways, follow, where);
    }
    for (const std::uint32_t jump : jumps) code_[jump].first = here();
  }

  void emit_repeat(const Node& node, const Row& follow, const std::string& where) {
    const Node& part = node.parts[0];
    if (node.most == 0) return;
    const Row first = can_begin(part, follow);
    Row again = first;  // what may follow one repetition
    for (std::size_t i = 0; i < again.size(); ++i) again[i] |= follow[i];
    if (part.kind == Kind::characters && !node.lazy) {
      bool apart = true;
      for (std::size_t i = 0; i < first.size(); ++i) apart = apart && !(first[i] && follow[i]);
      add({.step = Step::run, .flag = apart, .row = part.set * stride_, .least = node.least, .most = node.most}, where);
      return;
    }
    for (std::uint32_t i = 0; i < node.least; ++i) {
      const std::uint32_t before = here();
      emit(part, again, where);
      if (here() == before) break;  // nothing, however often
    }
    const std::vector<Row> rows = node.lazy ? std::vector{follow, first} : std::vector{first, follow};
    const std::size_t on = node.lazy ? 1 : 0;
    if (node.most == Node::unlimited) {
      const std::uint32_t choice = add_choice(rows, where);
      target(choice, on) = here();
      const bool counts_nothing = can_be_empty(part);
      const auto slot = static_cast<std::uint32_t>(slots_);
      if (counts_nothing) {
        ++slots_;
        add({.step = Step::mark, .first = slot}, where);
      }
      emit(part, again, where);
      if (counts_nothing) add({.step = Step::check, .first = slot}, where);
      add({.step = Step::jump, .first = choice}, where);
      target(choice, 1 - on) = here();
      return;
    }
    std::vector<std::uint32_t> choices;
    for (std::uint32_t i = node.least; i < node.most; ++i) {
      choices.push_back(add_choice(rows, where));
      target(choices.back(), on) = here();
      emit(part, again, where);
    }
    for (const std::uint32_t choice : choices) target(choice, 1 - on) = here();
  }

  void emit_inner(Instruction instruction, const Node& part, const std::string& where) {
    const std::uint32_t begin = add(instruction, where);
    emit(part, Row(stride_, 1), where);
    add({.step = Step::accept}, where);
    code_[begin].first = here();
  }

  void emit_look(const Node& node, const std::string& where) {
    const Node& part = node.parts[0];
    if (part.kind == Kind::characters) {
      add({.step = Step::peek, .flag = node.negative, .behind = node.behind, .row = part.set * stride_}, where);
      return;
    }
    const auto [shortest, longest] = lengths(part);
    constexpr std::uint64_t most = std::numeric_limits<std::uint32_t>::max();
    emit_inner({.step = Step::look,
                .flag = node.negative,
                .behind = node.behind,
                .least = static_cast<std::uint32_t>(std::min(shortest, most)),
                .most = static_cast<std::uint32_t>(std::min(longest, most))},
               part, where);
  }

  // Matching -------------------------------------------------------------------------------------------------------

  void to_symbols(std::string_view text, std::vector<Symbol>& out) const {
    out.resize(text.size() + 1);
    std::size_t count = 0;
    for (std::size_t i = 0; i < text.size();) out[count++] = table_.of(next_code_point(text, i));
    out[count++] = table_.end();
    out.resize(count);
  }

  struct Matcher {
    static constexpr std::size_t failed = std::numeric_limits<std::size_t>::max(), anywhere = failed - 1;

    const PatternProgram& program;
    const std::vector<Symbol>& text;  ///< and the end's symbol
    std::vector<PatternScratch::Way>& ways;
    std::vector<std::size_t>& slots;
    std::uint64_t most_steps;
    std::uint64_t steps = 0;
    bool exhausted = false;

    bool has(std::uint32_t row, std::size_t position) const { return program.table_.rows()[row + text[position]] != 0; }

    /// Where a match from `position` ends, which must be `wanted` unless that is `anywhere`; or `failed`.
    std::size_t match(std::uint32_t at, std::size_t position, std::size_t wanted) {
      const std::size_t base = ways.size();
      while (!exhausted) {
        const Instruction& now = program.code_[at];
        bool goes_on = true;
        ++steps;
        switch (now.step) {
          case Step::one:
            goes_on = has(now.row, position);
            ++position, ++at;
            break;
          case Step::run:
            goes_on = run(now, at, position);
            break;
          case Step::choose:
            goes_on = choose(program.choices_[now.row + text[position]], now, at, position);
            break;
          case Step::jump:
            at = now.first;
            break;
          case Step::mark:
            ways.push_back({at, slots[now.first], 0});
            slots[now.first] = position;
            ++at;
            break;
          case Step::check:
            at += slots[now.first] == position ? 2 : 1;
            break;
          case Step::peek:
          case Step::text_start:
          case Step::text_end:
            goes_on = holds(now, position);
            ++at;
            break;
          case Step::look:
            goes_on = looks(now, at, position) != now.flag;
            at = now.first;
            break;
          case Step::atomic:
            position = match(at + 1, position, anywhere);
            goes_on = position != failed;
            at = now.first;
            break;
          case Step::accept:
            if (wanted == anywhere || position == wanted) {
              ways.resize(base);
              return position;
            }
            goes_on = false;
            break;
        }
        if (!goes_on && !retry(base, at, position)) return failed;
        if (steps > most_steps || ways.size() > max_ways()) exhausted = true;
      }
      ways.resize(base);
      return failed;
    }

    std::size_t max_ways() const { return (std::size_t{1} << 20) + 4 * text.size(); }

    bool holds(const Instruction& now, std::size_t position) const {
      if (now.step == Step::text_start) return position == 0;
      if (now.step == Step::text_end) return position + 1 == text.size();
      return (now.behind ? position > 0 && has(now.row, position - 1) : has(now.row, position)) != now.flag;
    }

    /// The greatest number; fewer later, if `flag` does not rule that out.
    bool run(const Instruction& now, std::uint32_t& at, std::size_t& position) {
      const std::size_t begin = position;
      const std::size_t most = now.most < text.size() - position ? position + now.most : text.size();
      while (position < most && has(now.row, position)) ++position;
      steps += position - begin;
      if (position - begin < now.least) return false;
      if (!now.flag && position - begin > now.least) ways.push_back({at, position, begin + now.least});
      ++at;
      return true;
    }

    bool choose(std::uint64_t left, const Instruction& now, std::uint32_t& at, std::size_t position) {
      if (left == 0) return false;
      const auto way = static_cast<std::uint32_t>(std::countr_zero(left));
      left &= left - 1;
      if (left != 0) ways.push_back({at, position, left});
      at = program.targets_[now.first + way];
      return true;
    }

    bool looks(const Instruction& now, std::uint32_t at, std::size_t position) {
      if (!now.behind) return match(at + 1, position, anywhere) != failed;
      for (std::size_t back = now.least; back <= std::min<std::size_t>(now.most, position); ++back) {
        if (match(at + 1, position - back, position) != failed) return true;
        if (exhausted) break;
      }
      return false;
    }

    /// Back to the last way that was not tried.
    bool retry(std::size_t base, std::uint32_t& at, std::size_t& position) {
      while (ways.size() > base) {
        ++steps;
        PatternScratch::Way way = ways.back();
        ways.pop_back();
        const Instruction& now = program.code_[way.instruction];
        if (now.step == Step::mark) {
          slots[now.first] = way.position;
          continue;
        }
        at = way.instruction;
        position = way.position;
        if (now.step == Step::choose) return choose(way.rest, now, at, position);
        if (--position > way.rest) ways.push_back({at, position, way.rest});
        ++at;
        return true;
      }
      return false;
    }
  };

  SymbolTable table_;
  std::uint32_t stride_;  ///< symbols, the end's included
  Row starts_;
  std::vector<Instruction> code_;
  std::vector<std::uint64_t> choices_;  ///< of each choice, by symbol: which ways
  std::vector<std::uint32_t> targets_;
  std::size_t slots_ = 0;
  bool begins_with_run_ = false;
};

}  // namespace fedlora::detail
