// SPDX-License-Identifier: Apache-2.0
// How the tests look at an error: its type, and what its message must say.
#pragma once

#include <doctest/doctest.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace fedlora::tests {

/// The message of the E that `action` throws. Anything else it throws ends the test case.
template <class E, class F>
std::string message_of(F&& action) {
  try {
    std::forward<F>(action)();
  } catch (const E& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

/// Checks that `action` throws an E of the form "[where] expected …, got …" whose message holds every one of `parts`.
template <class E, class F>
void check_error(F&& action, std::initializer_list<std::string_view> parts) {
  const std::string message = message_of<E>(std::forward<F>(action));
  INFO(message);
  CHECK(message.starts_with("["));
  CHECK(message.find("] expected ") != std::string::npos);
  CHECK(message.find(", got ") != std::string::npos);
  for (const std::string_view part : parts) {
    INFO("must say: ", std::string(part));
    CHECK(message.find(part) != std::string::npos);
  }
}

}  // namespace fedlora::tests
