// SPDX-License-Identifier: Apache-2.0
// fedlora-tokenize: a line of text in, a JSON array of token ids out; with --decode the other way round.
#include <CLI/CLI.hpp>
#include <iostream>
#include <string>
#include <vector>

#include "fedlora/hf/tokenizer_files.hpp"

int main(int argc, char** argv) {
  CLI::App app("Reads lines from standard input: of text, and writes a JSON array of token ids for each; or back.",
               "fedlora-tokenize");
  std::string path;
  bool no_special = false, decode = false;
  app.add_option("--tokenizer", path, "A model directory; or a tokenizer.json (read alone), vocab.txt or vocab.json")
      ->required();
  app.add_flag("--no-special", no_special, "Do not put special tokens around the text");
  app.add_flag("--decode", decode, "JSON arrays in, text out; special tokens are left out");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }

  std::ios::sync_with_stdio(false);
  std::size_t line_number = 0;
  try {
    const fedlora::Tokenizer tokenizer = fedlora::load_tokenizer(std::filesystem::path(path));
    for (const std::string& warning : tokenizer.warnings()) std::cerr << "fedlora-tokenize: " << warning << '\n';
    for (std::string line; std::getline(std::cin, line);) {
      ++line_number;
      if (decode) {
        const fedlora::Json line_of_ids = {{"ids", fedlora::parse_json(fedlora::bytes_of(line, "standard input"))}};
        std::cout << tokenizer.decode(
                         fedlora::json_get<std::vector<std::int32_t>>(line_of_ids, "ids", "standard input"))
                  << '\n';
      } else {
        const auto encoding = tokenizer.encode(line, {.max_tokens = 0, .special_tokens = !no_special});
        std::cout << fedlora::Json(encoding.ids).dump() << '\n';
      }
    }
    line_number = 0;
    if (!std::cout.flush()) throw fedlora::IoError("[standard output] expected room to write, got an error");
  } catch (const std::exception& error) {
    std::cout.flush();
    std::cerr << "fedlora-tokenize: ";
    if (line_number > 0) std::cerr << "line " << line_number << ": ";
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
