// SPDX-License-Identifier: Apache-2.0
// Reads the regular expressions of tokenizer files into a tree. Their syntax is Oniguruma's (its default one), as
// Hugging Face tokenizers match with it: ^ and $ stand at every line, [a-z&&[^b]] are sets within sets, \h is a
// hexadecimal digit, (?m) lets . match a line end.
//
// What is not read is refused by name, never read as something else: back-references and subexpression calls, \G, \K,
// \X, \y, conditions, absent groups, callouts, bytes above 0x7F, options other than i, m, x; and what Oniguruma's
// optimisations give another meaning than it should have.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
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

/// Reads one expression. Recursive descent: alternatives, sequences, repeats, atoms; character classes.
class ExpressionReader {
 public:
  /// \throws FormatError with `where` for what is wrong or not read.
  static Expression read(std::string_view text, const std::string& where) {
    ExpressionReader reader(text, where);
    reader.out_.root = reader.alternatives({}, 0);
    if (!reader.rest().empty()) reader.refuse("as many ( as )");
    return std::move(reader.out_);
  }

 private:
  using Node = ExpressionNode;
  using Kind = Node::Kind;

  static constexpr std::size_t max_bytes = std::size_t{1} << 16;
  static constexpr std::size_t max_sets = 4096, max_parts = 20000;
  static constexpr std::uint32_t max_repetitions = 100000;  // as Oniguruma
  static constexpr int max_depth = 100, max_stacked_repeats = 4;

  struct Options {
    bool ignore_case = false, dot_is_any = false, extended = false;
  };

  ExpressionReader(std::string_view text, const std::string& where) : text_(text), where_(where) {
    if (text.size() > max_bytes)
      fail<FormatError>(where, "a regular expression of at most 65536 bytes", std::to_string(text.size()));
    if (first_invalid_utf8(text) != std::string_view::npos) refuse("UTF-8");
  }

  [[noreturn]] void refuse(std::string_view expected) const {
    fail<FormatError>(where_, "a regular expression with " + std::string(expected),
                      in_quotes(text_, 200) + ", at byte " + std::to_string(std::min(at_, text_.size())));
  }

  std::string_view rest() const { return text_.substr(at_); }
  bool next_is(std::string_view what) const { return rest().starts_with(what); }
  bool take(std::string_view what) {
    if (!next_is(what)) return false;
    at_ += what.size();
    return true;
  }
  char32_t take_character() {
    if (at_ == text_.size()) refuse("something after \\");
    return next_code_point(text_, at_);
  }

  // Trees ----------------------------------------------------------------------------------------------------------

  Node node(Kind kind, std::vector<Node> parts = {}) {
    if (++parts_ > max_parts) refuse("at most 20000 parts");
    Node out;
    out.kind = kind;
    out.parts = std::move(parts);
    return out;
  }
  Node look(Node part, bool behind, bool negative) {
    Node out = node(Kind::look, {std::move(part)});
    out.behind = behind;
    out.negative = negative;
    return out;
  }
  Node repeat(Node part, std::uint32_t least, std::uint32_t most, bool lazy) {
    Node out = node(Kind::repeat, {std::move(part)});
    out.least = least;
    out.most = most;
    out.lazy = lazy;
    return out;
  }
  Node atomic(Node part) {
    not_in_look_behind();
    return node(Kind::atomic, {std::move(part)});
  }
  /// Oniguruma refuses some of these and cuts the text short for others.
  void not_in_look_behind() const {
    if (in_look_behind_) refuse("no look-around, \\z, \\Z, \\R, (?>…) or possessive quantifier within a look-behind");
  }
  Node characters(const CharacterSet& set) {
    Node out = node(Kind::characters);
    const auto found = std::find(out_.sets.begin(), out_.sets.end(), set);
    out.set = static_cast<std::uint32_t>(found - out_.sets.begin());
    if (found == out_.sets.end()) {
      if (out_.sets.size() == max_sets) refuse("at most 4096 different characters and classes");
      out_.sets.push_back(set);
    }
    return out;
  }

  // Groups ---------------------------------------------------------------------------------------------------------

  /// Up to the closing parenthesis, which stays, or the end.
  Node alternatives(Options options, int depth) {
    if (depth > max_depth) refuse("groups at most 100 deep");
    const char32_t before = previous_letter_;
    std::vector<Node> parts;
    do {
      previous_letter_ = before;
      parts.push_back(sequence(options, depth));
    } while (take("|"));
    if (parts.size() > 1) previous_letter_ = 0;
    return parts.size() == 1 ? std::move(parts[0]) : node(Kind::alternatives, std::move(parts));
  }

  Node sequence(Options options, int depth) {
    std::vector<Node> parts;
    while (true) {
      if (options.extended) skip_extended();
      if (rest().empty() || next_is("|") || next_is(")")) break;
      if (take("(?#")) {
        const std::size_t end = rest().find(')');
        if (end == std::string_view::npos) refuse("a comment that is closed by )");
        at_ += end + 1;
      } else if (const auto changed = isolated_options(options)) {
        parts.push_back(alternatives(*changed, depth + 1));  // they hold to the end of the group, over every |
      } else {
        bool repeatable = true;
        Node part = atom(options, depth, repeatable);
        parts.push_back(repeats(std::move(part), repeatable, options));
      }
    }
    return parts.size() == 1 ? std::move(parts[0]) : node(Kind::sequence, std::move(parts));
  }

  void skip_extended() {
    while (!rest().empty() && (next_is("#") || (rest()[0] >= '\t' && rest()[0] <= '\r') || rest()[0] == ' ')) {
      if (take("#")) {
        at_ += std::min(rest().find('\n'), rest().size());
      } else {
        ++at_;
      }
    }
  }

  /// "im-x" before `end`, which is taken.
  std::optional<Options> option_letters(Options options, char end) {
    const std::size_t begin = at_;
    for (bool on = true; !rest().empty(); ++at_) {
      switch (rest()[0]) {
        case '-':
          on = false;
          break;
        case 'i':
          options.ignore_case = on;
          break;
        case 'm':
          options.dot_is_any = on;
          break;
        case 'x':
          options.extended = on;
          break;
        default:
          if (rest()[0] == end && at_ > begin) {
            ++at_;
            return options;
          }
          at_ = begin;
          return std::nullopt;
      }
    }
    at_ = begin;
    return std::nullopt;
  }

  /// (?i) without a colon.
  std::optional<Options> isolated_options(const Options& options) {
    const std::size_t begin = at_;
    if (!take("(?")) return std::nullopt;
    auto changed = option_letters(options, ')');
    if (!changed) at_ = begin;
    return changed;
  }

  /// What a parenthesis begins; it is taken.
  Node group(Options options, int depth, bool& repeatable) {
    const auto inner = [&](const Options& changed) {
      Node out = alternatives(changed, depth + 1);
      if (!take(")")) refuse("a ) for every (");
      return out;
    };
    if (next_is("*")) refuse("no callouts");
    if (!take("?")) return node(Kind::sequence, {inner(options)});
    if (take(":")) return inner(options);
    if (take(">")) return atomic(inner(options));
    for (const std::string_view opening : {"=", "!", "<=", "<!"}) {
      if (!take(opening)) continue;
      const bool behind = opening[0] == '<', negative = opening.back() == '!';
      repeatable = false;
      not_in_look_behind();
      in_look_behind_ = behind;
      Node part = inner(options);
      in_look_behind_ = false;
      return look(std::move(part), behind, negative);
    }
    if (next_is("<") || next_is("'")) {
      const std::size_t end = rest().find(rest()[0] == '<' ? '>' : '\'', 1);
      if (end == std::string_view::npos || end < 2) refuse("a group's name that is closed");
      at_ += end + 1;
      return node(Kind::sequence, {inner(options)});
    }
    if (const auto changed = option_letters(options, ':')) return inner(*changed);
    refuse("groups (…), (?:…), (?>…), (?=…), (?!…), (?<=…), (?<!…), (?<name>…) and the options i, m, x alone");
  }

  // Repeats --------------------------------------------------------------------------------------------------------

  /// ?, * or +
  static bool is_plain(std::uint32_t least, std::uint32_t most) {
    return (least == 0 && most == 1) || (least <= 1 && most == Node::unlimited);
  }

  struct Interval {
    std::uint32_t least, most;
    bool fixed = false, swapped = false;
  };

  /// {n}, {n,}, {,n} or {n,m}; nothing when it is not one, and the brace is a plain character.
  std::optional<Interval> interval() {
    const std::size_t begin = at_;
    const auto number = [&]() -> std::optional<std::uint32_t> {
      const std::size_t first = at_;
      std::uint32_t value = 0;
      while (!rest().empty() && is_ascii_digit(static_cast<unsigned char>(rest()[0]))) {
        value = value * 10 + static_cast<std::uint32_t>(text_[at_++] - '0');
        if (value > max_repetitions) refuse("at most 100000 repetitions");
      }
      return at_ > first ? std::optional(value) : std::nullopt;
    };
    if (!take("{")) return std::nullopt;
    const auto least = number();
    const bool comma = take(",");
    const auto most = comma ? number() : least;
    if (!take("}") || (!least && !most)) {
      at_ = begin;
      return std::nullopt;
    }
    Interval out{least.value_or(0), most.value_or(Node::unlimited), !comma};
    if (out.least > out.most) {
      std::swap(out.least, out.most);
      out.swapped = true;
    }
    return out;
  }

  /// The quantifiers after an atom.
  Node repeats(Node part, bool repeatable, const Options& options) {
    for (int stacked = 0;; ++stacked) {
      if (options.extended) skip_extended();
      std::optional<Interval> count;
      bool lazy = false, possessive = false;
      if (take("?") || take("*") || take("+")) {
        const char sign = text_[at_ - 1];
        count = {sign == '+' ? 1u : 0u, sign == '?' ? 1u : Node::unlimited};
        lazy = take("?");
        possessive = !lazy && take("+");
      } else if ((count = interval())) {
        possessive = count->swapped;
        lazy = !possessive && !count->fixed && take("?");
      } else {
        return part;
      }
      if (!repeatable) refuse("no quantifier after an anchor or a look-around");
      if (stacked == max_stacked_repeats) refuse("at most 4 quantifiers in a row");
      if (part.kind == Kind::repeat) {
        // Oniguruma makes one of two, which with a lazy one is not what the two mean.
        if (lazy || part.lazy) refuse("no quantifier of a quantifier where one is lazy");
        if (is_plain(part.least, part.most) && is_plain(count->least, count->most)) {  // (?:a+)* is a*
          count->least *= part.least;
          count->most = std::max(count->most, part.most);
          part = Node(std::move(part.parts[0]));
        }
      }
      // How often nothing is repeated before something is tried depends on the length of Oniguruma's program.
      if (count->most > 1 && !is_empty_last(part)) refuse("no repetition of what matches nothing before something");
      part = repeat(std::move(part), count->least, count->most, lazy);
      if (possessive) part = atomic(std::move(part));
      previous_letter_ = 0;
    }
  }

  // Atoms ----------------------------------------------------------------------------------------------------------

  Node atom(Options options, int depth, bool& repeatable) {
    const auto anchor = [&](Node made) {
      repeatable = false;
      return made;
    };
    if (next_is("*") || next_is("+") || next_is("?")) refuse("something before every quantifier");
    if (interval()) refuse("something before every quantifier");
    if (take("(")) return group(options, depth, repeatable);
    if (next_is("[") || next_is(".") || next_is("^") || next_is("$")) previous_letter_ = 0;
    if (take("[")) return bracketed(options);
    if (take(".")) return characters(options.dot_is_any ? CharacterSet(0, last_code_point) : ~CharacterSet('\n', '\n'));
    if (take("^")) return anchor(line_start());
    if (take("$")) return anchor(look(followed_by_line_end(), false, false));
    if (take("\\")) return escape(options, anchor);
    return letter(take_character(), options);
  }

  Node line_start() {  // not after the last line end of the text
    Node after_line_end = look(characters({'\n', '\n'}), true, false),
         before_text = look(characters({0, last_code_point}), false, false);
    return node(Kind::alternatives,
                {node(Kind::text_start), node(Kind::sequence, {std::move(after_line_end), std::move(before_text)})});
  }

  Node followed_by_line_end() { return node(Kind::alternatives, {characters({'\n', '\n'}), node(Kind::text_end)}); }

  /// What a name stands for: found once for an expression, which may hold it thousands of times.
  const std::optional<CharacterSet>& named(std::string_view name) {
    const auto [entry, is_new] = named_.try_emplace(std::string(name));
    if (is_new) entry->second = characters_named(name);
    return entry->second;
  }

  /// \w and \p{Word} by themselves and \b count some superscripts and fractions as well; within brackets they do not.
  CharacterSet word_characters() { return *named("word") | CharacterSet({{0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}}); }

  Node word_boundary(bool negative) {
    const auto side = [&](bool behind, bool absent) { return look(characters(word_characters()), behind, absent); };
    return node(Kind::alternatives, {node(Kind::sequence, {side(true, false), side(false, !negative)}),
                                     node(Kind::sequence, {side(true, true), side(false, negative)})});
  }

  Node letter(char32_t c, const Options& options) {
    const CharacterSet set(c, c);
    if (!options.ignore_case) {
      previous_letter_ = 0;
      return characters(set);
    }
    const CaseFolding& folding = case_folding();
    const char32_t folded = folded_case(c);
    if (std::binary_search(folding.expanding.begin(), folding.expanding.end(), c) ||
        std::binary_search(folding.beginnings.begin(), folding.beginnings.end(), std::pair(previous_letter_, folded)))
      refuse("no letters under (?i) that are also one with several others, like ss and \u00DF");
    previous_letter_ = folded;
    return characters(with_other_cases(set));
  }

  template <class Anchor>
  Node escape(const Options& options, Anchor&& anchor) {
    static constexpr std::string_view refused = "123456789kgGKXyYMCco";
    const char kind = rest().empty() ? '\0' : rest()[0];
    if (kind == 'p' || kind == 'P' || std::string_view("wWdDsShHRNOAzZbB").find(kind) != std::string_view::npos)
      previous_letter_ = 0;
    if (take("A")) return anchor(node(Kind::text_start));
    if (take("z")) {
      not_in_look_behind();
      return anchor(node(Kind::text_end));
    }
    if (take("Z")) {
      not_in_look_behind();
      Node line_end = repeat(characters({'\n', '\n'}), 0, 1, false);
      return anchor(look(node(Kind::sequence, {std::move(line_end), node(Kind::text_end)}), false, false));
    }
    if (take("b")) return anchor(word_boundary(false));
    if (take("B")) return anchor(word_boundary(true));
    if (take("N")) return characters(~CharacterSet('\n', '\n'));
    if (take("O")) return characters({0, last_code_point});
    if (take("R")) {
      Node pair = node(Kind::sequence, {characters({'\r', '\r'}), characters({'\n', '\n'})});
      const CharacterSet one({{'\n', '\r'}, {0x85, 0x85}, {0x2028, 0x2029}});
      return atomic(node(Kind::alternatives, {std::move(pair), characters(one)}));
    }
    if (const auto set = class_escape(false)) return characters(*set);
    if (kind != '\0' && refused.find(kind) != std::string_view::npos)
      refuse("no back-references, subexpression calls, \\G, \\K, \\X, \\y, control and octal escapes");
    return letter(character_escape(false), options);
  }

  /// \d \s \h \w, \p{...} and their opposites, after the backslash.
  std::optional<CharacterSet> class_escape(bool in_brackets) {
    if (next_is("p") || next_is("P")) return property(in_brackets);
    static constexpr std::pair<char, std::string_view> classes[] = {
        {'d', "nd"}, {'s', "space"}, {'h', "xdigit"}, {'w', "word"}};
    for (const auto& [letter, name] : classes) {
      const char capital = static_cast<char>(letter - 32);
      const bool negative = next_is(std::string_view(&capital, 1));
      if (!take(std::string_view(&letter, 1)) && !take(std::string_view(&capital, 1))) continue;
      const CharacterSet set = letter == 'w' && !in_brackets ? word_characters() : *named(name);
      return negative ? ~set : set;
    }
    return std::nullopt;
  }

  CharacterSet property(bool in_brackets) {
    bool negative = take_character() == 'P';
    if (!take("{")) refuse("braces after \\p: Oniguruma takes \\pL for a property or for pL, as its version is");
    if (take("^")) negative = !negative;
    const std::size_t end = rest().find('}');
    if (end == std::string_view::npos) refuse("a property that is closed by }");
    const std::string_view name = rest().substr(0, end);
    at_ += end + 1;
    auto set = named(name);
    if (!set)
      refuse(
          "properties that are a general category, a POSIX class, Alphabetic, Uppercase, Lowercase, Emoji or another "
          "of unicode_properties.hpp, or a script in use, not " +
          in_quotes(name));
    if (!in_brackets && *set == *named("word")) set = word_characters();
    return negative ? ~*set : *set;
  }

  /// The character that an escape stands for, after the backslash.
  char32_t character_escape(bool in_brackets) {
    const auto hexadecimal = [&](std::size_t least, std::size_t most) {
      char32_t value = 0;
      std::size_t digits = 0;
      for (; digits < most && !rest().empty(); ++digits, ++at_) {
        const char c = rest()[0];
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) break;
        value = value * 16 + static_cast<char32_t>(digit);
      }
      if (digits < least || value > last_code_point || (value >= 0xD800 && value < 0xE000))
        refuse("hexadecimal digits of a character after \\x and \\u");
      return value;
    };
    const char32_t c = take_character();
    switch (c) {
      case 't':
        return '\t';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return 7;
      case 'e':
        return 27;
      case '0':
        if (!rest().empty() && rest()[0] >= '0' && rest()[0] <= '7') refuse("no octal escapes");
        return 0;
      case 'u':
        return hexadecimal(4, 4);
      case 'x': {
        const bool braces = take("{");
        const char32_t value = braces ? hexadecimal(1, 8) : hexadecimal(1, 2);
        if (braces ? !take("}") : value > 0x7F) refuse("\\x{…} for every character above \\x7F");
        return value;
      }
      case 'b':
        if (in_brackets) return '\b';
        break;
      default:
        break;
    }
    if (c < 0x80 && (is_ascii_letter(c) || is_ascii_digit(c))) refuse("no escape that means nothing");
    return c;
  }

  // Character classes ----------------------------------------------------------------------------------------------

  Node bracketed(const Options& options) {
    bool negative = false;
    CharacterSet set = class_members(negative, 0);
    if (options.ignore_case) {
      const auto& expanding = case_folding().expanding;
      if (!negative && std::any_of(expanding.begin(), expanding.end(), [&](char32_t c) { return set.contains(c); }))
        refuse("no class under (?i) with letters that are also one with several others, like ss and \u00DF");
      set = with_other_cases(set);
    }
    return characters(negative ? ~set : set);
  }

  /// What stands between [ (taken) and ] (which is taken), but for a leading ^.
  CharacterSet class_members(bool& negative, int depth) {
    if (depth > max_depth) refuse("classes at most 100 deep");
    std::optional<CharacterSet> before_and;
    std::vector<CodePointRange> ranges;
    const auto add = [&](const CharacterSet& set) {
      ranges.insert(ranges.end(), set.ranges().begin(), set.ranges().end());
    };
    bool after_escape = false;  // \w and the like
    negative = take("^");
    if (next_is("]") && rest().find(']', 1) == std::string_view::npos) refuse("a class that is not empty");
    for (bool first = true;; first = false) {
      if (rest().empty()) refuse("a ] for every [");
      if (!first && take("]")) break;
      if (take("&&")) {
        const CharacterSet part{std::exchange(ranges, {})};
        before_and = before_and ? *before_and & part : part;
        after_escape = false;
        continue;
      }
      const bool nested = next_is("[") && posix_name().empty();
      if (const auto set = set_in_class(depth)) {
        add(*set);
        after_escape = !nested;
        continue;
      }
      // There a hyphen is a plain one at the end alone, as in Oniguruma.
      if (after_escape && next_is("-") && !next_is("-]") && !next_is("-&&")) refuse("\\- for a hyphen after a set");
      after_escape = false;
      const char32_t from = class_character();
      char32_t to = from;
      if (next_is("-") && !next_is("-]") && !next_is("-&&")) {
        ++at_;
        if (next_is("[") || set_ahead()) refuse("a character at the end of a range");
        to = class_character();
        if (from > to) refuse("ranges that do not run backwards");
      }
      ranges.push_back({from, to});
    }
    const CharacterSet members{std::move(ranges)};
    return before_and ? *before_and & members : members;
  }

  /// A class within a class, [:name:] or an escape that stands for a set.
  std::optional<CharacterSet> set_in_class(int depth) {
    if (const std::string_view found = posix_name(); !found.empty()) {
      const bool negative = found.starts_with('^');
      const std::string_view name = found.substr(negative ? 1 : 0);
      static constexpr std::string_view known[] = {"alnum", "alpha", "blank", "cntrl", "digit",  "graph", "lower",
                                                   "print", "punct", "space", "upper", "xdigit", "ascii", "word"};
      if (std::find(std::begin(known), std::end(known), name) == std::end(known))
        refuse("the name of a POSIX class in [:…:]");
      at_ += found.size() + 4;
      const CharacterSet set = name == "punct" ? *named("p") | *named("s") : *named(name);
      return negative ? ~set : set;
    }
    if (take("[")) {
      bool negative = false;
      const CharacterSet set = class_members(negative, depth + 1);
      return negative ? ~set : set;
    }
    if (!set_ahead()) return std::nullopt;
    ++at_;
    return class_escape(true);
  }

  /// What stands in [:…:], if that begins here: letters, maybe after ^.
  std::string_view posix_name() const {
    if (!next_is("[:")) return {};
    const std::string_view name = rest().substr(2);
    std::size_t length = name.starts_with('^') ? 1 : 0;
    while (length < name.size() && is_ascii_letter(static_cast<unsigned char>(name[length]))) ++length;
    return name.substr(length).starts_with(":]") ? name.substr(0, length) : std::string_view();
  }

  bool set_ahead() const {
    return next_is("\\") && at_ + 1 < text_.size() &&
           std::string_view("dDsShHwWpP").find(text_[at_ + 1]) != std::string_view::npos;
  }

  char32_t class_character() { return take("\\") ? character_escape(true) : take_character(); }

  std::string_view text_;
  const std::string& where_;
  std::size_t at_ = 0, parts_ = 0;
  char32_t previous_letter_ = 0;  ///< under (?i), folded: may the next one make one letter with it?
  bool in_look_behind_ = false;
  std::map<std::string, std::optional<CharacterSet>> named_;
  Expression out_;
};

}  // namespace fedlora::detail
