// SPDX-License-Identifier: Apache-2.0
// An older C++ is told so by one message, whichever header comes first.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "support.hpp"

namespace {

using fedlora::tests::has;

/// What the compiler says about a file that includes `header` alone; `ok` becomes whether it compiles.
std::string said_about(const std::string& header, const std::string& standard, bool& ok) {
  const fedlora::tests::TemporaryDirectory directory;
  fedlora::tests::write_text(directory.path() / "one.cpp", "#include <" + header + ">\nint main() {}\n");
  const std::string errors = (directory.path() / "errors").string();
  const std::string command = std::string("LC_ALL=C \"") + FEDLORA_TEST_COMPILER + "\" \"@" + FEDLORA_TEST_FLAGS_FILE +
                              "\" " + standard + " -fsyntax-only \"" + (directory.path() / "one.cpp").string() +
                              "\" 2>\"" + errors + "\"";
  ok = std::system(command.c_str()) == 0;
  return fedlora::tests::read_text(errors);
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace

TEST_CASE("under C++17 every header says that it needs C++20, and nothing else") {
  bool ok = true;
  for (const char* const header : {"fedlora/fedlora.hpp", "fedlora/core/shape.hpp", "fedlora/io/json.hpp",
                                   "fedlora/hf/peft.hpp", "fedlora/testing/gradient_check.hpp"}) {
    CAPTURE(header);
    const std::string said = said_about(header, "-std=c++17", ok);
    CHECK_FALSE(ok);
    CHECK(has(said, "fedlora needs C++20: compile with -std=c++20"));
    CHECK_MESSAGE(count(said, "error:") == 2, said);  // the message, and the include that ends it
  }
  said_about("fedlora/core/shape.hpp", "-std=c++20", ok);
  CHECK(ok);
}
