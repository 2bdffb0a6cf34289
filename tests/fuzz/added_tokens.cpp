// SPDX-License-Identifier: Apache-2.0
// Added tokens over a small vocabulary: a line "FLAGS CONTENT" each (letters s, w, l, r, n: special, single_word,
// lstrip, rstrip, normalized), then an empty line and the text. The parts found lie one after another and cover the
// text.
#include "fedlora/data/tokenizer/added_tokens.hpp"

#include <string>
#include <string_view>
#include <vector>

#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

inline AddedToken added_token_of(std::string_view line) {
  const std::string_view flags = take_word(line);
  const auto flag = [&](char letter) { return flags.find(letter) != flags.npos; };
  return {.content = std::string(line),
          .special = flag('s'),
          .single_word = flag('w'),
          .lstrip = flag('l'),
          .rstrip = flag('r'),
          .normalized = flag('n')};
}

/// The parts of a text: whole characters, one after another, a token's own content in each that is one. Only of the
/// white space that a token has taken may another take some again.
inline void require_tiling(const std::vector<detail::TokenSpan>& spans, std::string_view text,
                           const detail::AddedTokens& tokens) {
  const auto require_white = [&](std::string_view part) {
    for (std::size_t i = 0; i < part.size();)
      require(detail::is_space(detail::next_code_point(part, i)), "a token takes white space alone besides");
  };
  std::size_t at = 0;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const detail::TokenSpan& span = spans[i];
    require(span.end > span.begin && span.end <= text.size() && span.begin <= at &&
                (i == 0 || span.begin > spans[i - 1].begin) && (span.id >= 0 || span.begin == at),
            "parts lie one after another");
    require_white(text.substr(span.begin, at - span.begin));
    at = span.end;
    const std::string_view part = text.substr(span.begin, span.end - span.begin);
    require(detail::first_invalid_utf8(part) == part.npos, "a part is whole characters");
    if (span.id < 0) continue;
    const AddedToken* const token = tokens.token_of(span.id);
    require(token != nullptr, "a part that is a token has its text");
    const std::string* const written = token->normalized ? tokens.written_form_of(span.id) : &token->content;
    const std::size_t own = part.find(*written);
    require(own != part.npos || detail::is_space(detail::code_point_at(*written, 0)),
            "a part that is a token holds it");
    if (own == part.npos) continue;  // the white space that it begins with was taken before
    require_white(part.substr(0, own));
    require_white(part.substr(own + written->size()));
  }
  require(at == text.size(), "parts cover the text");
}

const Target added_tokens_target("added_tokens", [](std::string_view input) {
  if (detail::first_invalid_utf8(input) != input.npos) return;
  std::vector<AddedToken> list;
  while (!input.empty()) {
    const std::string_view line = take_line(input);
    if (line.empty()) break;
    list.push_back(added_token_of(line));
  }
  static const detail::Vocabulary vocabulary({{"a", 0}, {"b", 1}, {"ab", 2}, {"<s>", 3}, {" ", 4}}, "fuzz");
  static const std::vector<detail::Normalizer> normalizers{detail::LowercaseNormalizer{}};
  const auto tokens = unless_refused("fuzz", [&] {
    detail::AddedTokens added;
    added.add(list, vocabulary, normalizers, "fuzz");
    return added;
  });
  if (!tokens) return;
  for (const AddedToken& token : list)
    if (!token.content.empty()) {
      const std::int32_t id = tokens->find(token.content);
      require(id >= 0 && tokens->token_of(id) != nullptr && tokens->token_of(id)->content == token.content,
              "a token has an id, and the id the token");
    }
  require_tiling(tokens->find_verbatim(input), input, *tokens);
  if (tokens->searches_normalized()) require_tiling(tokens->find_normalized(input), input, *tokens);
});

}  // namespace fedlora::fuzz
