// SPDX-License-Identifier: Apache-2.0
// What stands beside a vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json and the
// added_tokens of tokenizer.json, with the precedence that transformers 5 gives them. Where tokenizer_config.json has
// added_tokens_decoder, it counts alone; otherwise special_tokens_map.json goes before tokenizer_config.json, and the
// tokens of added_tokens.json and tokenizer.json count.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/hf/tokenizer/json_node.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::detail {

/// A token as a file names it: by its text alone, or with flags.
struct NamedToken {
  AddedToken token = {};
  bool by_text = false;
  bool says_normalized = false;  ///< otherwise a token is looked for in the normalised text unless it is special

  AddedToken resolved() const {
    AddedToken out = token;
    if (!says_normalized) out.normalized = !out.special;
    return out;
  }
};

inline bool is_same_token(const NamedToken& a, const NamedToken& b) {
  const AddedToken x = a.resolved(), y = b.resolved();
  if (a.by_text != b.by_text || x.content != y.content) return false;
  return a.by_text || (x.special == y.special && x.single_word == y.single_word && x.lstrip == y.lstrip &&
                       x.rstrip == y.rstrip && x.normalized == y.normalized);
}

/// A string, or an object with content and flags.
inline NamedToken read_named_token(const JsonNode& node) {
  NamedToken out;
  out.token.source = node.where();
  if (node.value.is_string()) {
    out.token.content = node.value.get_ref<const std::string&>();
    out.by_text = true;
    return out;
  }
  if (!node.value.is_object())
    fail<FormatError>(node.where(), "a token, or an object with its content", shown(node.value));
  out.token.content = node.get<std::string>("content");
  out.token.special = node.flag("special", false);
  out.token.single_word = node.flag("single_word", false);
  out.token.lstrip = node.flag("lstrip", false);
  out.token.rstrip = node.flag("rstrip", false);
  out.token.normalized = node.flag("normalized", false);
  out.says_normalized = node.child("normalized").has_value();
  return out;
}

/// The roles that transformers knows, in its order; tokens are added in this order.
inline constexpr std::array<std::string_view, 7> token_roles = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                                "pad_token", "cls_token", "mask_token"};

/// A token with the id that a file gives it. Ids are not followed, only the order that they stand for.
struct NumberedToken {
  std::int32_t id = 0;
  NamedToken named = {};
};

/// The tokens that stand beside a vocabulary, by id. Of two files that give an id to different tokens tokenizer.json
/// counts: the other token is overruled.
struct NumberedTokens {
  std::vector<NumberedToken> tokens = {}, overruled = {};

  /// The token of that content, or null.
  const NamedToken* find(std::string_view content) const {
    const NamedToken* found = nullptr;
    for (const auto* list : {&overruled, &tokens}) {
      for (const NumberedToken& token : *list)
        if (token.named.token.content == content) found = &token.named;
    }
    return found;
  }
};

/// The added_tokens of tokenizer.json, by id.
inline std::vector<NumberedToken> read_added_tokens(const JsonNode& root) {
  std::vector<NumberedToken> out;
  std::map<std::int32_t, std::string> seen;
  for (const JsonNode& node : root.elements("added_tokens")) {
    const auto id = node.get<std::int32_t>("id");
    if (id < 0) fail<FormatError>(node.where() + ".id", "an id from 0", std::to_string(id));
    if (!node.value.is_object() || !node.child("content"))
      fail<FormatError>(node.where() + ".content", "a value", "no such field");
    out.push_back({id, read_named_token(node)});
    const auto [earlier, is_new] = seen.emplace(id, out.back().named.token.content);
    if (!is_new)
      fail<FormatError>(node.where() + ".id", "every id once",
                        std::to_string(id) + ", which " + in_quotes(earlier->second) + " has");
  }
  return out;
}

class TokenizerSettings {
 public:
  /// No files: what a tokenizer.json means on its own.
  TokenizerSettings() = default;

  explicit TokenizerSettings(const FileSet& files) {
    config_file_ = read(files, "tokenizer_config.json", config_);
    refuse_unreadable();
    if (!has_added_tokens_decoder()) {
      map_file_ = read(files, "special_tokens_map.json", map_);
      for (const char* field : {"add_bos_token", "add_eos_token"}) {
        if (map_.contains(field))
          fail<FormatError>(json_where(map_file_, field), "it in tokenizer_config.json", "it here");
      }
      added_file_ = read(files, "added_tokens.json", added_);
    }
    merge_extra_tokens();
  }

  /// A field of tokenizer_config.json, unless special_tokens_map.json has it. It may be null.
  std::optional<JsonNode> find(std::string_view field) const {
    if (const auto at = map_.find(field); at != map_.end()) return JsonNode{*at, map_file_, std::string(field)};
    if (const auto at = config_.find(field); at != config_.end())
      return JsonNode{*at, config_file_, std::string(field)};
    return std::nullopt;
  }

  /// true or false; null is neither, as in transformers.
  bool flag(std::string_view field, bool fallback) const {
    const auto node = find(field);
    return node ? json_convert<bool>(node->value, node->where()) : fallback;
  }

  JsonNode config() const { return {config_, config_file_, ""}; }

  /// The token of a role where a file names it: nothing; or a token, none for null.
  std::optional<std::optional<NamedToken>> token(std::string_view role) const {
    const auto node = find(role);
    if (!node) return std::nullopt;
    if (node->value.is_null()) return std::optional<NamedToken>();
    NamedToken out = read_named_token(*node);
    if (is_of_map(*node)) out.token.special = true;
    return out;
  }

  /// Tokens of roles beyond those that every tokenizer has ("image_token"), in no particular order.
  std::vector<NamedToken> tokens_of_other_roles() const {
    std::map<std::string, NamedToken> out;
    for (const Json* file : {&map_, &config_}) {
      for (const auto& [role, value] : file->items()) {
        if (!role.ends_with("_token") || std::count(token_roles.begin(), token_roles.end(), role) != 0) continue;
        if (role == "add_bos_token" || role == "add_eos_token") continue;  // flags
        const JsonNode node{value, file == &map_ ? map_file_ : config_file_, role};
        const bool is_token = value.is_string() || (value.is_object() && (is_of_map(node) || value.contains("__type")));
        if (!is_token) continue;
        NamedToken token = read_named_token(node);
        if (is_of_map(node)) token.token.special = true;
        out.insert_or_assign(role, std::move(token));
      }
    }
    for (const auto& [role, token] : roles_of_extra_) out.insert_or_assign(role, token);
    std::vector<NamedToken> tokens;
    for (auto& [role, token] : out) tokens.push_back(std::move(token));
    return tokens;
  }

  /// Further special tokens: additional_special_tokens, or extra_special_tokens where that is a list.
  const std::vector<NamedToken>& extra_tokens() const { return extra_; }

  bool has_added_tokens_decoder() const { return config_.contains("added_tokens_decoder"); }

  /// The tokens that stand beside the vocabulary. \throws FormatError when one file gives an id to two tokens.
  NumberedTokens added_tokens(const std::vector<NumberedToken>& of_tokenizer_json) const {
    std::map<std::int32_t, NumberedToken> by_id;
    const auto take = [&](NumberedToken token) {
      const auto [at, is_new] = by_id.try_emplace(token.id, token);
      const AddedToken& earlier = at->second.named.token;
      if (!is_new)
        fail<FormatError>(token.named.token.source,
                          "another id than " + in_quotes(earlier.content) + " has in " + earlier.source,
                          std::to_string(token.id));
    };
    NumberedTokens out;
    if (const auto decoder = config().child("added_tokens_decoder")) {
      for (const auto& [key, value] : decoder->value.items()) {
        const JsonNode node{value, decoder->file, decoder->path_of(key)};
        if (!value.is_object()) fail<FormatError>(node.where(), "an object with the content of a token", shown(value));
        take({id_of(key, node), read_named_token(node)});
      }
    } else {
      const std::set<std::string> special = special_contents();
      for (const auto& [content, value] : added_.items()) {
        const std::string where = added_file_ + ", token " + in_quotes(content);
        NumberedToken token{json_convert<std::int32_t>(value, where)};
        if (token.id < 0) fail<FormatError>(where, "an id from 0", std::to_string(token.id));
        const bool is_special = special.contains(content);
        token.named.token = {.content = content, .special = is_special, .normalized = !is_special, .source = where};
        token.named.says_normalized = true;
        take(std::move(token));
      }
      for (const NumberedToken& token : of_tokenizer_json) {
        const auto [at, is_new] = by_id.try_emplace(token.id, token);
        if (is_new) continue;
        if (at->second.named.token.content != token.named.token.content) out.overruled.push_back(at->second);
        at->second = token;
      }
    }
    for (auto& [id, token] : by_id) out.tokens.push_back(std::move(token));
    return out;
  }

 private:
  static std::string read(const FileSet& files, const char* name, Json& out) {
    const auto bytes = files.open(name);
    if (!bytes) return files.path_of(name);
    out = parse_json(*bytes);
    if (!out.is_object()) fail<FormatError>(bytes->name, "an object", shown(out));
    return bytes->name;
  }

  static std::int32_t id_of(const std::string& key, const JsonNode& node) {
    std::int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0)
      fail<FormatError>(node.where(), "an id from 0 to 2147483647 as its name", in_quotes(key));
    return id;
  }

  /// Fields that make transformers read other files, or other values, than those that we do.
  void refuse_unreadable() const {
    const JsonNode root = config();
    for (const char* field : {"vocab", "merges", "tokenizer_object", "post_processor", "gguf_file"}) {
      if (const auto node = root.child(field))
        fail<FormatError>(node->where(), "no such field: its value stands in a file of its own", shown(node->value));
    }
    if (const auto inputs = root.child("init_inputs"); inputs && !inputs->value.empty())
      fail<FormatError>(inputs->where(), "an empty array", shown(inputs->value));
    for (const JsonNode& file : root.elements("fast_tokenizer_files")) {
      if (file.value != "tokenizer.json")
        fail<FormatError>(file.where(), "'tokenizer.json', for every version of transformers", shown(file.value));
    }
    if (root.flag("fix_mistral_regex", false))
      fail<FormatError>(json_where(config_file_, "fix_mistral_regex"), "false: tokenizer.json's words count", "true");
    if (const auto decoder = config_.find("added_tokens_decoder"); decoder != config_.end() && !decoder->is_object())
      fail<FormatError>(json_where(config_file_, "added_tokens_decoder"), "an object", shown(*decoder));
  }

  bool is_of_map(const JsonNode& node) const { return !map_file_.empty() && node.file == map_file_; }

  /// The tokens of a list, or of an object's values by their roles.
  std::vector<std::pair<std::string, NamedToken>> tokens_in(const JsonNode& node) const {
    std::vector<std::pair<std::string, NamedToken>> out;
    const auto take = [&](const Json& value, const std::string& role, const std::string& path) {
      NamedToken token = read_named_token({value, node.file, path});
      if (is_of_map(node) || (value.is_object() && !value.contains("__type"))) token.token.special = true;
      out.emplace_back(role, std::move(token));
    };
    if (!node.value.is_structured())
      fail<FormatError>(node.where(), "an array or an object of tokens", shown(node.value));
    for (std::size_t i = 0; node.value.is_array() && i < node.value.size(); ++i)
      take(node.value[i], "", node.path + "[" + std::to_string(i) + "]");
    if (node.value.is_object())
      for (const auto& [role, value] : node.value.items()) take(value, role, node.path_of(role));
    return out;
  }

  /// Fills `extra_`, `roles_of_extra_` and `special_extra_`, the special tokens beyond the usual roles, from
  /// extra_special_tokens and additional_special_tokens, its older name, of both files. In tokenizer_config.json the
  /// older name counts where the newer one says nothing; an object names roles; special_tokens_map.json adds to a list
  /// under the newer name, and under the older one counts where there is nothing else.
  void merge_extra_tokens() {
    const auto field = [](const Json& file, const char* key) {
      const auto at = file.find(key);
      return at == file.end() ? nullptr : &*at;
    };
    const auto take = [&](const Json& value, const std::string& file, const char* key) {
      if (value.is_null()) return;
      for (auto& [role, token] : tokens_in({value, file, key})) {
        if (value.is_object()) {
          roles_of_extra_.insert_or_assign(role, std::move(token));
        } else {
          extra_.push_back(std::move(token));
        }
      }
    };
    const char *const newer = "extra_special_tokens", *const older = "additional_special_tokens";
    const Json *extra = field(config_, newer), *additional = field(config_, older);
    const bool older_counts = additional != nullptr && (extra == nullptr || extra->empty());
    if (older_counts) extra = std::exchange(additional, nullptr);
    if (extra != nullptr) take(*extra, config_file_, older_counts ? older : newer);
    bool has_list = extra != nullptr && !extra->is_object();
    if (const Json* more = field(map_, newer)) {
      has_list = !more->is_object();
      if (!more->is_array()) extra_.clear();
      take(*more, map_file_, newer);
    }
    for (const NamedToken& token : extra_)
      if (makes_special(token)) special_extra_.insert(token.token.content);
    const Json* const of_map = field(map_, older);
    if (has_list || (of_map == nullptr && additional == nullptr)) return;
    take(of_map != nullptr ? *of_map : *additional, of_map != nullptr ? map_file_ : config_file_, older);
  }

  /// Objects of tokenizer_config.json are not compared with added_tokens.json, only texts, and what
  /// special_tokens_map.json has.
  bool makes_special(const NamedToken& token) const {
    return token.by_text || (!map_file_.empty() && token.token.source.starts_with(map_file_));
  }

  /// What makes a token of added_tokens.json special: that it has a role, or stands in a list under the newer name.
  std::set<std::string> special_contents() const {
    std::set<std::string> out = special_extra_;
    for (const std::string_view role : token_roles) {
      const auto named = token(role);
      if (named && *named && makes_special(**named)) out.insert((*named)->token.content);
    }
    return out;
  }

  Json config_ = Json::object(), map_ = Json::object(), added_ = Json::object();
  std::string config_file_ = "tokenizer_config.json", map_file_, added_file_;
  std::vector<NamedToken> extra_;
  std::map<std::string, NamedToken> roles_of_extra_;
  std::set<std::string> special_extra_;  ///< contents of `extra_` that make a token of added_tokens.json special
};

}  // namespace fedlora::detail
