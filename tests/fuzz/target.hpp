// SPDX-License-Identifier: Apache-2.0
// What every fuzz target is: a name, which is that of its corpus, and a function that reads an input and holds the
// reader to its contract. README.md says how to run them and how to add one.
#pragma once

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"

namespace fedlora::fuzz {

/// Registers itself; one object at namespace scope in each target's file, under a name of its own.
class Target {
 public:
  using Run = void (*)(std::string_view input);

  Target(std::string name, Run run) : name_(std::move(name)), run_(run) { all().push_back(this); }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  const std::string& name() const { return name_; }
  void operator()(std::string_view input) const { run_(input); }

  /// Every target of this executable.
  static std::vector<const Target*>& all() {
    static std::vector<const Target*> targets;
    return targets;
  }

 private:
  std::string name_;
  Run run_;
};

/// A contract that an input broke. No `Error`: nothing takes it for a refusal, so it ends the run.
class Finding : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

inline void require(bool holds, const std::string& contract) {
  if (!holds) throw Finding("broken: " + contract);
}

/// A refusal that a person can read and a terminal survives: "[where] expected …, got …", where beginning with `file`.
inline void require_message(std::string_view message, std::string_view file) {
  const std::string all(message);
  require(message.starts_with("[" + std::string(file)), "the message begins with the file: " + all);
  require(message.find("] expected ") != message.npos && message.find(", got ") != message.npos,
          "the message says what was expected and what came: " + all);
  require(message.size() < 8000, "a message is short, and this has " + std::to_string(message.size()) + " bytes");
  require(detail::first_invalid_utf8(message) == message.npos, "the message is UTF-8");
  for (const char c : message)
    require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f, "no control characters in a message: " + all);
}

/// What `read` gives, or nothing where it refuses its input as it should. Whatever is no `Error` passes: it is a
/// finding, as is a message that does not begin with the file.
template <class F>
auto unless_refused(std::string_view file, F&& read) -> std::optional<std::decay_t<std::invoke_result_t<F>>> {
  try {
    return std::forward<F>(read)();
  } catch (const Error& error) {
    require_message(error.what(), file);
    return std::nullopt;
  }
}

}  // namespace fedlora::fuzz
