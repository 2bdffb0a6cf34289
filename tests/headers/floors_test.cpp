// SPDX-License-Identifier: Apache-2.0
// The order of the house: an include of the library goes down to a lower floor, or sideways inside one folder. And what
// every header owes: the licence line, the guard, an end before it gets too long.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "support.hpp"

namespace {

namespace fs = std::filesystem;

constexpr int max_header_lines = 600;

const std::map<std::string, int> floors = {{"core", 0},  {"backend", 1}, {"io", 1},     {"nn", 2},
                                           {"optim", 2}, {"data", 2},    {"lora", 3},   {"fed", 4},
                                           {"hf", 4},    {"report", 4},  {"testing", 5}};
const std::set<std::string> umbrellas = {"fedlora.hpp", "cuda.cuh"};

/// A header's place: its top folder (empty for those beside version.hpp) and floor.
struct Place {
  std::string folder;
  int floor;
};

/// `header` is relative to include/fedlora.
std::optional<Place> place_of(const std::string& header) {
  const std::size_t slash = header.find('/');
  if (slash == std::string::npos) {
    if (header == "version.hpp") return Place{"", 0};
    if (umbrellas.contains(header)) return Place{"", 5};
    return std::nullopt;
  }
  const auto floor = floors.find(header.substr(0, slash));
  if (floor == floors.end()) return std::nullopt;
  return Place{floor->first, floor->second};
}

/// What is wrong with `text` as the header `name`; empty if nothing is. `exists` tells whether the library has a
/// header.
std::vector<std::string> faults(const std::string& name, const std::string& text,
                                const std::function<bool(const std::string&)>& exists) {
  std::vector<std::string> found;
  const auto from = place_of(name);
  if (!from) found.push_back(name + ": stands on no floor");

  static const std::regex include(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  std::istringstream lines(text);
  std::string line;
  int count = 0;
  bool guarded = false;
  while (std::getline(lines, line)) {
    ++count;
    if (count == 1 && line != "// SPDX-License-Identifier: Apache-2.0")
      found.push_back(name + ": the first line is not the licence");
    if (line == "#pragma once") guarded = true;
    std::smatch match;
    if (!std::regex_match(line, match, include)) continue;
    const std::string target = match[2];
    const std::string where = name + ":" + std::to_string(count) + ": ";
    if (!target.starts_with("fedlora/")) {
      if (match[1] == "\"")
        found.push_back(where + "\"" + target + "\" is written neither as \"fedlora/...\" nor with <>");
      continue;
    }
    const std::string header = target.substr(std::string("fedlora/").size());
    const auto to = place_of(header);
    if (!exists(header)) found.push_back(where + "no such header: " + target);
    if (!to || !from) continue;
    if (header.ends_with(".cuh") && !name.ends_with(".cuh"))
      found.push_back(where + target + " holds kernels, which an .hpp must not reach");
    const bool down = to->floor < from->floor;
    const bool inside = to->folder == from->folder && !to->folder.empty();
    const bool umbrella_on_its_floor = from->folder.empty() && from->floor == 5 && to->floor == 5;
    if (!down && !inside && !umbrella_on_its_floor) {
      found.push_back(where + target + " is on floor " + std::to_string(to->floor) + ", not below floor " +
                      std::to_string(from->floor) + " and not in the same folder");
    }
  }
  if (!guarded) found.push_back(name + ": no #pragma once");
  if (count > max_header_lines) found.push_back(name + ": " + std::to_string(count) + " lines, at most 600");
  return found;
}

fs::path include_dir() { return fs::path(FEDLORA_TEST_DIR) / ".." / "include" / "fedlora"; }

/// All headers that one reaches, itself among them.
std::set<std::string> reached_from(const std::string& header) {
  std::set<std::string> reached;
  std::vector<std::string> waiting = {header};
  static const std::regex include(R"re(#include ["<]fedlora/([^">]+)[">])re");
  while (!waiting.empty()) {
    const std::string name = waiting.back();
    waiting.pop_back();
    if (!reached.insert(name).second) continue;
    const std::string text = fedlora::tests::read_text(include_dir() / name);
    for (std::sregex_iterator it(text.begin(), text.end(), include), end; it != end; ++it) waiting.push_back((*it)[1]);
  }
  return reached;
}

}  // namespace

TEST_CASE("every header keeps the floors, carries the licence and stays short") {
  int headers = 0;
  for (const auto& entry : fs::recursive_directory_iterator(include_dir())) {
    if (!entry.is_regular_file()) continue;
    const std::string name = fs::relative(entry.path(), include_dir()).generic_string();
    const std::string extension = entry.path().extension().string();
    CHECK_MESSAGE((extension == ".hpp" || extension == ".cuh"), name);
    ++headers;
    const auto exists = [](const std::string& header) { return fs::is_regular_file(include_dir() / header); };
    for (const std::string& fault : faults(name, fedlora::tests::read_text(entry.path()), exists)) FAIL_CHECK(fault);
  }
  CHECK(headers > 5);
}

TEST_CASE("every header asks for C++20 before it uses it") {
  for (const auto& entry : fs::recursive_directory_iterator(include_dir())) {
    if (!entry.is_regular_file()) continue;
    const std::string name = fs::relative(entry.path(), include_dir()).generic_string();
    const bool numbers_alone = name == "version.hpp" || name == "data/tokenizer/unicode_exceptions.hpp";
    CHECK_MESSAGE(reached_from(name).contains("core/standard.hpp") != numbers_alone, name);
  }
}

TEST_CASE("the umbrella includes every header that needs no optional component, and no other") {
  // What a component or a tool's author asks for by name.
  const auto by_name_only = [](const std::string& name, const std::string& text) {
    return name.starts_with("testing/") || name.ends_with(".cuh") || text.find("<oneapi/dnnl/") != std::string::npos;
  };
  const std::set<std::string> reached = reached_from("fedlora.hpp");
  for (const auto& entry : fs::recursive_directory_iterator(include_dir())) {
    if (!entry.is_regular_file()) continue;
    const std::string name = fs::relative(entry.path(), include_dir()).generic_string();
    CHECK_MESSAGE(reached.contains(name) == !by_name_only(name, fedlora::tests::read_text(entry.path())), name);
  }
}

TEST_CASE("the umbrella for GPUs includes every header of kernels") {
  const std::set<std::string> reached = reached_from("cuda.cuh");
  int headers = 0;
  for (const auto& entry : fs::recursive_directory_iterator(include_dir())) {
    const std::string name = fs::relative(entry.path(), include_dir()).generic_string();
    if (!name.ends_with(".cuh")) continue;
    CHECK_MESSAGE(reached.contains(name), name);
    ++headers;
  }
  CHECK(headers > 5);
}

TEST_CASE("the checker of floors sees what it should") {
  const std::string head = "// SPDX-License-Identifier: Apache-2.0\n#pragma once\n";
  const auto all_exist = [](const std::string&) { return true; };
  const auto count = [&](const std::string& name, const std::string& text) {
    return faults(name, text, all_exist).size();
  };

  CHECK(count("lora/a.hpp", head + "#include \"fedlora/nn/b.hpp\"\n#include <vector>\n") == 0);  // down
  CHECK(count("nn/arch/a.hpp", head + "#include \"fedlora/nn/b.hpp\"\n") == 0);                  // inside one folder
  CHECK(count("fedlora.hpp", head + "#include \"fedlora/hf/b.hpp\"\n") == 0);                    // the umbrella
  CHECK(count("core/a.hpp", head + "#include \"fedlora/version.hpp\"\n") == 1);            // sideways, to no folder
  CHECK(count("nn/a.hpp", head + "#include \"fedlora/lora/b.hpp\"\n") == 1);               // up
  CHECK(count("nn/a.hpp", head + "#  include <fedlora/optim/b.hpp>\n") == 1);              // sideways
  CHECK(count("nn/a.hpp", head + "#include \"b.hpp\"\n") == 1);                            // not by its full name
  CHECK(count("backend/a.hpp", head + "#include \"fedlora/backend/cuda/b.cuh\"\n") == 1);  // kernels
  CHECK(count("backend/cuda/a.cuh", head + "#include \"fedlora/backend/cuda/b.cuh\"\n#include <cuda_runtime.h>\n") ==
        0);
  CHECK(count("backend/cuda/a.cuh", head + "#include \"fedlora/nn/b.hpp\"\n") == 1);
  CHECK(count("elsewhere/a.hpp", head) == 1);                                 // on no floor
  CHECK(count("nn/a.hpp", "#pragma once\n") == 1);                            // no licence
  CHECK(count("nn/a.hpp", "// SPDX-License-Identifier: Apache-2.0\n") == 1);  // no guard
  CHECK(count("nn/a.hpp", head + std::string(598, '\n')) == 0);
  CHECK(count("nn/a.hpp", head + std::string(599, '\n')) == 1);  // too long
  CHECK(faults("nn/a.hpp", head + "#include \"fedlora/nn/gone.hpp\"\n", [](const std::string&) {
          return false;
        }).size() == 1);
}
