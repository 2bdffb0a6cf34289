// SPDX-License-Identifier: Apache-2.0
#include "fedlora/core/utf8.hpp"

#include <doctest/doctest.h>

#include <string>
#include <string_view>

#include "fedlora/core/error.hpp"

namespace fedlora::detail {
namespace {

TEST_CASE("UTF-8: exactly the well-formed sequences pass") {
  const auto whole = [](std::string_view text) { return first_invalid_utf8(text) == std::string_view::npos; };
  for (const char* good : {"", "a", "\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
                           "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"})
    CHECK(whole(good));
  for (const char* bad :
       {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC2", "\xC2\x41", "\xE0\x9F\xBF", "\xE0\xA0", "\xED\xA0\x80",
        "\xED\xBF\xBF", "\xF0\x8F\xBF\xBF", "\xF0\x90\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"})
    CHECK_FALSE(whole(bad));
  CHECK(first_invalid_utf8("ab\xC3\xA4\xE2\x82") == 4);
}

TEST_CASE("printable shortens at a character and shows what cannot be shown") {
  CHECK(printable("a\tb\x7F") == "a\\x09b\\x7f");
  CHECK(printable("\xC3(\xE2\x82") == "\\xc3(\\xe2\\x82");
  CHECK(printable("ääää", 3) == "ää…");
  CHECK(printable("abc", 3) == "abc");
  CHECK(printable("abcd", 3) == "abc…");
  CHECK(in_quotes("a\x1b[2J\n\x7f") == "'a\\x1b[2J\\x0a\\x7f'");
}

TEST_CASE("an error cannot steer a terminal, nor drown it") {
  const std::string zero(1, '\0');
  try {
    fail<ConfigError>("config.json\x1b[31m", "a name", "que" + zero + std::string(5000, 'x'));
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message.starts_with("[config.json\\x1b[31m] expected a name, got que\\x00xxx"));
    CHECK(message.size() < 1200);
  }
}

}  // namespace
}  // namespace fedlora::detail
