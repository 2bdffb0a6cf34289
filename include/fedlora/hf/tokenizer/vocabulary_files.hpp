// SPDX-License-Identifier: Apache-2.0
// Vocabularies, merges and the models made of them: as tokenizer.json holds them, and as vocab.txt, vocab.json and
// merges.txt do.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/hf/tokenizer/json_node.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::detail {

inline Vocabulary read_vocabulary(const JsonNode& node) {
  if (!node.value.is_object()) fail<FormatError>(node.where(), "an object of pieces and their ids", shown(node.value));
  std::vector<std::pair<std::string, std::int32_t>> pieces;
  pieces.reserve(node.value.size());
  for (const auto& [piece, id] : node.value.get_ref<const Json::object_t&>()) {
    if (!id.is_number_integer() ||
        (id.is_number_unsigned() ? id.get<std::uint64_t>() > std::numeric_limits<std::int32_t>::max()
                                 : id.get<std::int64_t>() < 0))
      fail<FormatError>(node.where() + ", piece " + in_quotes(piece), "an id from 0 to 2147483647", shown(id));
    pieces.emplace_back(piece, id.get<std::int32_t>());
  }
  return Vocabulary(pieces, node.where());
}

/// Merges as "a b" or ["a", "b"].
inline Bpe::Merges read_merges(const JsonNode& node) {
  if (!node.value.is_array()) fail<FormatError>(node.where(), "an array of merges", shown(node.value));
  Bpe::Merges out;
  out.reserve(node.value.size());
  for (std::size_t i = 0; i < node.value.size(); ++i) {
    const Json& merge = node.value[i];
    const auto where = [&] { return node.where() + "[" + std::to_string(i) + "]"; };
    if (merge.is_string()) {
      const std::string_view text = merge.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const std::size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
        fail<FormatError>(where(), "two pieces with one space between them", in_quotes(text));
      out.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      out.emplace_back(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>());
    } else {
      fail<FormatError>(where(), "\"a b\" or [\"a\", \"b\"]", shown(merge));
    }
  }
  return out;
}

/// "WordPiece" or "BPE"; old files leave the type out.
inline std::string model_type_of(const JsonNode& model) {
  const std::string type = model.child("type") ? model.type() : model.child("merges") ? "BPE" : "WordPiece";
  if (type != "WordPiece" && type != "BPE") fail<FormatError>(model.where("type"), "WordPiece or BPE", in_quotes(type));
  return type;
}

/// A vocabulary and, for BPE, its merges; from tokenizer.json or from files of their own.
struct Pieces {
  Vocabulary vocabulary;
  Bpe::Merges merges = {};
  std::string merges_where = {};
};

inline Pieces read_pieces(const JsonNode& model) {
  const std::string type = model_type_of(model);
  Pieces out{read_vocabulary(model.required("vocab"))};
  if (type == "BPE") {
    out.merges = read_merges(model.required("merges"));
    out.merges_where = model.where() + ".merges";
  }
  return out;
}

/// A model of the type and with the options that `model` names.
inline std::variant<WordPiece, Bpe> make_model(const JsonNode& model, Pieces pieces, bool has_pre_tokenizer) {
  const std::string where = model.where();
  if (model_type_of(model) == "WordPiece") {
    WordPiece::Options options;
    options.unknown = model.get_or<std::string>("unk_token", "[UNK]");
    options.continuation_prefix = model.get_or<std::string>("continuing_subword_prefix", "##");
    options.max_characters = model.get_or<std::uint32_t>("max_input_chars_per_word", 100);
    options.unknown_where = where + ".unk_token";
    return WordPiece(std::move(pieces.vocabulary), std::move(options));
  }
  Bpe::Options options;
  if (model.child("unk_token")) options.unknown = model.get<std::string>("unk_token");
  options.continuation_prefix = model.get_or<std::string>("continuing_subword_prefix", "");
  options.end_suffix = model.get_or<std::string>("end_of_word_suffix", "");
  options.fuse_unknown = model.get_or("fuse_unk", false);
  options.byte_fallback = model.get_or("byte_fallback", false);
  options.ignore_merges = model.get_or("ignore_merges", false);
  options.whole_words = has_pre_tokenizer;
  options.unknown_where = where + ".unk_token";
  options.merges_where = std::move(pieces.merges_where);
  return Bpe(std::move(pieces.vocabulary), pieces.merges, std::move(options));
}

/// One piece a line, numbered from 0; of equal pieces the last counts, as in Python's reader.
inline Vocabulary read_vocabulary_lines(const Bytes& file) {
  if (const std::size_t bad = first_invalid_utf8(file.text()); bad != std::string_view::npos)
    fail<FormatError>(file.name + ", byte " + std::to_string(bad), "valid UTF-8", "another byte");
  std::map<std::string, std::int32_t> ids;
  std::int32_t line_number = 0;
  for (std::string_view rest = file.text(); !rest.empty(); ++line_number) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    for (std::size_t at = line.size(); at > 0 && is_space(previous_code_point(line, at));) line = line.substr(0, at);
    ids.insert_or_assign(std::string(line), line_number);
  }
  if (ids.empty()) fail<FormatError>(file.name, "one piece a line", "an empty file");
  return Vocabulary({ids.begin(), ids.end()}, file.name);
}

/// merges.txt: "#version: …", then two pieces a line, by rank.
inline Bpe::Merges read_merge_lines(const Bytes& file) {
  Bpe::Merges out;
  std::size_t line_number = 0;
  for (std::string_view rest = file.text(); !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    ++line_number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
      fail<FormatError>(file.name + ", line " + std::to_string(line_number), "two pieces with one space between them",
                        in_quotes(line));
    out.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  return out;
}

}  // namespace fedlora::detail
