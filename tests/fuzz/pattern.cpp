// SPDX-License-Identifier: Apache-2.0
// The expressions of tokenizer files: the first line is one, what follows the text that it is looked for in.
#include "fedlora/data/tokenizer/pattern.hpp"

#include <string>
#include <string_view>
#include <vector>

#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

/// The parts of a text: one after another, whole characters; put together again they are the text.
inline void check_pattern(const detail::Pattern& pattern, std::string_view text) {
  detail::PatternScratch scratch;
  const auto parts = unless_refused("fuzz", [&] { return pattern.find(text, scratch); });
  if (!parts) return;
  std::string others;
  std::size_t at = 0;
  for (const detail::Match& part : *parts) {
    require(part.begin == at && part.end >= part.begin && part.end <= text.size() &&
                (part.matched || part.end > part.begin),
            "parts lie one after another");
    at = part.end;
    const std::string_view own = text.substr(part.begin, part.end - part.begin);
    require(detail::first_invalid_utf8(own) == own.npos, "a part is whole characters");
    if (!part.matched) others += own;
  }
  require(at == text.size(), "parts cover the text");
  require(pattern.replace(text, "") == others, "what is not matched stays");
  const auto again = pattern.find(text, scratch);
  require(again.size() == parts->size() && (again.empty() || again.back().begin == parts->back().begin),
          "memory that was used before makes no difference");
}

const Target pattern_target("pattern", [](std::string_view input) {
  const std::string_view expression = take_line(input);
  const bool text_is_text = detail::first_invalid_utf8(input) == input.npos;
  const auto pattern = unless_refused("fuzz", [&] { return detail::Pattern::regex(expression, "fuzz"); });
  if (pattern && text_is_text) check_pattern(*pattern, input);
  if (!expression.empty() && detail::first_invalid_utf8(expression) == expression.npos && text_is_text) {
    const auto literal = unless_refused("fuzz", [&] { return detail::Pattern::literal(expression, "fuzz"); });
    if (!literal) return;
    check_pattern(*literal, input);
    std::string replaced(input);
    for (std::size_t at = 0; (at = replaced.find(expression, at)) != replaced.npos; at += 1)
      replaced.replace(at, expression.size(), "\n");
    require(literal->replace(input, "\n") == replaced, "a plain string is found as it is");
  }
});

}  // namespace fedlora::fuzz
