// SPDX-License-Identifier: Apache-2.0
// fedlora-tokenize: a line of text in, a JSON array of token ids out; with --decode the other way round.
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "command_line.hpp"
#include "fedlora/hf/cache.hpp"
#include "fedlora/hf/tokenizer_files.hpp"

namespace {

using namespace fedlora;

/// What a line becomes.
std::string answer(const Tokenizer& tokenizer, const std::string& line, bool decode, bool special_tokens) {
  if (!decode) return Json(tokenizer.encode(line, {.max_tokens = 0, .special_tokens = special_tokens}).ids).dump();
  const Json ids = {{"ids", parse_json(bytes_of(line, "standard input"))}};
  return tokenizer.decode(json_get<std::vector<std::int32_t>>(ids, "ids", "standard input"));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Reads lines from standard input: of text, and writes a JSON array of token ids for each; or back.",
               "fedlora-tokenize");
  examples::set_conventions(app);
  std::string path;
  bool no_special = false, decode = false;
  app.add_option("--tokenizer", path,
                 "A model directory, or org/name in the Hugging Face cache; or a tokenizer.json (read alone), "
                 "vocab.txt or vocab.json")
      ->required();
  app.add_flag("--no-special", no_special, "Do not put special tokens around the text");
  app.add_flag("--decode", decode, "JSON arrays in, text out; special tokens are left out");
  return examples::run_program(app, argc, argv, [&] {
    std::ios::sync_with_stdio(false);
    const std::filesystem::path given(path);
    const Tokenizer tokenizer = load_tokenizer(std::filesystem::exists(given) ? given : resolve_model(path));
    for (const std::string& warning : tokenizer.warnings())
      std::cerr << "fedlora-tokenize: warning: " << warning << '\n';
    std::size_t number = 0;
    for (std::string line; std::getline(std::cin, line);) {
      ++number;
      try {
        std::cout << answer(tokenizer, line, decode, !no_special) << '\n';
      } catch (const Error& error) {
        throw Error("line " + std::to_string(number) + ": " + error.what());
      }
    }
    return 0;
  });
}
