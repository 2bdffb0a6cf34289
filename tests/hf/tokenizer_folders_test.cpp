// SPDX-License-Identifier: Apache-2.0
// Model directories as a whole: tokenizer.json or vocabulary files with everything that may lie beside them, against
// AutoTokenizer of transformers (golden/make_tokenizer_folders.py, and reports by people who use it).
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/hf/tokenizer_files.hpp"
#include "support.hpp"

namespace {

using fedlora::Bytes;
using fedlora::Encoding;
using fedlora::FileSet;
using fedlora::Json;
using fedlora::Tokenizer;
using TokenIds = std::vector<std::int32_t>;

const std::filesystem::path golden_directory = std::string(FEDLORA_TEST_DIR) + "/golden";

std::string lines_of_pieces(const Json& vocabulary) {
  std::vector<std::string> pieces(vocabulary.size());
  for (const auto& [piece, id] : vocabulary.items()) pieces.at(id.get<std::size_t>()) = piece + "\n";
  std::string out;
  for (const std::string& piece : pieces) out += piece;
  return out;
}

/// The files of a folder of folders.json.
FileSet file_set_of(const Json& bases, const Json& folder) {
  const std::string name = folder["base"];
  Json base = bases[name];
  Json& vocabulary = base["model"]["vocab"];
  const Json pieces = folder.value("pieces", Json::array());
  for (const Json& piece : pieces)
    if (!vocabulary.contains(piece.get<std::string>())) vocabulary[piece.get<std::string>()] = vocabulary.size();
  std::string merges = "#version: 0.2\n";
  if (base["model"].contains("merges")) {
    for (Json& merge : base["model"]["merges"]) {
      std::string packed = merge;
      std::replace(packed.begin(), packed.end(), '\t', ' ');
      merges += packed + "\n";
      merge = packed;
    }
  }
  const Json changes = folder.value("set", Json::object());
  for (const auto& [path, value] : changes.items()) base[Json::json_pointer("/" + path)] = value;
  std::map<std::string, std::string> texts;
  for (const auto& [file, value] : folder["files"].items()) texts[file] = value.dump();
  if (folder["form"] == "json") {
    texts["tokenizer.json"] = base.dump();
  } else if (name == "wordpiece") {
    texts["vocab.txt"] = lines_of_pieces(vocabulary);
  } else {
    texts["vocab.json"] = vocabulary.dump();
    texts["merges.txt"] = merges;
  }
  std::map<std::string, Bytes> files;
  for (const auto& [file, text] : texts) files.emplace(file, fedlora::bytes_of(text, file));
  return FileSet::memory("folder", std::move(files));
}

}  // namespace

TEST_CASE("Every folder gives AutoTokenizer's ids, or is refused where transformers refuses it") {
  const Json bases = Json::parse(fedlora::tests::read_text(golden_directory / "tokenizer/cases.json"))["bases"];
  const Json golden = Json::parse(fedlora::tests::read_text(golden_directory / "tokenizer/folders.json"));
  const std::vector<std::string> texts = golden["texts"];
  const std::string first = texts[golden["PAIR"][0].get<std::size_t>()],
                    second = texts[golden["PAIR"][1].get<std::size_t>()];
  std::size_t read = 0;
  for (const Json& folder : golden["folders"]) {
    const std::string shown = folder["base"].get<std::string>() + " " + folder["form"].get<std::string>() + " " +
                              folder["files"].dump() + " " + folder.value("set", Json()).dump();
    CAPTURE(shown);
    const FileSet files = file_set_of(bases, folder);
    const auto encoded = [&](const Tokenizer& tokenizer) {
      std::vector<TokenIds> ids;
      for (const std::string& text : texts) ids.push_back(tokenizer.encode(text).ids);
      return ids;
    };
    if (folder.contains("refused")) {
      CHECK_THROWS_AS(encoded(fedlora::load_tokenizer(files)), fedlora::Error);
      continue;
    }
    ++read;
    const Tokenizer tokenizer = fedlora::load_tokenizer(files);
    CHECK(encoded(tokenizer) == folder["ids"].get<std::vector<TokenIds>>());
    if (!folder.contains("pair")) continue;
    const Encoding pair = tokenizer.encode(first, second, {});
    CHECK(pair.ids == folder["pair"].get<TokenIds>());
    CHECK(pair.token_types == folder["types"].get<TokenIds>());
    CHECK(tokenizer.encode(first, {golden["CUT"][0].get<fedlora::Index>(), true}).ids == folder["cut"].get<TokenIds>());
    CHECK(tokenizer.encode(first, second, {golden["CUT"][1].get<fedlora::Index>(), true}).ids ==
          folder["pair_cut"].get<TokenIds>());
    CHECK(tokenizer.decode(pair.ids) == folder["decoded"][0].get<std::string>());
    CHECK(tokenizer.decode(pair.ids, false) == folder["decoded"][1].get<std::string>());
  }
  CHECK(read > 400);
}

TEST_CASE("The folders that people reported give the ids that they expect") {
  for (const char* name : {"tokenizer_settings_beside_json", "added_tokens_beside_vocabulary"}) {
    for (const auto& folder : std::filesystem::directory_iterator(golden_directory / "public_cases" / name)) {
      CAPTURE(folder.path());
      const Json expected = Json::parse(fedlora::tests::read_text(folder.path() / "reference.json"));
      const Tokenizer tokenizer = fedlora::load_tokenizer(folder.path());
      for (std::size_t i = 0; i < expected["texts"].size(); ++i)
        CHECK(tokenizer.encode(expected["texts"][i].get<std::string>()).ids == expected["ids"][i].get<TokenIds>());
      CHECK(expected["texts"].size() > 0);
    }
  }
}
