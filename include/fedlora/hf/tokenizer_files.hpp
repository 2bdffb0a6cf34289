// SPDX-License-Identifier: Apache-2.0
// Tokenizers from the files of the Hugging Face ecosystem, with the ids that AutoTokenizer of transformers 5 gives:
// tokenizer.json, else vocab.txt (BERT), else vocab.json and merges.txt (GPT-2, RoBERTa), as the tokenizer class reads
// them that tokenizer_config.json or config.json names. Of tokenizer.json's `truncation` the side that is cut is read,
// of its `padding` the pad token (as a special token, where the class has none of its own): the caller of encode()
// decides about length, and nothing is padded.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/hf/tokenizer/builder.hpp"
#include "fedlora/hf/tokenizer/classes.hpp"
#include "fedlora/hf/tokenizer/settings.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora {

namespace detail {

/// What a model directory may have of a tokenizer: what is read here, and what others read.
inline constexpr const char* tokenizer_file_names[] = {"tokenizer.json",
                                                       "tokenizer_config.json",
                                                       "special_tokens_map.json",
                                                       "added_tokens.json",
                                                       "vocab.txt",
                                                       "vocab.json",
                                                       "merges.txt",
                                                       "tokenizer.model",
                                                       "chat_template.jinja"};

/// Does the vocabulary begin as RoBERTa's does?
inline bool is_vocabulary_of_roberta(const Bytes& vocab_json) {
  const Json json = parse_json(vocab_json);
  const auto is = [&](const char* piece, int id) {
    return json.is_object() && json.contains(piece) && json[piece] == id;
  };
  return is("<s>", 0) && is("<pad>", 1) && is("</s>", 2);
}

/// Vocabulary files alone, where no file names a class: BERT, RoBERTa by its vocabulary, or GPT-2. Their special tokens
/// must be in the vocabulary then.
inline ChosenTokenizerClass class_by_vocabulary(const TokenizerFiles& files, bool is_text) {
  const char* name = is_text                                   ? "BertTokenizer"
                     : is_vocabulary_of_roberta(*files.pieces) ? "RobertaTokenizer"
                                                               : "GPT2Tokenizer";
  return {tokenizer_class_named(name), files.pieces->name, true};
}

/// A tokenizer from `given` files, or from those of the directory that its class reads.
inline Tokenizer load_tokenizer(const FileSet& directory, TokenizerFiles given) {
  given.settings = TokenizerSettings(directory);
  const bool is_given = given.pieces.has_value();
  if (!is_given && (given.json = directory.open("tokenizer.json"))) given.parse();
  ChosenTokenizerClass chosen =
      choose_tokenizer_class(directory, given.settings, given.json ? given.json->text() : std::string_view());
  if (given.json) return Tokenizer(TokenizerBuilder(given, chosen).take());

  const auto open = [&](const char* file) { return is_given ? std::nullopt : directory.open(file); };
  const auto absent = [&](const std::string& expected) {
    fail<IoError>(directory.name(), expected, "none of them; there is " + directory.listing());
  };
  bool is_text = is_given && !given.merges;
  if (chosen.kind == nullptr) {
    if (!given.pieces && (given.pieces = open("vocab.txt"))) is_text = true;
    if (!given.pieces) given.pieces = open("vocab.json");
    if (!given.pieces) absent("tokenizer.json, vocab.txt, or vocab.json with merges.txt");
  } else {
    const std::string wanted(chosen.kind->vocabulary);
    const std::string named = std::string(chosen.kind->name) + " (" + chosen.because + ")";
    if (wanted.empty()) absent("tokenizer.json, for " + named);
    if (is_given && is_text != (wanted == "vocab.txt"))
      fail<ConfigError>(given.pieces->name, wanted + " or tokenizer.json, which " + named + " reads", "another file");
    is_text = wanted == "vocab.txt";
    if (!given.pieces && !(given.pieces = open(wanted.c_str())))
      absent("tokenizer.json or " + wanted + ", for " + named);
  }
  if (!is_text && !given.merges) given.merges = directory.require("merges.txt");
  if (chosen.kind == nullptr) chosen = class_by_vocabulary(given, is_text);
  return Tokenizer(TokenizerBuilder(given, chosen).take());
}

}  // namespace detail

/// The tokenizer of a model: tokenizer.json, else vocab.txt (lower-cased unless tokenizer_config.json says otherwise),
/// else vocab.json and merges.txt; read as the class that tokenizer_config.json or config.json names (see
/// hf/tokenizer/classes.hpp), with the tokens of added_tokens.json, special_tokens_map.json and added_tokens_decoder.
/// What transformers does in silence stands in the tokenizer's warnings(). \throws IoError when none of the files is
/// there, ConfigError for a class that is not built here, FormatError naming file and field.
inline Tokenizer load_tokenizer(const FileSet& files) { return detail::load_tokenizer(files, {}); }

/// The same for a directory, or for one file: one that ends in .txt is a vocab.txt (merges.txt: with the vocab.json
/// beside it), for which the configuration files beside it count; any other but vocab.json is a tokenizer.json, which
/// is read as it stands, alone.
inline Tokenizer load_tokenizer(const std::filesystem::path& directory_or_file) {
  if (!std::filesystem::is_regular_file(directory_or_file))
    return load_tokenizer(FileSet::directory(directory_or_file));
  const auto parent =
      directory_or_file.has_parent_path() ? directory_or_file.parent_path() : std::filesystem::path(".");
  const FileSet files = FileSet::directory(parent);
  const auto name = directory_or_file.filename();
  detail::TokenizerFiles given;
  if (name == "vocab.json" || name == "merges.txt") {
    given.pieces = files.require("vocab.json");
    given.merges = files.require("merges.txt");
    return detail::load_tokenizer(files, std::move(given));
  }
  if (name.extension() == ".txt") {
    given.pieces = map_downloaded_file(directory_or_file);
    return detail::load_tokenizer(files, std::move(given));
  }
  given.json = map_downloaded_file(directory_or_file);
  given.parse();
  TokenizerParts parts = detail::parts_of_json(*given.root());
  detail::note_numbers(parts, detail::read_added_tokens(*given.root()));
  detail::note_never_found(parts);
  detail::check_special_ids(parts, given.json->name + ", field post_processor");
  return Tokenizer(std::move(parts));
}

}  // namespace fedlora
