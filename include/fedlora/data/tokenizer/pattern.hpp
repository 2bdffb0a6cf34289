// SPDX-License-Identifier: Apache-2.0
// The patterns of tokenizer files: plain strings and regular expressions, with the matches of Hugging Face tokenizers.
//
// Why no library: those match with Oniguruma, whose development ended in April 2025; nobody mends it for files of
// strangers. PCRE2 is kept and has limits, but the same signs mean other things to it (\h, $, (?m), [a-z&&[^b]], what
// (?i) folds, the Unicode version of \p): a translator has to read all of the syntax too, which is most of the code
// here, and could not hide the rest. tests/golden/tokenizer/patterns.json has Oniguruma's own answers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/data/tokenizer/pattern_program.hpp"
#include "fedlora/data/tokenizer/pattern_syntax.hpp"

namespace fedlora::detail {

/// A part of a text, which the pattern matches or not.
struct Match {
  std::size_t begin, end;
  bool matched;
};

/// A pattern: finds the parts of a text. Cheap to copy; many threads may use one, each with its own scratch memory.
class Pattern {
 public:
  /// A plain string. \throws FormatError with `where` for one of more than 1024 different characters.
  static Pattern literal(std::string_view text, const std::string& where = "pattern") {
    constexpr std::size_t most = 1024;
    Expression expression;
    std::vector<CharacterSet>& sets = expression.sets;
    for (std::size_t i = 0; i < text.size();) {
      const char32_t c = next_code_point(text, i);
      const auto found = std::find(sets.begin(), sets.end(), CharacterSet(c, c));
      ExpressionNode& part = expression.root.parts.emplace_back();
      part.kind = ExpressionNode::Kind::characters;
      part.set = static_cast<std::uint32_t>(found - sets.begin());
      if (found != sets.end()) continue;
      if (sets.size() == most)
        fail<FormatError>(where, "a string of at most 1024 different characters", in_quotes(text, 200));
      sets.emplace_back(c, c);
    }
    return Pattern(text, where, expression);
  }

  /// A regular expression in Oniguruma's syntax. \throws FormatError with `where` for one that is wrong, too large or
  /// uses what is not read (pattern_syntax.hpp).
  static Pattern regex(std::string_view text, const std::string& where = "pattern") {
    return Pattern(text, where, ExpressionReader::read(text, where));
  }

  /// The parts of `text` (valid UTF-8), in order; together they cover it. Some may be empty. \throws FormatError when
  /// the expression needs too much work for it.
  std::vector<Match> find(std::string_view text, PatternScratch& scratch) const {
    std::vector<Match> out;
    std::size_t done = 0;
    for_each_match(text, scratch, [&](std::size_t begin, std::size_t end) {
      if (done < begin) out.push_back({done, begin, false});
      out.push_back({begin, end, true});
      done = end;
    });
    if (done < text.size()) out.push_back({done, text.size(), false});
    return out;
  }

  /// `text` with `content` in place of every match. \throws FormatError when that has more than `most` bytes.
  std::string replace(std::string_view text, std::string_view content,
                      std::size_t most = std::numeric_limits<std::size_t>::max()) const {
    PatternScratch scratch;
    std::string out;
    out.reserve(text.size() + text.size() / 4);
    std::size_t done = 0;
    for_each_match(text, scratch, [&](std::size_t begin, std::size_t end) {
      out.append(text.substr(done, begin - done)).append(content);
      done = end;
      if (out.size() > most)
        fail<FormatError>(state_->where, "a text of at most " + std::to_string(most) + " bytes after replacing",
                          "more");
    });
    return out.append(text.substr(done));
  }

  /// Calls `found(begin, end)` for every match, in order.
  template <class Found>
  void for_each_match(std::string_view text, PatternScratch& scratch, Found&& found) const {
    if (!state_->program.find(text, scratch, found))
      fail<FormatError>(state_->where,
                        "a regular expression that needs no more than " +
                            std::to_string(PatternProgram::max_steps(text.size())) + " steps for a text of " +
                            std::to_string(text.size()) + " bytes",
                        in_quotes(state_->text, 200));
  }

 private:
  struct State {
    std::string text, where;
    PatternProgram program;
  };

  Pattern(std::string_view text, const std::string& where, const Expression& expression)
      : state_(std::make_shared<const State>(State{std::string(text), where, {expression, where}})) {}

  std::shared_ptr<const State> state_;
};

/// The words of GPT-2, which byte-level tokenizers have built in; its matches cover every text.
inline const Pattern& gpt2_words() {
  static const Pattern pattern =
      Pattern::regex(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)");
  return pattern;
}

}  // namespace fedlora::detail
