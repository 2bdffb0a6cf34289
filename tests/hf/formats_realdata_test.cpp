// SPDX-License-Identifier: Apache-2.0
// Every field of every checkpoint, tokenizer and adapter of the real data has its row in examples/formats.md.
#include <doctest/doctest.h>

#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "formats.hpp"

using namespace fedlora;

namespace {

/// Fields by place: those of the top as ("", field); in tokenizer.json also those of its parts, by type.
using PlacedFields = std::set<std::pair<std::string, std::string>>;

/// A part of tokenizer.json, and what is nested in it: a Sequence holds parts of the same kind.
void collect(const Json& value, const std::string& part, PlacedFields& out) {
  if (value.is_array()) {
    for (const Json& element : value) collect(element, part, out);
  } else if (value.is_object()) {
    const std::string place = value.contains("type") ? part + "." + value["type"].get<std::string>() : part;
    for (const auto& [field, inside] : value.items()) {
      if (field != "type" || value.size() == 1) out.emplace(place, field);
      if (inside.is_array() && field.ends_with("ers") && field != "mergers") collect(inside, part, out);
    }
  }
}

PlacedFields fields_of(const std::string& file, const Json& json) {
  PlacedFields out;
  for (const auto& [field, value] : json.items()) {
    out.emplace("", field);
    if (file == "tokenizer.json" && field != "version") collect(value, field, out);
  }
  return out;
}

}  // namespace

TEST_CASE("real data: every field is in the tables of examples/formats.md") {
  const auto data = tests::shared_data();
  if (!data) return;
  int files = 0;
  for (const std::string file : {"config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"}) {
    const auto rows = tests::format_rows(file);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(*data)) {
      if (entry.path().filename() != file) continue;
      const Json json = Json::parse(tests::read_text(entry.path()), nullptr, false);
      if (!json.is_object()) continue;  // a Git LFS pointer in its place, on purpose
      ++files;
      const std::string family = json.value("model_type", "");
      for (const auto& placed : fields_of(file, json)) {
        const std::string place = file == "config.json" ? family
                                  : file == "tokenizer_config.json"
                                      ? "any place"  // there a class may have no such field
                                      : placed.first;
        INFO(entry.path().string(), ": ", place, " ", placed.second);
        CHECK(tests::find_row(rows, place, placed.second) != nullptr);
      }
    }
  }
  CHECK(files > 20);
}
