// SPDX-License-Identifier: Apache-2.0
// What the programs' command lines share: how values are checked, where models and tables come from, and what becomes
// of an error. Exit status: 0, 1 for an error, 2 for wrong usage.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "embedded_data.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/hf/cache.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/nn/config.hpp"
#include "usage.hpp"

namespace fedlora::examples {

/// Wrong usage that only shows when options are seen together.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A check of one option's value.
inline CLI::Validator checked(std::string expected, std::function<bool(const std::string&)> right) {
  return CLI::Validator(
      [expected = std::move(expected), right = std::move(right)](std::string& text) -> std::string {
        if (right(text)) return {};
        return "expected " + expected + ", got " + (text.empty() ? "nothing" : detail::printable(text));
      },
      "");
}

/// A number for which `holds`: neither infinite nor too large for a double.
inline CLI::Validator number(std::string expected, std::function<bool(double)> holds) {
  return checked(std::move(expected), [holds = std::move(holds)](const std::string& text) {
    double value = 0;
    return CLI::detail::lexical_cast(text, value) && std::isfinite(value) && holds(value);
  });
}

/// A whole number in decimal digits. A zero in front would make it octal to CLI11, so there is none.
inline CLI::Validator whole_between(std::uint64_t least, std::uint64_t most) {
  const std::string expected = "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
  return checked(expected, [=](const std::string& text) {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() && (text.size() == 1 || text[0] != '0') &&
           value >= least && value <= most;
  });
}

inline CLI::Validator positive() {
  return number("a finite number above 0", [](double value) { return value > 0; });
}

inline CLI::Validator not_negative() {
  return number("a finite number of at least 0", [](double value) { return value >= 0; });
}

inline CLI::Validator probability() {
  return number("a probability in [0, 1)", [](double value) { return value >= 0 && value < 1; });
}

/// "a,b" as {"a", "b"}; spaces after the commas are nobody's.
inline std::vector<std::string> comma_separated(const std::string& list) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t comma = 0; comma != std::string::npos; begin = comma + 1) {
    comma = list.find(',', begin);
    std::string part = list.substr(begin, comma == std::string::npos ? comma : comma - begin);
    if (!parts.empty()) part.erase(0, part.find_first_not_of(' '));
    parts.push_back(std::move(part));
  }
  return parts;
}

inline constexpr std::string_view embedded_prefix = "embedded:";

/// The files of a directory, of a repository in the Hugging Face cache, or those in the program.
inline FileSet model_files(const std::string& model) {
  if (!model.starts_with(embedded_prefix)) return FileSet::directory(resolve_model(model));
  std::map<std::string, Bytes> files;
  for (const EmbeddedFile& file : embedded_model_files())
    files.emplace(std::string(file.name), Bytes{file.bytes, nullptr, std::string(file.name)});
  return FileSet::memory(model, std::move(files));
}

/// The bytes of a table on disk or in the program.
inline Bytes table_file(const std::string& path) {
  if (!path.starts_with(embedded_prefix)) return map_downloaded_file(path);
  return {embedded_file(path.substr(path.rfind('/') + 1)), nullptr, path};
}

inline TableHeader table_header_of(const std::string& name) {
  return name == "yes" ? TableHeader::yes : name == "no" ? TableHeader::no : TableHeader::detect;
}

/// --header, for `table_header_of`.
inline CLI::Option* declare_header(CLI::App& app, std::string& header) {
  return app
      .add_option("--header", header, "Whether tables start with names of columns; auto: if any column goes by name")
      ->check(CLI::IsMember({"auto", "yes", "no"}))
      ->capture_default_str();
}

/// What a person should be told, as a line that says how grave it is.
inline std::string note_line(const std::string& note) { return (note.starts_with("warning: ") ? "" : "note: ") + note; }

/// What every program's options have in common; before the first is added. An option given twice has its last value, so
/// that a script can put its own after a person's.
inline void set_conventions(CLI::App& app) {
  app.set_version_flag("--version", version_text(app.get_name()), "What this program is, and how it was compiled");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.get_formatter()->column_width(34);
}

/// A shell's variable that is not set makes an empty value, which is nobody's intention.
inline void refuse_empty_values(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options())
    if (option->count() > 0 && option->results().back().empty())
      fail<UsageError>(option->get_name(), "a value", "nothing");
}

/// What is wrong with a command line, in our words where CLI11's are for programmers.
inline std::string usage_text(const CLI::App& app, const CLI::ParseError& error) {
  const std::string what = error.what();
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) return unknown_arguments(app, app.remaining());
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr)
    return what.substr(0, what.find(':')) + ": expected a value after it, got none";
  return what;
}

/// Parses the command line and runs `body`, which returns the exit status.
inline int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const std::string name = app.get_name();
  try {
    app.parse(argc, argv);
    refuse_empty_values(app);
    const int status = body();
    if (!std::cout.flush()) fail<IoError>("standard output", "room to write", "an error");
    return status;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::cerr << name << ": " << usage_text(app, error) << "\nRun with --help for more information.\n";
    return 2;
  } catch (const UsageError& error) {
    std::cerr << name << ": " << error.what() << "\nRun with --help for more information.\n";
    return 2;
  } catch (const std::bad_alloc&) {
    std::cerr << name << ": out of memory\n";
  } catch (const NoDeviceError& error) {
    std::cerr << name << ": " << error.what() << '\n';
    return 77;  // what a test that is skipped says
  } catch (const std::exception& error) {
    std::cout.flush();
    std::cerr << name << ": " << error.what() << '\n';
  }
  return 1;
}

}  // namespace fedlora::examples
