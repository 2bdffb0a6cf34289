// SPDX-License-Identifier: Apache-2.0
// Tokenizers without a tokenizer.json: vocab.txt, or vocab.json with merges.txt, and the files beside them.
#include <algorithm>
#include <string>
#include <string_view>

#include "fedlora/hf/tokenizer_files.hpp"
#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"
#include "fuzz/tokenizer_check.hpp"

namespace fedlora::fuzz {

/// Whether the bytes of `part` occur in `whole`, in that order.
inline bool is_subsequence(std::string_view part, std::string_view whole) {
  for (const char c : whole)
    if (!part.empty() && part.front() == c) part.remove_prefix(1);
  return part.empty();
}

const Target vocabulary_target("vocabulary", [](std::string_view input) {
  FileContents files = files_of(input);
  const std::string texts = take_file(files, "texts");
  files.erase("tokenizer.json");
  const auto tokenizer = unless_refused("fuzz", [&] { return load_tokenizer(file_set(files)); });
  if (!tokenizer) return;
  check_tokenizer(*tokenizer, texts);
  if (files.contains("vocab.txt")) return;
  if (!tokenizer->warnings().empty()) return;  // of two tokens with one id, the other may come back

  // Bytes to tokens and back: some may have no token, none are made up.
  for (const std::string_view text : {std::string_view(texts), std::string_view("it's a\tb  c\n")}) {
    const auto encoding = unless_refused("", [&] { return tokenizer->encode(text, {.special_tokens = false}); });
    if (!encoding) continue;
    const std::string decoded = tokenizer->decode(encoding->ids);
    if (decoded.find("\uFFFD") == decoded.npos && !decoded.starts_with(' '))
      require(is_subsequence(decoded, text), "decoding invents nothing: " + decoded);
  }
});

}  // namespace fedlora::fuzz
