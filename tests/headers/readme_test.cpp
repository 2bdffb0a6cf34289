// SPDX-License-Identifier: Apache-2.0
// The README is read by people who copy from it: its C++ blocks compile as they stand, the first program it shows is
// examples/quickstart.cpp, and its two commands are where a script finds them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "support.hpp"

namespace {

using fedlora::tests::read_text;

const std::filesystem::path project = std::filesystem::path(FEDLORA_TEST_DIR) / "..";

struct Block {
  std::string language;
  std::string heading;  ///< the heading above it
  std::string text;
  int line;  ///< of its first line in the file
};

std::vector<Block> fenced_blocks(const std::string& markdown) {
  std::vector<Block> blocks;
  std::istringstream lines(markdown);
  std::string line, heading;
  int number = 0;
  bool inside = false;
  while (std::getline(lines, line)) {
    ++number;
    if (line.starts_with("```")) {
      if (!inside) blocks.push_back({line.substr(3), heading, "", number + 1});
      inside = !inside;
    } else if (inside) {
      blocks.back().text += line + "\n";
    } else if (line.starts_with("#")) {
      heading = line;
    }
  }
  REQUIRE_FALSE(inside);
  return blocks;
}

/// What stands after the comment at the top of a source.
std::string without_head(const std::string& source) {
  std::size_t at = 0;
  while (source.compare(at, 2, "//") == 0) at = source.find('\n', at) + 1;
  while (at < source.size() && source[at] == '\n') ++at;
  return source.substr(at);
}

bool compiles(const std::string& source, const std::string& name, bool quiet = false) {
  const fedlora::tests::TemporaryDirectory directory;
  const auto file = directory.path() / name;
  fedlora::tests::write_text(file, source);
  const std::string command = std::string("\"") + FEDLORA_TEST_COMPILER + "\" \"@" + FEDLORA_TEST_FLAGS_FILE +
                              "\" -fsyntax-only -Wall -Wextra -Werror \"" + file.string() + "\"" +
                              (quiet ? " 2>/dev/null" : "");
  return std::system(command.c_str()) == 0;
}

}  // namespace

TEST_CASE("every C++ block of the README compiles as it stands") {
  int programs = 0;
  for (const Block& block : fenced_blocks(read_text(project / "README.md"))) {
    if (block.language != "cpp") continue;
    ++programs;
    CHECK_MESSAGE(compiles(block.text, "readme_line_" + std::to_string(block.line) + ".cpp"), block.text);
  }
  CHECK(programs > 0);
  CHECK_FALSE(
      compiles("#include <fedlora/version.hpp>\nint main() { return fedlora::no_such_name; }\n", "wrong.cpp", true));
}

TEST_CASE("the README shows examples/quickstart.cpp") {
  const std::string quickstart = without_head(read_text(project / "examples" / "quickstart.cpp"));
  bool shown = false;
  for (const Block& block : fenced_blocks(read_text(project / "README.md"))) {
    shown = shown || (block.language == "cpp" && without_head(block.text) == quickstart);
  }
  CHECK(shown);
}

TEST_CASE("the two commands stand alone in their blocks") {
  for (const std::string heading : {"## Run it", "## Test it"}) {
    CAPTURE(heading);
    int found = 0;
    for (const Block& block : fenced_blocks(read_text(project / "README.md"))) {
      if (block.heading != heading || block.language != "sh") continue;
      ++found;
      CHECK(std::count(block.text.begin(), block.text.end(), '\n') == 1);
    }
    CHECK(found == 1);
  }
}
