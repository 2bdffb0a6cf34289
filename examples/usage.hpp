// SPDX-License-Identifier: Apache-2.0
// What a person is told who asks for the version, or for an option that there is not.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/choice.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/version.hpp"

namespace fedlora::examples {

/// Version, compiler, instructions, whose matrix products, licence.
inline std::string version_text(const std::string& program) {
#if defined(__clang__)
  const std::string compiler = "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#else
  const std::string compiler = "g++ " __VERSION__;
#endif
#ifdef __OPTIMIZE__
  const std::string optimised = "";
#else
  const std::string optimised = ", not optimised, which is many times slower (CMAKE_BUILD_TYPE is Release otherwise)";
#endif
#ifdef FEDLORA_HAVE_ONEDNN
  const std::string products = "oneDNN";
#else
  const std::string products = "Eigen";
#endif
  return program + " " + version + "\ncompiled by " + compiler + optimised + "\nfor a CPU with " + cpu_level_names() +
         "\nmatrix products by " + products + "\nlicence Apache-2.0; NOTICE says whose the embedded model and data are";
}

/// How many letters have to be put in, left out, replaced or exchanged with their neighbour to make one word of the
/// other.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> table(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i)
    for (std::size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        table[i][j] = i + j;
        continue;
      }
      table[i][j] =
          std::min({table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        table[i][j] = std::min(table[i][j], table[i - 2][j - 2] + 1);
    }
  return table[a.size()][b.size()];
}

/// The option that somebody meant who wrote `typed`, one of `names` ("--lr-schedule"): what it is called elsewhere,
/// else the nearest within a third of its letters (of two as near, the one that `typed` begins with, or that begins
/// with it), else one of whose words these are or the other way round. Empty when there is none.
inline std::string nearest_option(std::string_view typed, const std::vector<std::string>& names) {
  static const std::map<std::string, std::string> elsewhere = {{"learning-rate", "--lr"},
                                                               {"lora-r", "--rank"},
                                                               {"target-modules", "--targets"},
                                                               {"output-dir", "--out"},
                                                               {"max-length", "--max-tokens"},
                                                               {"max-seq-length", "--max-tokens"},
                                                               {"output", "--out"},
                                                               {"input", "--file"}};
  std::string word;
  for (const char c : typed.substr(0, typed.find('='))) {
    const bool upper = c >= 'A' && c <= 'Z';
    if (word.empty() && !upper && (c < 'a' || c > 'z')) continue;  // dashes of any kind
    word += c == '_' ? '-' : static_cast<char>(upper ? c - 'A' + 'a' : c);
  }
  if (word.empty() || word.size() > 64) return {};
  if (const auto known = elsewhere.find(word); known != elsewhere.end())
    if (std::find(names.begin(), names.end(), known->second) != names.end()) return known->second;
  constexpr std::size_t far = 10000;
  const auto distance = [&](const std::string& name) -> std::size_t {
    const std::string option = name.substr(2);
    const std::size_t edits = edit_distance(word, option);
    const std::size_t order = 2 * edits + (word.starts_with(option) || option.starts_with(word) ? 0 : 1);
    if (edits <= std::max<std::size_t>(1, option.size() / 3)) return order;
    const auto holds = [](const std::string& whole, const std::string& part) {
      return ("-" + whole + "-").find("-" + part + "-") != std::string::npos;
    };
    if (holds(option, word) || holds(word, option) || option.starts_with(word) || word.ends_with(option))
      return 1000 + order;
    return far;
  };
  std::string nearest;
  std::size_t least = far;
  for (const std::string& name : names)
    if (const std::size_t here = distance(name); here < least) {
      least = here;
      nearest = name;
    }
  return nearest;
}

/// What is wrong with arguments that belong to no option.
inline std::string unknown_arguments(const CLI::App& app, const std::vector<std::string>& arguments) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  std::string text;
  for (const std::string& argument : arguments) {
    const bool option =
        argument.starts_with("-") || (!argument.empty() && static_cast<unsigned char>(argument[0]) >= 0x80);
    if (!option && !text.empty()) continue;  // the value of the option before it
    const std::string meant = nearest_option(argument, names);
    text += (text.empty() ? "" : "\n") +
            (option ? "there is no option " + detail::printable(argument)
                    : "expected --name value, got " + detail::in_quotes(argument)) +
            (meant.empty() ? "" : "; is " + meant + " meant?");
  }
  return text;
}

}  // namespace fedlora::examples
