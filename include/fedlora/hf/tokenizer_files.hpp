// SPDX-License-Identifier: Apache-2.0
// Tokenizers from the files of the Hugging Face ecosystem: tokenizer.json, else vocab.txt (BERT), else vocab.json and
// merges.txt (GPT-2, RoBERTa). The `padding` and `truncation` of tokenizer.json are passed over: the caller of encode()
// decides about length.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora {

namespace detail {

/// A value of a JSON file and the way to it, for messages.
struct JsonNode {
  const Json& value;
  std::string file;
  std::string path;  ///< "model.vocab"; empty: the whole file

  std::string where() const { return path.empty() ? file : file + ", field " + path; }
  std::string path_of(std::string_view field) const {
    return path.empty() ? std::string(field) : path + "." + std::string(field);
  }

  template <class T>
  T get(std::string_view field) const {
    const Json* found = json_find(value, field, where());
    if (found == nullptr) fail<FormatError>(file + ", field " + path_of(field), "a value", "no such field");
    return json_convert<T>(*found, file + ", field " + path_of(field));
  }
  template <class T>
  T get_or(std::string_view field, T fallback) const {
    const Json* found = json_find(value, field, where());
    return found == nullptr || found->is_null() ? fallback
                                                : json_convert<T>(*found, file + ", field " + path_of(field));
  }

  /// A field that may be absent or null.
  std::optional<JsonNode> child(std::string_view field) const {
    const Json* found = json_find(value, field, where());
    if (found == nullptr || found->is_null()) return std::nullopt;
    return JsonNode{*found, file, path_of(field)};
  }
  JsonNode required(std::string_view field) const {
    if (auto found = child(field)) return *found;
    fail<FormatError>(file + ", field " + path_of(field), "a value", "no such field");
  }
  /// The elements of an array; the field may be absent or null.
  std::vector<JsonNode> elements(std::string_view field) const {
    std::vector<JsonNode> out;
    const auto array = child(field);
    if (!array) return out;
    if (!array->value.is_array()) fail<FormatError>(array->where(), "an array", shown(array->value));
    for (std::size_t i = 0; i < array->value.size(); ++i)
      out.push_back({array->value[i], file, array->path + "[" + std::to_string(i) + "]"});
    return out;
  }

  std::string type() const { return get<std::string>("type"); }
  [[noreturn]] void unknown_type(std::string_view known) const {
    fail<FormatError>(file + ", field " + path_of("type"), "one of " + std::string(known), in_quotes(type()));
  }
};

/// A string of exactly one character.
inline char32_t one_character(const JsonNode& node, std::string_view field, const std::string& text) {
  std::size_t end = 0;
  const char32_t c = text.empty() ? 0 : next_code_point(text, end);
  if (text.empty() || end != text.size())
    fail<FormatError>(node.file + ", field " + node.path_of(field), "one character", in_quotes(text));
  return c;
}

/// {"String": …} or {"Regex": …}, or a plain string as some files have it.
inline Pattern read_pattern(const JsonNode& node) {
  const auto literal = [&](const std::string& text) {
    if (text.empty()) fail<FormatError>(node.where(), "a pattern that is not empty", "\"\"");
    return Pattern::literal(text);
  };
  if (node.value.is_string()) return literal(node.value.get_ref<const std::string&>());
  if (node.child("String")) return literal(node.get<std::string>("String"));
  const auto text = node.get<std::string>("Regex");
  if (auto pattern = Pattern::regex(text)) return *pattern;
  fail<FormatError>(node.where() + ".Regex",
                    "a plain string, one character or class with an optional +, {m,} or {m,n}, or the word expression "
                    "of GPT-2, Llama 3 or Qwen 2",
                    in_quotes(text, 200));
}

inline void read_normalizer(const JsonNode& node, std::vector<Normalizer>& out) {
  const std::string type = node.type();
  if (type == "Sequence") {
    for (const JsonNode& step : node.elements("normalizers")) read_normalizer(step, out);
  } else if (type == "BertNormalizer") {
    const bool lower_case = node.get_or("lowercase", true);
    out.emplace_back(BertNormalizer{node.get_or("clean_text", true), node.get_or("handle_chinese_chars", true),
                                    node.get_or("strip_accents", lower_case), lower_case});
  } else if (type == "Lowercase") {
    out.emplace_back(LowercaseNormalizer{});
  } else if (type == "Strip") {
    out.emplace_back(StripNormalizer{node.get_or("strip_left", true), node.get_or("strip_right", true)});
  } else if (type == "StripAccents") {
    out.emplace_back(StripAccentsNormalizer{});
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    out.emplace_back(UnicodeForm{type.size() == 4, type.back() == 'C'});
  } else if (type == "Prepend") {
    out.emplace_back(PrependNormalizer{node.get<std::string>("prepend")});
  } else if (type == "Replace") {
    out.emplace_back(ReplaceNormalizer{read_pattern(node.required("pattern")), node.get<std::string>("content")});
  } else if (type == "ByteLevel") {
    out.emplace_back(ByteLevelNormalizer{});
  } else {
    node.unknown_type(
        "Sequence, BertNormalizer, Lowercase, Strip, StripAccents, NFC, NFD, NFKC, NFKD, Prepend, Replace, ByteLevel");
  }
}

inline SplitBehavior read_behavior(const JsonNode& node) {
  static constexpr std::pair<std::string_view, SplitBehavior> known[] = {
      {"Removed", SplitBehavior::removed},
      {"Isolated", SplitBehavior::isolated},
      {"MergedWithPrevious", SplitBehavior::merged_with_previous},
      {"MergedWithNext", SplitBehavior::merged_with_next},
      {"Contiguous", SplitBehavior::contiguous}};
  const auto name = node.get_or<std::string>("behavior", "Isolated");
  for (const auto& [text, behavior] : known) {
    if (text == name) return behavior;
  }
  fail<FormatError>(node.file + ", field " + node.path_of("behavior"),
                    "one of Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous", in_quotes(name));
}

/// Metaspace's prepend_scheme, or add_prefix_space of older files.
inline PrependScheme read_prepend_scheme(const JsonNode& node) {
  const bool add_prefix_space = node.get_or("add_prefix_space", true);
  const auto name = node.get_or<std::string>("prepend_scheme", add_prefix_space ? "always" : "never");
  const auto where = node.file + ", field " + node.path_of("prepend_scheme");
  if (!add_prefix_space && name != "never")
    fail<FormatError>(where, "never, as add_prefix_space is false", in_quotes(name));
  if (name == "always") return PrependScheme::always;
  if (name == "first") return PrependScheme::first;
  if (name == "never") return PrependScheme::never;
  fail<FormatError>(where, "one of always, first, never", in_quotes(name));
}

inline std::string read_replacement(const JsonNode& node) {
  auto text = node.get_or<std::string>("replacement", "\u2581");
  one_character(node, "replacement", text);
  return text;
}

inline void read_pre_tokenizer(const JsonNode& node, std::vector<PreTokenizer>& out) {
  const std::string type = node.type();
  if (type == "Sequence") {
    for (const JsonNode& step : node.elements("pretokenizers")) read_pre_tokenizer(step, out);
  } else if (type == "BertPreTokenizer") {
    out.emplace_back(BertPreTokenizer{});
  } else if (type == "Whitespace") {
    out.emplace_back(WhitespacePreTokenizer{});
  } else if (type == "WhitespaceSplit") {
    out.emplace_back(WhitespaceSplit{});
  } else if (type == "ByteLevel") {
    out.emplace_back(ByteLevelPreTokenizer{node.get_or("add_prefix_space", true), node.get_or("use_regex", true)});
  } else if (type == "Metaspace") {
    out.emplace_back(
        MetaspacePreTokenizer{read_replacement(node), read_prepend_scheme(node), node.get_or("split", true)});
  } else if (type == "Punctuation") {
    out.emplace_back(PunctuationSplit{read_behavior(node)});
  } else if (type == "Digits") {
    out.emplace_back(DigitsSplit{node.get_or("individual_digits", false)});
  } else if (type == "CharDelimiterSplit" || type == "Delimiter") {
    out.emplace_back(DelimiterSplit{one_character(node, "delimiter", node.get<std::string>("delimiter"))});
  } else if (type == "Split") {
    out.emplace_back(
        PatternSplit{read_pattern(node.required("pattern")), read_behavior(node), node.get_or("invert", false)});
  } else {
    node.unknown_type(
        "Sequence, BertPreTokenizer, Whitespace, WhitespaceSplit, ByteLevel, Metaspace, Punctuation, Digits, "
        "CharDelimiterSplit, Split");
  }
}

inline void read_decoder(const JsonNode& node, std::vector<Decoder>& out) {
  const std::string type = node.type();
  const auto count = [&](std::string_view field) {
    return static_cast<std::size_t>(node.get_or<std::uint32_t>(field, 0));
  };
  if (type == "Sequence") {
    for (const JsonNode& step : node.elements("decoders")) read_decoder(step, out);
  } else if (type == "WordPiece") {
    out.emplace_back(WordPieceDecoder{node.get_or<std::string>("prefix", "##"), node.get_or("cleanup", true)});
  } else if (type == "ByteLevel") {
    out.emplace_back(ByteLevelDecoder{});
  } else if (type == "Metaspace") {
    out.emplace_back(MetaspaceDecoder{read_replacement(node), read_prepend_scheme(node) != PrependScheme::never});
  } else if (type == "BPEDecoder") {
    auto suffix = node.get_or<std::string>("suffix", "</w>");
    if (suffix.empty())
      fail<FormatError>(node.file + ", field " + node.path_of("suffix"), "a suffix that is not empty", "\"\"");
    out.emplace_back(BpeDecoder{std::move(suffix)});
  } else if (type == "ByteFallback") {
    out.emplace_back(ByteFallbackDecoder{});
  } else if (type == "Fuse") {
    out.emplace_back(FuseDecoder{});
  } else if (type == "Strip") {
    out.emplace_back(
        StripDecoder{one_character(node, "content", node.get<std::string>("content")), count("start"), count("stop")});
  } else if (type == "Replace") {
    out.emplace_back(ReplaceDecoder{read_pattern(node.required("pattern")), node.get<std::string>("content")});
  } else {
    node.unknown_type("Sequence, WordPiece, ByteLevel, Metaspace, BPEDecoder, ByteFallback, Fuse, Strip, Replace");
  }
}

inline std::vector<TemplatePart> read_template(const JsonNode& node, std::string_view field, int sequences) {
  std::vector<TemplatePart> out;
  node.required(field);
  for (const JsonNode& part : node.elements(field)) {
    TemplatePart& read = out.emplace_back();
    if (const auto sequence = part.child("Sequence")) {
      const auto id = sequence->get<std::string>("id");
      if (id != "A" && !(id == "B" && sequences == 2))
        fail<FormatError>(sequence->where() + ".id", sequences == 2 ? "A or B" : "A", in_quotes(id));
      read.sequence = id == "B";
      read.token_type = sequence->get<std::int32_t>("type_id");
    } else {
      const JsonNode special = part.required("SpecialToken");
      const auto name = special.get<std::string>("id");
      const auto all = node.required("special_tokens");
      const auto found = all.child(name);
      if (!found)
        fail<FormatError>(special.where() + ".id", "one of the special_tokens of the template", in_quotes(name));
      read.ids = found->get<std::vector<std::int32_t>>("ids");
      read.token_type = special.get<std::int32_t>("type_id");
      for (const std::int32_t id : read.ids) {
        if (id < 0) fail<FormatError>(found->where() + ".ids", "ids from 0", std::to_string(id));
      }
    }
    if (read.token_type < 0) fail<FormatError>(part.where(), "a type_id from 0", std::to_string(read.token_type));
  }
  return out;
}

/// The number of ["</s>", 2].
inline std::int32_t read_token_pair(const JsonNode& node, std::string_view field) {
  const JsonNode pair = node.required(field);
  if (!pair.value.is_array() || pair.value.size() != 2 || !pair.value[0].is_string())
    fail<FormatError>(pair.where(), "a token and its id", shown(pair.value));
  const auto id = json_convert<std::int32_t>(pair.value[1], pair.where() + "[1]");
  if (id < 0) fail<FormatError>(pair.where() + "[1]", "an id from 0", std::to_string(id));
  return id;
}

inline void read_post_processor(const JsonNode& node, std::vector<PostProcessor>& out) {
  const std::string type = node.type();
  const auto add = [&](PostProcessor processor) {
    if (!out.empty() && std::holds_alternative<TemplateProcessor>(out.back()))
      fail<FormatError>(node.where(), "at most ByteLevel after a template", in_quotes(type));
    out.push_back(std::move(processor));
  };
  if (type == "Sequence") {
    for (const JsonNode& step : node.elements("processors")) read_post_processor(step, out);
  } else if (type == "TemplateProcessing") {
    add(TemplateProcessor{read_template(node, "single", 1), read_template(node, "pair", 2)});
  } else if (type == "BertProcessing") {
    add(BertProcessor{read_token_pair(node, "cls"), read_token_pair(node, "sep")});
  } else if (type == "RobertaProcessing") {
    add(RobertaProcessor{read_token_pair(node, "cls"), read_token_pair(node, "sep")});
  } else if (type != "ByteLevel") {  // ByteLevel adjusts offsets into the text, which we do not report
    node.unknown_type("Sequence, TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel");
  }
}

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

inline std::variant<WordPiece, Bpe> read_model(const JsonNode& node, bool has_pre_tokenizer) {
  // Old files leave the type out.
  const std::string type = node.child("type") ? node.type() : node.child("merges") ? "BPE" : "WordPiece";
  const std::string where = node.where();
  if (type == "WordPiece") {
    WordPiece::Options options;
    options.unknown = node.get_or<std::string>("unk_token", "[UNK]");
    options.continuation_prefix = node.get_or<std::string>("continuing_subword_prefix", "##");
    options.max_characters = node.get_or<std::uint32_t>("max_input_chars_per_word", 100);
    options.unknown_where = where + ".unk_token";
    return WordPiece(read_vocabulary(node.required("vocab")), std::move(options));
  }
  if (type == "BPE") {
    Bpe::Options options;
    if (node.child("unk_token")) options.unknown = node.get<std::string>("unk_token");
    options.continuation_prefix = node.get_or<std::string>("continuing_subword_prefix", "");
    options.end_suffix = node.get_or<std::string>("end_of_word_suffix", "");
    options.fuse_unknown = node.get_or("fuse_unk", false);
    options.byte_fallback = node.get_or("byte_fallback", false);
    options.ignore_merges = node.get_or("ignore_merges", false);
    options.whole_words = has_pre_tokenizer;
    options.unknown_where = where + ".unk_token";
    options.merges_where = where + ".merges";
    return Bpe(read_vocabulary(node.required("vocab")), read_merges(node.required("merges")), std::move(options));
  }
  fail<FormatError>(node.file + ", field " + node.path_of("type"), "WordPiece or BPE", in_quotes(type));
}

inline std::vector<AddedToken> read_added_tokens(const JsonNode& root) {
  std::vector<AddedToken> out;
  std::map<std::int32_t, std::string> seen;
  for (const JsonNode& node : root.elements("added_tokens")) {
    const auto id = node.get<std::int32_t>("id");
    AddedToken token{node.get<std::string>("content"), node.get_or("special", false), node.get_or("single_word", false),
                     node.get_or("lstrip", false),     node.get_or("rstrip", false),  node.get_or("normalized", true)};
    if (id < 0) fail<FormatError>(node.where() + ".id", "an id from 0", std::to_string(id));
    const auto [earlier, is_new] = seen.emplace(id, token.content);
    if (!is_new)
      fail<FormatError>(node.where() + ".id", "every id once",
                        std::to_string(id) + ", which " + in_quotes(earlier->second) + " has");
    out.push_back(std::move(token));
  }
  return out;
}

inline Tokenizer tokenizer_from_json(const Bytes& file) {
  const Json json = parse_json(file);
  const JsonNode root{json, file.name, ""};
  if (!json.is_object()) fail<FormatError>(file.name, "an object", shown(json));
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers;
  std::vector<PostProcessor> post_processors;
  std::optional<std::vector<Decoder>> decoders;
  if (const auto node = root.child("normalizer")) read_normalizer(*node, normalizers);
  if (const auto node = root.child("pre_tokenizer")) read_pre_tokenizer(*node, pre_tokenizers);
  if (const auto node = root.child("post_processor")) read_post_processor(*node, post_processors);
  if (const auto node = root.child("decoder")) read_decoder(*node, decoders.emplace());
  auto model = read_model(root.required("model"), !pre_tokenizers.empty());
  return Tokenizer({std::move(normalizers), std::move(pre_tokenizers), std::move(model), read_added_tokens(root),
                    std::move(post_processors), std::move(decoders), file.name + ", field added_tokens"});
}

/// tokenizer_config.json, or an empty object.
struct TokenizerConfig {
  Json json = Json::object();
  std::string file = "tokenizer_config.json";

  explicit TokenizerConfig(const FileSet& files) {
    if (const auto bytes = files.open("tokenizer_config.json")) {
      json = parse_json(*bytes);
      file = bytes->name;
      if (!json.is_object()) fail<FormatError>(file, "an object", shown(json));
    }
  }

  JsonNode root() const { return {json, file, ""}; }

  /// A token by its role ("cls_token"): a string, or an object with its content and flags.
  AddedToken token(const std::string& role, const std::string& fallback) const {
    AddedToken out{.content = fallback, .special = true};
    const auto node = root().child(role);
    if (!node) return out;
    if (node->value.is_string()) {
      out.content = node->value.get_ref<const std::string&>();
    } else {
      out.content = node->get<std::string>("content");
      out.lstrip = node->get_or("lstrip", false);
      out.rstrip = node->get_or("rstrip", false);
      out.single_word = node->get_or("single_word", false);
      out.normalized = node->get_or("normalized", false);
    }
    return out;
  }
};

/// Special tokens among those that the vocabulary has, each once.
inline std::vector<AddedToken> known_tokens(const Vocabulary& vocabulary, std::vector<AddedToken> tokens) {
  std::vector<AddedToken> out;
  for (AddedToken& token : tokens) {
    const bool twice =
        std::any_of(out.begin(), out.end(), [&](const AddedToken& t) { return t.content == token.content; });
    if (vocabulary.find(token.content) >= 0 && !twice) out.push_back(std::move(token));
  }
  return out;
}

inline std::int32_t required_token(const Vocabulary& vocabulary, const AddedToken& token, const std::string& file) {
  const std::int32_t id = vocabulary.find(token.content);
  if (id < 0) fail<FormatError>(file, "the special token " + in_quotes(token.content), "a vocabulary without it");
  return id;
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

inline Tokenizer tokenizer_from_vocab_txt(const Bytes& file, const FileSet& files) {
  const TokenizerConfig config(files);
  const JsonNode options = config.root();
  const AddedToken unk = config.token("unk_token", "[UNK]"), sep = config.token("sep_token", "[SEP]"),
                   pad = config.token("pad_token", "[PAD]"), cls = config.token("cls_token", "[CLS]"),
                   mask = config.token("mask_token", "[MASK]");
  Vocabulary vocabulary = read_vocabulary_lines(file);
  const bool lower_case = options.get_or("do_lower_case", true);
  const BertNormalizer normalizer{true, options.get_or("tokenize_chinese_chars", true),
                                  options.get_or("strip_accents", lower_case), lower_case};
  const std::int32_t cls_id = required_token(vocabulary, cls, file.name),
                     sep_id = required_token(vocabulary, sep, file.name);
  const TemplatePart head{-1, {cls_id}, 0}, first{0, {}, 0}, middle{-1, {sep_id}, 0}, second{1, {}, 1},
      tail{-1, {sep_id}, 1};
  std::vector<AddedToken> tokens = known_tokens(vocabulary, {unk, sep, pad, cls, mask});
  WordPiece model(std::move(vocabulary), {unk.content, "##", 100, file.name});
  return Tokenizer({{normalizer},
                    {BertPreTokenizer{}},
                    std::move(model),
                    std::move(tokens),
                    {TemplateProcessor{{head, first, middle}, {head, first, middle, second, tail}}},
                    std::vector<Decoder>{WordPieceDecoder{}},
                    file.name});
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

/// Does the checkpoint say that it is RoBERTa's, or does the vocabulary begin as RoBERTa's does?
inline bool is_roberta(const TokenizerConfig& config, const FileSet& files, const Vocabulary& vocabulary) {
  const auto named = config.root().get_or<std::string>("tokenizer_class", "");
  if (!named.empty()) return named.starts_with("Roberta");
  if (const auto bytes = files.open("config.json")) {
    const Json json = parse_json(*bytes);
    const auto type = JsonNode{json, bytes->name, ""}.get_or<std::string>("model_type", "");
    if (!type.empty()) return type == "roberta";
  }
  return vocabulary.find("<s>") == 0 && vocabulary.find("<pad>") == 1 && vocabulary.find("</s>") == 2;
}

inline Tokenizer tokenizer_from_vocab_json(const Bytes& vocab_file, const Bytes& merges_file, const FileSet& files) {
  const TokenizerConfig config(files);
  const Json json = parse_json(vocab_file);
  Vocabulary vocabulary = read_vocabulary({json, vocab_file.name, ""});
  const bool add_prefix_space = config.root().get_or("add_prefix_space", false);
  std::vector<AddedToken> tokens;
  std::vector<PostProcessor> post_processors;
  Bpe::Options options;
  options.merges_where = merges_file.name + ", merges";
  if (is_roberta(config, files, vocabulary)) {
    AddedToken mask = config.token("mask_token", "<mask>");
    if (!config.root().child("mask_token") || config.root().child("mask_token")->value.is_string()) mask.lstrip = true;
    const AddedToken cls = config.token("cls_token", "<s>"), sep = config.token("sep_token", "</s>");
    post_processors.push_back(RobertaProcessor{required_token(vocabulary, cls, vocab_file.name),
                                               required_token(vocabulary, sep, vocab_file.name)});
    tokens = known_tokens(vocabulary, {cls, config.token("pad_token", "<pad>"), sep, config.token("unk_token", "<unk>"),
                                       mask, config.token("bos_token", "<s>"), config.token("eos_token", "</s>")});
  } else {
    const AddedToken end = config.token("eos_token", "<|endoftext|>"),
                     begin = config.token("bos_token", "<|endoftext|>");
    tokens = known_tokens(vocabulary, {config.token("unk_token", "<|endoftext|>"), begin, end});
    if (config.root().get_or("add_bos_token", false)) {
      const TemplatePart bos{-1, {required_token(vocabulary, begin, vocab_file.name)}, 0}, bos_b{-1, bos.ids, 1};
      post_processors.push_back(TemplateProcessor{{bos, {0, {}, 0}}, {bos, {0, {}, 0}, bos_b, {1, {}, 1}}});
    }
  }
  Bpe model(std::move(vocabulary), read_merge_lines(merges_file), std::move(options));
  return Tokenizer({{},
                    {ByteLevelPreTokenizer{add_prefix_space, true}},
                    std::move(model),
                    std::move(tokens),
                    std::move(post_processors),
                    std::vector<Decoder>{ByteLevelDecoder{}},
                    vocab_file.name});
}

}  // namespace detail

/// The tokenizer of a model: tokenizer.json, else vocab.txt with tokenizer_config.json (lower-cased unless it says
/// otherwise), else vocab.json and merges.txt. \throws IoError when none of them is there, FormatError naming file and
/// field.
inline Tokenizer load_tokenizer(const FileSet& files) {
  if (const auto file = files.open("tokenizer.json")) return detail::tokenizer_from_json(*file);
  if (const auto file = files.open("vocab.txt")) return detail::tokenizer_from_vocab_txt(*file, files);
  const auto vocab = files.open("vocab.json");
  if (!vocab) fail<IoError>(files.name(), "tokenizer.json, vocab.txt, or vocab.json with merges.txt", "none of them");
  return detail::tokenizer_from_vocab_json(*vocab, files.require("merges.txt"), files);
}

/// The same for a directory, or for one file: one that ends in .txt is a vocab.txt (merges.txt: with the vocab.json
/// beside it), any other but vocab.json is read as tokenizer.json. Configuration files beside it count.
inline Tokenizer load_tokenizer(const std::filesystem::path& directory_or_file) {
  if (!std::filesystem::is_regular_file(directory_or_file))
    return load_tokenizer(FileSet::directory(directory_or_file));
  const auto parent =
      directory_or_file.has_parent_path() ? directory_or_file.parent_path() : std::filesystem::path(".");
  const FileSet files = FileSet::directory(parent);
  const auto name = directory_or_file.filename();
  if (name == "vocab.json" || name == "merges.txt")
    return detail::tokenizer_from_vocab_json(files.require("vocab.json"), files.require("merges.txt"), files);
  const Bytes file = map_file(directory_or_file);
  if (name.extension() == ".txt") return detail::tokenizer_from_vocab_txt(file, files);
  return detail::tokenizer_from_json(file);
}

}  // namespace fedlora
