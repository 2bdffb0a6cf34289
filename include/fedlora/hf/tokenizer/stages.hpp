// SPDX-License-Identifier: Apache-2.0
// The stages around the model as tokenizer.json describes them: normalizer, pre_tokenizer, decoder, post_processor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/hf/tokenizer/json_node.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::detail {

/// {"String": …} or {"Regex": …}.
inline Pattern read_pattern(const JsonNode& node) {
  if (node.child("String")) return Pattern::literal(node.get<std::string>("String"), node.where() + ".String");
  return Pattern::regex(node.get<std::string>("Regex"), node.where() + ".Regex");
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
  fail<FormatError>(node.where("behavior"), "one of Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous",
                    in_quotes(name));
}

/// Metaspace's prepend_scheme: always, where it is absent. The add_prefix_space of older files may not contradict it.
inline PrependScheme read_prepend_scheme(const JsonNode& node) {
  const bool add_prefix_space = node.get_or("add_prefix_space", true);
  const auto name = node.get_or<std::string>("prepend_scheme", "always");
  const auto where = node.where("prepend_scheme");
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
  } else if (type == "CharDelimiterSplit") {
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
    if (suffix.empty()) fail<FormatError>(node.where("suffix"), "a suffix that is not empty", "\"\"");
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
      if (std::count_if(out.begin(), out.end(), [&](const TemplatePart& p) { return p.sequence == read.sequence; }) > 1)
        fail<FormatError>(sequence->where() + ".id", "every text once", id + " again");
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

}  // namespace fedlora::detail
