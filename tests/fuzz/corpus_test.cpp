// SPDX-License-Identifier: Apache-2.0
// Every input of the corpora once more: what a fuzzer found stays found.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "fuzz/target.hpp"
#include "support.hpp"

namespace {

using fedlora::fuzz::Target;

const std::filesystem::path corpora = std::filesystem::path(FEDLORA_TEST_DIR) / "fuzz" / "corpus";

}  // namespace

TEST_CASE("no input of a corpus breaks its reader's contract") {
  std::set<std::string> names;
  for (const Target* target : Target::all()) {
    names.insert(target->name());
    std::map<std::string, std::string> inputs;  // sorted, so that two runs do the same
    for (const auto& file : std::filesystem::directory_iterator(corpora / target->name()))
      inputs.emplace(file.path().filename().string(), fedlora::tests::read_text(file.path()));
    CHECK(inputs.size() >= 3);
    for (const auto& input : inputs) {
      CAPTURE(target->name());
      CAPTURE(input.first);
      CHECK_NOTHROW((*target)(input.second));
    }
  }
  for (const auto& folder : std::filesystem::directory_iterator(corpora))
    CHECK(names.contains(folder.path().filename().string()));
}
