// SPDX-License-Identifier: Apache-2.0
// examples/formats.md says what becomes of every field of a checkpoint's and an adapter's files. Here its tables are
// held to that: no field that transformers, peft or tokenizers write is missing, and each behaves as its row says.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/hf/peft_config.hpp"
#include "fedlora/hf/tokenizer_files.hpp"
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

/// Reads a document, and says what became of it in so far as fields might change it.
using Read = std::function<std::string(const Json&)>;

/// What became of a document: what reading said, or the message of its error.
struct Outcome {
  bool is_refused;
  std::string text;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

/// Any other exception than an Error ends the test case.
Outcome outcome_of(const Read& read, const Json& document) {
  try {
    return {false, read(document)};
  } catch (const Error& error) {
    return {true, error.what()};
  }
}

/// Holds a field of the object at `path` in `document` to its row.
void check_field(const FormatRow& row, const std::string& field, const Json& document, const std::string& path,
                 const Read& read) {
  const Outcome without = outcome_of(read, document);
  INFO("field ", field, ", ", row.outcome, "; without it: ", without.text);
  std::vector<Json> values = row.examples;
  if (row.outcome == "no effect") {
    CHECK(values.empty());
    values = {Json(nullptr), Json("odd"), Json(-7.5), Json(true), Json::array({1}), Json{{"odd", 1}}};
  }
  const bool is_example = !values.empty();
  if (row.outcome == "read" && !is_example) values = {Json::array({Json{{"odd", 1}}})};  // no field has this type
  CHECK_FALSE(values.empty());
  for (const Json& value : values) {
    Json changed = document;
    changed[Json::json_pointer(path)][field] = value;
    const Outcome with = outcome_of(read, changed);
    INFO(value.dump(), ": ", with.text);
    if (row.outcome == "no effect") {
      CHECK(with == without);
    } else if (row.outcome == "read" && is_example) {
      CHECK_FALSE(with.is_refused);
      CHECK(with.text != without.text);
    } else {
      CHECK(with.is_refused);
      CHECK(has(with.text, field));
      CHECK((path.empty() || has(with.text, path.substr(1, path.find('/', 1) - 1))));
    }
  }
}

/// Holds every field of a table to its row for one place; those of other places alone are unknown fields there.
void check_table(const std::vector<FormatRow>& rows, const std::string& place, const Json& document, const Read& read) {
  const Outcome plain = outcome_of(read, document);
  INFO(place, ": ", plain.text);
  REQUIRE_FALSE(plain.is_refused);
  const FormatRow* unknown = tests::find_row(rows, place, "an unknown field");
  REQUIRE(unknown != nullptr);
  for (const FormatRow& row : rows)
    for (const std::string& field : row.fields) {
      const FormatRow* own = tests::find_row(rows, place, field);
      check_field(own != nullptr ? *own : *unknown, field, document, "", read);
    }
}

template <class Family>
std::string read_config_of(const Json& json) {
  Family::read_config(json, "config.json");
  return "";
}

const std::map<std::string, Read>& families() {
  static const std::map<std::string, Read> readers = {{"bert", read_config_of<Bert>},
                                                      {"distilbert", read_config_of<DistilBert>},
                                                      {"roberta", read_config_of<Roberta>},
                                                      {"llama", read_config_of<Llama>}};
  return readers;
}

/// A tokenizer from texts by file name: what it makes of a text and of a pair that is cut.
std::string read_tokenizer(const std::map<std::string, std::string>& texts) {
  std::map<std::string, Bytes> files;
  for (const auto& [name, text] : texts) files.emplace(name, bytes_of(text, name));
  const Tokenizer tokenizer = load_tokenizer(FileSet::memory("tokenizer", files));
  const Encoding text = tokenizer.encode("a Ab [CLS] b<x>"), cut = tokenizer.encode("a b a", "a b", {.max_tokens = 5});
  return Json{text.ids, text.token_types, cut.ids, cut.token_types, tokenizer.decode(text.ids), tokenizer.vocab_size()}
      .dump();
}

std::string read_tokenizer_json(const Json& json) { return read_tokenizer({{"tokenizer.json", json.dump()}}); }

/// A small tokenizer.json.
Json word_piece_document() {
  Json document = written_by_their_owners().at("tokenizer.json").at("");
  document["truncation"] = document["padding"] = nullptr;
  return document;
}

/// A folder that a class reads, but for its tokenizer_config.json.
std::map<std::string, std::string> folder_of(std::string_view tokenizer_class) {
  const Json bpe = written_by_their_owners().at("tokenizer.json").at("model.BPE");
  for (const std::string_view name : {"GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"})
    if (tokenizer_class == name) return {{"vocab.json", bpe["vocab"].dump()}, {"merges.txt", "a b\n"}};
  Json document = word_piece_document();
  for (const std::string_view name : {"RobertaTokenizer", "DebertaTokenizer", "LlamaTokenizer", "GemmaTokenizer"})
    if (tokenizer_class == name) document["model"] = bpe;
  return {{"tokenizer.json", document.dump()}};
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
  for (const auto& [family, read] : families()) {
    check_known(rows, family, written_by_their_owners().at("config.json").at(family));
    check_table(rows, family, golden_json("models/" + family + "/config.json"), read);
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
    return "";
  };
  check_table(rows, "", Json::parse(read_text(adapter / "adapter_config.json")), read);
}

TEST_CASE(
    "tokenizer.json: every component that tokenizers has is in the table with its fields, and every row is true") {
  const auto rows = tests::format_rows("tokenizer.json");
  std::set<const FormatRow*> unchecked;
  for (const FormatRow& row : rows) unchecked.insert(&row);
  for (const auto& written : written_by_their_owners().at("tokenizer.json").items()) {
    const std::string& place = written.key();
    const Json& component = written.value();
    CAPTURE(place);
    std::vector<std::string> fields;
    for (const auto& field : component.items())
      if (field.key() != "type" || component.size() == 1) fields.push_back(field.key());
    check_known(rows, place, fields);

    Json document = word_piece_document();
    const std::string part = place.substr(0, place.find('.'));
    const std::string path = place.empty() ? "" : part == "added_tokens" ? "/added_tokens/0" : "/" + part;
    document[Json::json_pointer(path)] = component;
    const Outcome plain = outcome_of(read_tokenizer_json, document);
    INFO(plain.text);
    const FormatRow* type = tests::find_row(rows, place, "type");
    const bool is_refused = type != nullptr && type->outcome == "refused";
    CHECK(plain.is_refused == is_refused);
    if (is_refused) CHECK(has(plain.text, part + ".type"));
    for (const FormatRow& row : rows) {
      if (!row.of(place)) continue;
      unchecked.erase(&row);
      if (is_refused && std::count(row.where.begin(), row.where.end(), place) != 0) {
        CHECK(row.outcome == "refused");
        for (const std::string& field : row.fields) CHECK((field == "type" || component.contains(field)));
      } else {
        for (const std::string& field : row.fields) check_field(row, field, document, path, read_tokenizer_json);
      }
    }
  }
  for (const FormatRow* row : unchecked) FAIL_CHECK("no component has the row of " << row->fields[0]);
}

TEST_CASE("The table of tokenizer classes is that of the reader") {
  const std::string page = read_text(fs::path(FEDLORA_TEST_DIR) / "../examples/formats.md");
  for (const detail::TokenizerNames& row : detail::tokenizer_class_names) {
    if (row.tokenizer_class.empty()) continue;  // those that are refused
    const std::string begin = "\n| `" + std::string(row.tokenizer_class) + "` |";
    CAPTURE(begin);
    const std::size_t at = page.find(begin);
    REQUIRE(at != page.npos);
    const std::size_t cell = at + begin.size();
    auto names = tests::code_in(std::string_view(page).substr(cell, page.find('|', cell) - cell));
    names.emplace_back(row.tokenizer_class);
    std::string listed;
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) listed.append(listed.empty() ? "" : " ").append(name);
    CHECK(listed == row.names);
  }
}

TEST_CASE(
    "tokenizer_config.json: every field that transformers' tokenizers write is in the table, and every row is true") {
  const auto rows = tests::format_rows("tokenizer_config.json");
  for (const auto& [name, fields] : written_by_their_owners().at("tokenizer_config.json").items())
    check_known(rows, name, fields);
  std::set<std::string> classes = {"TokenizerOfItsOwn"};  // a name that transformers does not know
  for (const detail::TokenizerClass& known : detail::tokenizer_classes()) classes.emplace(known.name);
  for (const FormatRow& row : rows)
    for (const std::string& name : row.where) CHECK(classes.contains(name));
  for (const std::string& name : classes) {
    const auto folder = folder_of(name);
    check_table(rows, name, {{"tokenizer_class", name}}, [&](const Json& config) {
      auto files = folder;
      files["tokenizer_config.json"] = config.dump();
      return read_tokenizer(files);
    });
  }
}
