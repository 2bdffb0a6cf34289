// SPDX-License-Identifier: Apache-2.0
// tokenizer_config.json, and the added tokens of tokenizer.json.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/hf/tokenizer/json_node.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::detail {

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

}  // namespace fedlora::detail
