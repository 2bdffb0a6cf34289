// SPDX-License-Identifier: Apache-2.0
// examples/formats.md says what becomes of every field of a checkpoint's and an adapter's files. Here its tables are
// held to that: no field that transformers, peft or tokenizers write is missing, and each behaves as its row says.
#include <doctest/doctest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "fedlora/hf/peft_config.hpp"
#include "fedlora/nn/arch/bert.hpp"
#include "fedlora/nn/arch/distilbert.hpp"
#include "fedlora/nn/arch/llama.hpp"
#include "fedlora/nn/arch/roberta.hpp"
#include "formats.hpp"

using namespace fedlora;
using tests::FormatRow;
using tests::has;
using tests::read_text;

namespace {

namespace fs = std::filesystem;
const fs::path golden_files = fs::path(FEDLORA_TEST_DIR) / "golden";

Json golden_json(const std::string& path) { return Json::parse(read_text(golden_files / path)); }

/// Fields as the libraries that own the formats write them.
const Json& written_by_their_owners() {
  static const Json fields = golden_json("format_fields.json");
  return fields;
}

/// What reading says, or nothing where it has nothing against.
std::string said(const std::function<void()>& read) {
  try {
    read();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// Holds each field of a row to it. `read` takes the whole document; any other exception ends the test case.
void check_row(const FormatRow& row, const Json& document, const std::function<void(const Json&)>& read) {
  for (const std::string& field : row.fields) {
    INFO(field, ": ", row.outcome);
    const auto with = [&](const Json& value) {
      Json changed = document;
      changed[field] = value;
      return said([&] { read(changed); });
    };
    std::vector<Json> values = row.examples;
    if (row.outcome == "no effect")
      values = {Json(nullptr), Json("odd"), Json(-7.5), Json(true), Json::array({1}), Json{{"odd", 1}}};
    if (row.outcome == "read") values = {Json::array({Json{{"odd", 1}}})};  // no field has this type
    CHECK_FALSE(values.empty());
    for (const Json& value : values) {
      const std::string message = with(value);
      INFO(value.dump(), ": ", message);
      if (row.outcome == "no effect")
        CHECK(message == "");
      else
        CHECK(has(message, field));
    }
  }
}

const std::map<std::string, std::function<void(const Json&)>>& families() {
  static const std::map<std::string, std::function<void(const Json&)>> readers = {
      {"bert", [](const Json& json) { Bert::read_config(json, "config.json"); }},
      {"distilbert", [](const Json& json) { DistilBert::read_config(json, "config.json"); }},
      {"roberta", [](const Json& json) { Roberta::read_config(json, "config.json"); }},
      {"llama", [](const Json& json) { Llama::read_config(json, "config.json"); }}};
  return readers;
}

/// Whether the tables know a field, of one place or of all.
void check_known(const std::vector<FormatRow>& rows, const std::string& place, const Json& fields) {
  for (const Json& field : fields) {
    INFO(place, ": ", field.get<std::string>());
    CHECK(tests::find_row(rows, place, field) != nullptr);
  }
}

}  // namespace

TEST_CASE("config.json: every field that transformers writes is in the table, and every row is true") {
  const auto rows = tests::format_rows("config.json");
  for (const auto& reader : families()) {
    const std::string& family = reader.first;
    const auto& read = reader.second;
    CAPTURE(family);
    check_known(rows, family, written_by_their_owners().at("config.json").at(family));
    const Json config = golden_json("models/" + family + "/config.json");
    CHECK(said([&] { read(config); }) == "");
    for (const FormatRow& row : rows)
      if (row.of(family)) check_row(row, config, read);
  }
}

TEST_CASE("adapter_config.json: every field that PEFT writes is in the table, and every row is true") {
  const auto rows = tests::format_rows("adapter_config.json");
  check_known(rows, "", written_by_their_owners().at("adapter_config.json"));
  const fs::path adapter = golden_files / "models/bert/peft_adapter";
  const Bytes tensors = map_file(adapter / "adapter_model.safetensors");
  const auto read = [&](const Json& json) {
    read_peft_config(FileSet::memory("adapter", {{"adapter_config.json", bytes_of(json.dump(), "adapter_config.json")},
                                                 {"adapter_model.safetensors", tensors}}));
  };
  const Json config = Json::parse(read_text(adapter / "adapter_config.json"));
  CHECK(said([&] { read(config); }) == "");
  for (const FormatRow& row : rows) check_row(row, config, read);
}

TEST_CASE("tokenizer.json: every component that tokenizers has is in the table, with its fields") {
  const auto rows = tests::format_rows("tokenizer.json");
  for (const auto& [part, fields] : written_by_their_owners().at("tokenizer.json").items())
    check_known(rows, part, fields.empty() ? Json::array({"type"}) : fields);
}

TEST_CASE("tokenizer_config.json: every field that transformers' tokenizers write is in the table") {
  const auto rows = tests::format_rows("tokenizer_config.json");
  for (const auto& [name, fields] : written_by_their_owners().at("tokenizer_config.json").items())
    check_known(rows, name, fields);
}
