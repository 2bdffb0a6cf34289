// SPDX-License-Identifier: Apache-2.0
// A regular expression of a tokenizer file in the first line, and the text that it cuts.
#include "fedlora/data/tokenizer/pattern.hpp"

#include <cstddef>
#include <string_view>

#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

const Target pattern_target("pattern", [](std::string_view input) {
  const std::string_view expression = take_line(input);
  const auto pattern = unless_refused("fuzz", [&] { return detail::Pattern::regex(expression, "fuzz"); });
  if (!pattern || detail::first_invalid_utf8(input) != input.npos) return;
  detail::PatternScratch scratch;
  const auto parts = unless_refused("fuzz", [&] { return pattern->find(input, scratch); });
  if (!parts) return;
  std::size_t at = 0;
  for (const detail::Match& part : *parts) {
    require(part.begin == at && part.end >= at && part.end <= input.size(), "parts lie one after another");
    require(detail::first_invalid_utf8(input.substr(part.begin, part.end - part.begin)) == input.npos,
            "a part is whole characters");
    require(part.matched || part.end > part.begin, "only a match may be empty");
    at = part.end;
  }
  require(at == input.size(), "parts cover the text");
});

}  // namespace fedlora::fuzz
