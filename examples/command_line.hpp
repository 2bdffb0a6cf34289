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

namespace fedlora::examples {

/// Wrong usage that only shows when options are seen together.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A check of one option's value: a number for which `holds`.
inline CLI::Validator number(std::string expected, std::function<bool(double)> holds) {
  return CLI::Validator(
      [expected, holds = std::move(holds)](std::string& text) -> std::string {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && std::isfinite(value) && holds(value)) return {};
        return "expected " + expected + ", got " + text;
      },
      "");
}

inline CLI::Validator at_least(double least) {
  if (least == 0) return number("a number of at least 0", [](double value) { return value >= 0; });
  return number("a whole number of at least 1", [](double value) { return value >= 1 && value == std::floor(value); });
}

inline CLI::Validator at_most(double most) {
  return number("at most " + std::to_string(static_cast<long long>(most)), [=](double value) { return value <= most; });
}

/// A whole number of 64 bits, without a sign.
inline CLI::Validator unsigned_number() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        std::uint64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error == std::errc() && end == text.data() + text.size()) return {};
        return "expected a whole number from 0 to 18446744073709551615, got " + text;
      },
      "");
}

inline CLI::Validator positive() {
  return number("a number above 0", [](double value) { return value > 0; });
}

inline CLI::Validator probability() {
  return number("a probability in [0, 1)", [](double value) { return value >= 0 && value < 1; });
}

/// "a,b" as {"a", "b"}.
inline std::vector<std::string> comma_separated(const std::string& list) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t comma = 0; comma != std::string::npos; begin = comma + 1) {
    comma = list.find(',', begin);
    parts.push_back(list.substr(begin, comma == std::string::npos ? comma : comma - begin));
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
  if (!path.starts_with(embedded_prefix)) return map_file(path);
  return {embedded_file(path.substr(path.rfind('/') + 1)), nullptr, path};
}

inline std::optional<Pooling> pooling_of(const std::string& name) {
  if (name == "cls") return Pooling::first_token;
  if (name == "last") return Pooling::last_token;
  if (name == "mean") return Pooling::mean;
  return std::nullopt;
}

/// What every program's options have in common; before the first is added. An option given twice has its last value, so
/// that a script can put its own after a person's.
inline void set_conventions(CLI::App& app) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.get_formatter()->column_width(34);
}

/// Parses the command line and runs `body`, which returns the exit status.
inline int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const std::string name = app.get_name();
  try {
    app.parse(argc, argv);
    const int status = body();
    if (!std::cout.flush()) fail<IoError>("standard output", "room to write", "an error");
    return status;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
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
