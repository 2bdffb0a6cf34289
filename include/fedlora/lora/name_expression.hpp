// SPDX-License-Identifier: Apache-2.0
// Reads regular expressions over the names of modules into a tree. Their syntax is that of Python's re (3.11 and
// later), as PEFT matches with it. Names are ASCII without line ends, so that (?a), (?m), (?s) and (?u) change nothing,
// and ^ $ are \A \Z. tests/golden/name_patterns.json has Python's own answers.
//
// What is not read is refused by name, never read as something else: back-references, conditions, (?x), \N{…} and
// characters beyond ASCII.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/data/tokenizer/character_set.hpp"
#include "fedlora/data/tokenizer/pattern_tree.hpp"

namespace fedlora::detail {

/// Reads one expression. Recursive descent: alternatives, sequences, atoms and their quantifiers; character classes.
class NameExpressionReader {
 public:
  /// With `after_dot` the expression may begin behind any dot of the name: (.*\.)?(…), as PEFT writes it.
  /// \throws ConfigError with `where` for what is wrong or not read
  static Expression read(std::string_view text, bool after_dot, const std::string& where) {
    NameExpressionReader reader(text, where);
    // Flags for the whole of it. Behind PEFT's (.*\.)? Python up to 3.10 takes them too, later ones do not.
    bool ignore_case = false;
    while (reader.comment() || reader.isolated_flags(ignore_case)) continue;
    Node root = reader.alternatives(ignore_case, 0);
    if (!reader.rest().empty()) reader.refuse("as many ( as )");
    if (after_dot) {
      Node before = sequence_of(
          {repeat(reader.characters({0, last_code_point}), 0, Node::unlimited, false), reader.characters({'.', '.'})});
      root = sequence_of({repeat(std::move(before), 0, 1, false), std::move(root)});
    }
    reader.out_.root = std::move(root);
    return std::move(reader.out_);
  }

 private:
  using Node = ExpressionNode;
  using Kind = Node::Kind;
  enum class Last : std::uint8_t { nothing, anchor, repeat, other };  ///< what a quantifier would stand behind

  static constexpr int max_depth = 100;
  static constexpr std::uint32_t max_repetitions = 100000;

  NameExpressionReader(std::string_view text, const std::string& where) : text_(text), where_(where) {
    for (; at_ < text.size(); ++at_) check_ascii(static_cast<unsigned char>(text[at_]));
    at_ = 0;
  }

  [[noreturn]] void refuse(std::string_view expected) const {
    fail<ConfigError>(where_, "a regular expression with " + std::string(expected),
                      in_quotes(text_, 200) + ", at byte " + std::to_string(std::min(at_, text_.size())));
  }
  void check_ascii(std::uint32_t c) const {
    if (c > 0x7F) refuse("characters of ASCII alone, as the names of modules are");
  }

  std::string_view rest() const { return text_.substr(at_); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool next_is(std::string_view what) const { return rest().starts_with(what); }
  bool take(std::string_view what) {
    if (!next_is(what)) return false;
    at_ += what.size();
    return true;
  }
  static bool is_among(char c, std::string_view these) { return these.find(c) != std::string_view::npos; }
  bool digit_ahead() const { return is_among(peek(), "0123456789"); }

  // Trees ----------------------------------------------------------------------------------------------------------

  static Node node(Kind kind, std::vector<Node> parts = {}) {
    Node out;
    out.kind = kind;
    out.parts = std::move(parts);
    return out;
  }
  static Node sequence_of(std::vector<Node> parts) {
    return parts.size() == 1 ? std::move(parts[0]) : node(Kind::sequence, std::move(parts));
  }
  static Node repeat(Node part, std::uint32_t least, std::uint32_t most, bool lazy) {
    Node out = node(Kind::repeat, {std::move(part)});
    out.least = least;
    out.most = most;
    out.lazy = lazy;
    return out;
  }
  static Node look(Node part, bool behind, bool negative) {
    Node out = node(Kind::look, {std::move(part)});
    out.behind = behind;
    out.negative = negative;
    return out;
  }
  Node characters(const CharacterSet& set) {
    Node out = node(Kind::characters);
    const auto found = std::find(out_.sets.begin(), out_.sets.end(), set);
    out.set = static_cast<std::uint32_t>(found - out_.sets.begin());
    if (found == out_.sets.end()) out_.sets.push_back(set);
    return out;
  }

  // Groups ---------------------------------------------------------------------------------------------------------

  /// Up to the closing parenthesis, which stays, or the end.
  Node alternatives(bool ignore_case, int depth) {
    if (depth > max_depth) refuse("groups at most 100 deep");
    std::vector<Node> parts;
    do parts.push_back(sequence(ignore_case, depth));
    while (take("|"));
    return parts.size() == 1 ? std::move(parts[0]) : node(Kind::alternatives, std::move(parts));
  }

  Node sequence(bool ignore_case, int depth) {
    std::vector<Node> parts;
    Last last = Last::nothing;
    while (!rest().empty() && !next_is("|") && !next_is(")")) {
      if (comment()) continue;
      if (const auto count = quantifier()) {
        if (last == Last::nothing || last == Last::anchor) refuse("something to repeat before every quantifier");
        if (last == Last::repeat) refuse("one quantifier after each part");
        Node part = std::move(parts.back());
        if (count->possessive && part.kind != Kind::characters)  // Python tries no other way through each one
          part = node(Kind::atomic, {std::move(part)});
        part = repeat(std::move(part), count->least, count->most, count->lazy);
        parts.back() = count->possessive ? node(Kind::atomic, {std::move(part)}) : std::move(part);
        last = Last::repeat;
      } else {
        last = Last::other;
        parts.push_back(atom(ignore_case, depth, last));
      }
    }
    return sequence_of(std::move(parts));
  }

  bool comment() {
    if (!take("(?#")) return false;
    const std::size_t end = rest().find(')');
    if (end == std::string_view::npos) refuse("a comment that is closed by )");
    at_ += end + 1;
    return true;
  }

  /// What a parenthesis begins; it is taken.
  Node group(bool ignore_case, int depth) {
    const auto inner = [&] {
      Node out = alternatives(ignore_case, depth + 1);
      if (!take(")")) refuse("a ) for every (");
      return out;
    };
    if (!take("?")) return inner();
    if (take(">")) return node(Kind::atomic, {inner()});
    for (const std::string_view opening : {"=", "!", "<=", "<!"}) {
      if (!take(opening)) continue;
      const bool behind = opening[0] == '<', negative = opening.back() == '!';
      Node part = inner();
      if (const auto [shortest, longest] = lengths(part); behind && shortest != longest)
        refuse("look-behinds of one length");
      return look(std::move(part), behind, negative);
    }
    if (take("P<")) {
      take_name();
      return inner();
    }
    if (next_is("P") || next_is("(")) refuse("no back-references and conditions");
    if (flags(ignore_case) == ')') refuse("flags for the whole of it at its beginning (or (?i:…))");
    return inner();
  }

  /// The name of a group, up to > (which is taken).
  void take_name() {
    const std::string_view name = rest().substr(0, rest().find('>'));
    const bool is_name = !name.empty() && !is_ascii_digit(static_cast<unsigned char>(name[0])) &&
                         std::all_of(name.begin(), name.end(), [](char c) {
                           const auto byte = static_cast<unsigned char>(c);
                           return is_ascii_letter(byte) || is_ascii_digit(byte) || c == '_';
                         });
    if (!is_name || name.size() == rest().size()) refuse("a group's name of letters, digits and _, closed by >");
    if (std::find(names_.begin(), names_.end(), name) != names_.end()) refuse("a name of its own for every group");
    names_.push_back(name);
    at_ += name.size() + 1;
  }

  /// (?i) and the like.
  bool isolated_flags(bool& ignore_case) {
    const std::size_t begin = at_;
    const bool before = ignore_case;
    if (take("(?") && is_among(peek(), "aimsuLx") && flags(ignore_case) == ')') return true;
    at_ = begin;
    ignore_case = before;
    return false;
  }

  /// "i", "ms-i", … and nothing, after "(?"; takes and returns what ends them, ":" or ")". Those but i change nothing.
  char flags(bool& ignore_case) {
    const std::size_t begin = at_;
    bool on = true;
    for (; peek() != ':' && (peek() != ')' || at_ == begin || !on); ++at_) {
      const char c = peek();
      if (c == 'x') refuse("no flag x");
      const bool turns = on && c == '-', was_on = is_among(c, text_.substr(begin, at_ - begin));
      if (!turns && (c == '\0' || !is_among(c, on ? "aimsu" : "ims") || (!on && was_on)))
        refuse("groups (…), (?:…), (?>…), (?=…), (?!…), (?<=…), (?<!…), (?P<name>…) and the flags a, i, m, s, u alone");
      if (c == 'i') ignore_case = on;
      on = on && !turns;
    }
    if (text_[at_ - 1] == '-') refuse("a flag after -");
    return text_[at_++];
  }

  // Quantifiers ----------------------------------------------------------------------------------------------------

  struct Count {
    std::uint32_t least, most;
    bool lazy = false, possessive = false;
  };

  std::optional<Count> quantifier() {
    std::optional<Count> count;
    if (take("*")) {
      count = {0, Node::unlimited};
    } else if (take("+")) {
      count = {1, Node::unlimited};
    } else if (take("?")) {
      count = {0, 1};
    } else if (!(count = braces())) {
      return std::nullopt;
    }
    count->lazy = take("?");
    count->possessive = !count->lazy && take("+");
    return count;
  }

  /// {n}, {n,}, {,m}, {n,m} or {,}; nothing when it is not one, and the brace is a plain character.
  std::optional<Count> braces() {
    const std::size_t begin = at_;
    const auto number = [&]() -> std::optional<std::uint32_t> {
      const std::size_t first = at_;
      std::uint32_t value = 0;
      for (; digit_ahead(); ++at_) {
        value = value * 10 + static_cast<std::uint32_t>(peek() - '0');
        if (value > max_repetitions) refuse("at most 100000 repetitions");
      }
      return at_ > first ? std::optional(value) : std::nullopt;
    };
    if (!take("{") || next_is("}")) {
      at_ = begin;
      return std::nullopt;
    }
    const auto least = number();
    const auto most = take(",") ? number() : least;
    if (!take("}")) {
      at_ = begin;
      return std::nullopt;
    }
    const Count out{least.value_or(0), most.value_or(Node::unlimited)};
    if (out.least > out.most) refuse("counts that do not run backwards");
    return out;
  }

  // Atoms ----------------------------------------------------------------------------------------------------------

  Node atom(bool ignore_case, int depth, Last& last) {
    const auto anchor = [&](Node made) {
      last = Last::anchor;
      return made;
    };
    if (take("(")) return group(ignore_case, depth);
    if (take("[")) return characters(bracketed(ignore_case));
    if (take(".")) return characters({0, last_code_point});
    if (take("^") || take("\\A")) return anchor(node(Kind::text_start));
    if (take("$") || take("\\Z")) return anchor(node(Kind::text_end));
    if (take("\\b")) return anchor(word_boundary(false));
    if (take("\\B")) return anchor(word_boundary(true));
    if (const auto set = class_escape()) return characters(*set);
    return characters(with_case(member(false), ignore_case));
  }

  Node word_boundary(bool negative) {
    const auto side = [&](bool behind, bool absent) { return look(characters(word_characters()), behind, absent); };
    return node(Kind::alternatives, {sequence_of({side(true, false), side(false, !negative)}),
                                     sequence_of({side(true, true), side(false, negative)})});
  }

  static CharacterSet word_characters() { return CharacterSet({{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}); }

  /// \d, \s, \w and their opposites.
  std::optional<CharacterSet> class_escape() {
    if (!next_is("\\") || at_ + 1 == text_.size() || !is_among(text_[at_ + 1], "dswDSW")) return std::nullopt;
    const char letter = text_[at_ + 1];
    at_ += 2;
    const CharacterSet set = is_among(letter, "dD")   ? CharacterSet('0', '9')
                             : is_among(letter, "sS") ? CharacterSet({{'\t', '\r'}, {0x1C, ' '}})
                                                      : word_characters();
    return is_among(letter, "DSW") ? ~set : set;
  }

  /// A character, maybe by an escape.
  CharacterSet member(bool in_class) {
    const auto c =
        static_cast<char32_t>(take("\\") ? character_escape(in_class) : static_cast<unsigned char>(text_[at_++]));
    return CharacterSet(c, c);
  }

  /// The character that an escape stands for, after the backslash.
  std::uint32_t character_escape(bool in_class) {
    if (rest().empty()) refuse("something after \\");
    if (digit_ahead()) return octal(in_class);
    static constexpr std::string_view letters = "afnrtv", meanings = "\a\f\n\r\t\v";
    const char c = text_[at_++];
    if (const std::size_t known = letters.find(c); known != letters.npos)
      return static_cast<unsigned char>(meanings[known]);
    if (c == 'x' || c == 'u' || c == 'U') return hexadecimal(c == 'x' ? 2 : c == 'u' ? 4 : 8);
    if (c == 'b' && in_class) return '\b';
    if (is_ascii_letter(static_cast<unsigned char>(c)))
      refuse("escapes that Python has a meaning for, \\N{…} not among them");
    return static_cast<unsigned char>(c);
  }

  std::uint32_t hexadecimal(int digits) {
    std::uint32_t value = 0;
    for (; digits > 0; --digits, ++at_) {
      static constexpr std::string_view known = "0123456789abcdef0123456789ABCDEF";
      const std::size_t digit = rest().empty() ? known.npos : known.find(peek());
      if (digit == known.npos) refuse("2 hexadecimal digits after \\x, 4 after \\u, 8 after \\U");
      value = value * 16 + static_cast<std::uint32_t>(digit % 16);
    }
    check_ascii(value);
    return value;
  }

  /// Up to three digits. Outside of classes fewer are a back-reference, unless the first is 0.
  std::uint32_t octal(bool in_class) {
    const bool zero_first = peek() == '0';
    std::uint32_t value = 0;
    int digits = 0;
    for (; digits < 3 && !rest().empty() && is_among(peek(), "01234567"); ++digits, ++at_)
      value = value * 8 + static_cast<std::uint32_t>(peek() - '0');
    if (digits == 0 || (digits < 3 && !zero_first && !in_class)) refuse("no back-references");
    check_ascii(value);
    return value;
  }

  /// With the other case of every letter, where case is ignored.
  static CharacterSet with_case(const CharacterSet& set, bool ignore_case) {
    if (!ignore_case) return set;
    std::vector<CodePointRange> ranges = set.ranges();
    for (std::uint32_t c = 'A'; c <= 'Z'; ++c)
      if (set.contains(c) || set.contains(c + 32)) ranges.insert(ranges.end(), {{c, c}, {c + 32, c + 32}});
    return CharacterSet(std::move(ranges));
  }

  /// What stands between [ (taken) and ] (which is taken). A ] that comes first is a member.
  CharacterSet bracketed(bool ignore_case) {
    const bool negative = take("^");
    CharacterSet out;
    for (bool first = true; first || !take("]"); first = false) {
      const auto one = [&](bool& is_set) {
        if (rest().empty()) refuse("a ] for every [");
        const auto set = class_escape();
        is_set = set.has_value();
        return set ? *set : member(true);
      };
      bool is_set = false, ends_in_set = false;
      const CharacterSet from = one(is_set);
      if (!next_is("-") || next_is("-]")) {
        out = out | from;
        continue;
      }
      ++at_;
      const CharacterSet to = one(ends_in_set);
      if (is_set || ends_in_set) refuse("characters at both ends of a range");
      if (from.ranges()[0].first > to.ranges()[0].first) refuse("ranges that do not run backwards");
      out = out | CharacterSet(from.ranges()[0].first, to.ranges()[0].first);
    }
    out = with_case(out, ignore_case);
    return negative ? ~out : out;
  }

  std::string_view text_;
  const std::string& where_;
  std::size_t at_ = 0;
  std::vector<std::string_view> names_;  ///< of groups
  Expression out_;
};

}  // namespace fedlora::detail
