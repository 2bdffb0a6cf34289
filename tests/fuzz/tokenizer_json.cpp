// SPDX-License-Identifier: Apache-2.0
// tokenizer.json, with the tokenizer_config.json and the rest that may lie beside it.
#include <string>
#include <string_view>

#include "fedlora/hf/tokenizer_files.hpp"
#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"
#include "fuzz/tokenizer_check.hpp"

namespace fedlora::fuzz {

const Target tokenizer_json_target("tokenizer_json", [](std::string_view input) {
  FileContents files = files_of(input);
  const std::string texts = take_file(files, "texts");
  if (const auto bare = files.find(""); bare != files.end()) files.emplace("tokenizer.json", bare->second);
  const auto tokenizer = unless_refused("fuzz", [&] { return load_tokenizer(file_set(files)); });
  if (tokenizer) check_tokenizer(*tokenizer, texts);
});

}  // namespace fedlora::fuzz
