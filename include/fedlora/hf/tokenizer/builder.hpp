// SPDX-License-Identifier: Apache-2.0
// A tokenizer from its files and its class, step by step as transformers 5 builds it, so that every token has the same
// number: the stages and the model, the tokens beside the vocabulary, the special tokens around a text.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/hf/tokenizer/classes.hpp"
#include "fedlora/hf/tokenizer/json_node.hpp"
#include "fedlora/hf/tokenizer/settings.hpp"
#include "fedlora/hf/tokenizer/stages.hpp"
#include "fedlora/hf/tokenizer/vocabulary_files.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::detail {

/// The files that a tokenizer is made of, and what stands beside them.
struct TokenizerFiles {
  std::optional<Bytes> json;    ///< tokenizer.json
  Json parsed = nullptr;        ///< the same
  std::optional<Bytes> pieces;  ///< vocab.txt or vocab.json, where there is no tokenizer.json
  std::optional<Bytes> merges;  ///< merges.txt
  TokenizerSettings settings = {};

  /// \throws FormatError for a document that tokenizers would not read at all, whatever stands in its parts.
  void parse() {
    parsed = parse_json(*json);
    if (!parsed.is_object()) fail<FormatError>(json->name, "an object", shown(parsed));
    static constexpr std::array<std::string_view, 9> known = {"version",        "truncation", "padding",
                                                              "added_tokens",   "normalizer", "pre_tokenizer",
                                                              "post_processor", "decoder",    "model"};
    for (const auto& [field, value] : parsed.items()) {
      if (field == "version" && value != "1.0") fail<FormatError>(json_where(json->name, field), "'1.0'", shown(value));
      if (std::find(known.begin(), known.end(), field) == known.end())
        fail<FormatError>(json_where(json->name, field), "a field that tokenizers knows", "another, which it refuses");
    }
  }
  std::optional<JsonNode> root() const { return json ? std::optional(JsonNode{parsed, json->name, ""}) : std::nullopt; }
};

/// Normalizer, pre-tokenizer, decoder and model as `description` (a tokenizer.json, or what a class puts in its place)
/// has them.
inline TokenizerParts read_stages(const JsonNode& description, Pieces pieces) {
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers;
  std::optional<std::vector<Decoder>> decoders;
  if (const auto node = description.child("normalizer")) read_normalizer(*node, normalizers);
  if (const auto node = description.child("pre_tokenizer")) read_pre_tokenizer(*node, pre_tokenizers);
  if (const auto node = description.child("decoder")) read_decoder(*node, decoders.emplace());
  auto model = make_model(description.required("model"), std::move(pieces), !pre_tokenizers.empty());
  return {.normalizers = std::move(normalizers),
          .pre_tokenizers = std::move(pre_tokenizers),
          .model = std::move(model),
          .decoders = std::move(decoders)};
}

inline std::vector<AddedToken> resolved_tokens(const std::vector<NumberedToken>& tokens) {
  std::vector<AddedToken> out;
  for (const NumberedToken& token : tokens) out.push_back(token.named.resolved());
  return out;
}

/// Warns of ids that files give and that are not followed, and of ids that a piece of the vocabulary has too: which
/// file says what, and which one counts.
inline void note_numbers(TokenizerParts& parts, const std::vector<NumberedToken>& tokens) {
  const std::string& vocabulary = parts.vocabulary_source;
  for (const NumberedToken& token : tokens) {
    const AddedToken& given = token.named.token;
    const std::int32_t id = parts.find(given.content);
    const auto piece = parts.vocabulary().piece_of(id);
    const bool is_shared = piece && *piece != given.content;
    if (id < 0 || (id == token.id && !is_shared)) continue;
    std::string text =
        given.source + " gives the token " + in_quotes(given.content) + " the id " + std::to_string(token.id);
    if (id != token.id) {
      text += "; it gets " + std::to_string(id) + " instead, ";
      text += parts.vocabulary().find(given.content) >= 0
                  ? "its id in " + vocabulary
                  : "as tokens that " + vocabulary + " lacks are numbered on from the number of its pieces";
    }
    if (is_shared) text += "; " + vocabulary + " gives that id to the piece " + in_quotes(*piece) + ", so both have it";
    parts.warnings.push_back(text + " (as in transformers)");
  }
}

/// \throws FormatError for special tokens around a text that are no tokens at all.
inline void check_special_ids(const TokenizerParts& parts, const std::string& where) {
  const auto check = [&](std::int32_t id) {
    if (parts.added_tokens.token_of(id) == nullptr && !parts.vocabulary().piece_of(id))
      fail<FormatError>(where, "ids of tokens", std::to_string(id) + ", which no token has");
  };
  for (const PostProcessor& step : parts.post_processors) {
    const auto each = [&](const auto& kind) {
      if constexpr (std::is_same_v<std::decay_t<decltype(kind)>, TemplateProcessor>) {
        for (const auto* parts_of : {&kind.single, &kind.pair})
          for (const TemplatePart& part : *parts_of) std::for_each(part.ids.begin(), part.ids.end(), check);
      } else {
        check(kind.cls);
        check(kind.sep);
      }
    };
    std::visit(each, step);
  }
}

/// Warns of tokens that are never found.
inline void note_never_found(TokenizerParts& parts) {
  for (const std::int32_t id : parts.added_tokens.never_found()) {
    const AddedToken& token = *parts.added_tokens.token_of(id);
    parts.warnings.push_back(token.source + ": the token " + in_quotes(token.content) + " (" + std::to_string(id) +
                             ") is never found: another token has the same normalised form " +
                             in_quotes(*parts.added_tokens.written_form_of(id)));
  }
}

/// Whether a text that is too long loses its beginning, where nothing beside tokenizer.json says.
inline bool cuts_beginning(const JsonNode& root) {
  const auto truncation = root.child("truncation");
  if (!truncation) return false;
  const auto direction = truncation->get_or<std::string>("direction", "Right");
  if (direction != "Left" && direction != "Right")
    fail<FormatError>(truncation->where() + ".direction", "Left or Right", in_quotes(direction));
  return direction == "Left";
}

/// A tokenizer.json as it stands, without its warnings.
inline TokenizerParts parts_of_json(const JsonNode& root) {
  const JsonNode model = root.required("model");
  if (const auto dropout = model.child("dropout"); dropout && dropout->value != 0)
    fail<FormatError>(dropout->where(), "null or 0: with dropout a text has other tokens each time",
                      shown(dropout->value));
  TokenizerParts parts = read_stages(root, read_pieces(model));
  if (const auto node = root.child("post_processor")) read_post_processor(*node, parts.post_processors);
  parts.vocabulary_source = model.where() + ".vocab";
  parts.cuts_beginning = cuts_beginning(root);
  parts.add(resolved_tokens(read_added_tokens(root)), root.file + ", field added_tokens");
  return parts;
}

/// The types of a stage and of the steps in it.
inline std::string stage_types(const std::optional<JsonNode>& stage) {
  if (!stage) return "";
  const std::string type = stage->type();
  if (type != "Sequence") return type;
  std::string out;
  for (const char* steps : {"normalizers", "pretokenizers"}) {
    for (const JsonNode& step : stage->elements(steps)) out.append(out.empty() ? "" : ",").append(stage_types(step));
  }
  return out;
}

/// A tokenizer of one class, built as transformers builds it.
class TokenizerBuilder {
 public:
  TokenizerBuilder(const TokenizerFiles& files, const ChosenTokenizerClass& chosen)
      : files_(files),
        settings_(files.settings),
        kind_(*chosen.kind),
        because_(chosen.because),
        guessed_(chosen.guessed),
        parts_(stages()) {
    set_roles();
    add_tokens();
    set_special_tokens();
    set_flags();
    note_numbers(parts_, numbered_.tokens);
    note_overruled();
    note_never_found(parts_);
  }

  TokenizerParts take() { return std::move(parts_); }

 private:
  std::string class_name() const { return std::string(kind_.name) + " (" + because_ + ")"; }

  TokenizerParts stages() {
    const auto root = files_.root();
    if (kind_.stages == nullptr) return parts_of_json(*root);
    const Json description = kind_.stages(settings_);
    const JsonNode node{description, std::string(kind_.name), ""};
    const std::string type = node.required("model").type();
    if (!root) {
      Pieces pieces = type == "WordPiece" ? Pieces{read_vocabulary_lines(*files_.pieces)} : vocabulary_and_merges();
      TokenizerParts parts = read_stages(node, std::move(pieces));
      parts.vocabulary_source = files_.pieces->name;
      return parts;
    }
    const JsonNode model = root->required("model");
    if (model_type_of(model) != type)
      fail<ConfigError>(model.where() + ".type", in_quotes(type) + ", which " + class_name() + " has",
                        in_quotes(model_type_of(model)));
    TokenizerParts parts = read_stages(node, read_pieces(model));
    parts.vocabulary_source = model.where() + ".vocab";
    const std::string types = stage_types(root->child("normalizer")) + "|" + stage_types(root->child("pre_tokenizer"));
    if (std::find(kind_.usual.begin(), kind_.usual.end(), types) == kind_.usual.end()) {
      parts.warnings.push_back(root->file + ": its normalizer and pre_tokenizer (" + types +
                               ") are passed over for those of " + class_name() + ", " + std::string(kind_.usual[0]) +
                               ", as in transformers 5; with the tokenizer_class PreTrainedTokenizerFast they count");
    }
    return parts;
  }

  Pieces vocabulary_and_merges() const {
    const Json json = parse_json(*files_.pieces);
    return {read_vocabulary({json, files_.pieces->name, ""}), read_merge_lines(*files_.merges),
            files_.merges->name + ", merges"};
  }

  /// The tokens of all roles: as a file names them, else the class's own. A token that stands beside the vocabulary too
  /// has its flags from there.
  void set_roles() {
    std::vector<NumberedToken> of_json;
    if (const auto root = files_.root()) of_json = read_added_tokens(*root);
    numbered_ = settings_.added_tokens(of_json);
    for (std::size_t i = 0; i < token_roles.size(); ++i) {
      auto named = settings_.token(token_roles[i]);
      if (named && *named) {
        if (const NamedToken* beside = numbered_.find((*named)->token.content)) *named = *beside;
      }
      roles_[i] = named ? *std::move(named) : own_token(i);
    }
  }

  std::optional<NamedToken> own_token(std::size_t role) const {
    const char* content = kind_.tokens[role];
    const auto root = files_.root();
    const auto padding = root ? root->child("padding") : std::nullopt;
    if (token_roles[role] == "pad_token" && !kind_.passes_pad_token && padding) {
      NamedToken token{.by_text = true};
      token.token = {.content = padding->get<std::string>("pad_token"), .source = padding->where() + ".pad_token"};
      return token;
    }
    if (content == nullptr) return std::nullopt;
    NamedToken token{.by_text = !kind_.mask_takes_space};
    token.token = {.content = content,
                   .lstrip = kind_.mask_takes_space && token_roles[role] == "mask_token",
                   .source = class_name()};
    return token;
  }

  /// Everything that is not in the model's vocabulary, and the special tokens that are, in transformers' order.
  void add_tokens() {
    std::set<std::string> known;
    if (kind_.stages == nullptr) {
      for (const NumberedToken& token : read_added_tokens(*files_.root())) known.insert(token.named.token.content);
    }
    std::vector<NamedToken> batch;
    for (const NumberedToken& token : numbered_.tokens) {
      known.insert(token.named.token.content);
      batch.push_back(token.named);
    }
    const auto take = [&](const NamedToken& token) {
      const auto same = [&](const NamedToken& other) { return is_same_token(other, token); };
      if (!known.contains(token.token.content) && std::none_of(batch.begin(), batch.end(), same))
        batch.push_back(token);
    };
    std::set<std::string> named;
    for (const auto& role : roles_) {
      if (!role) continue;
      named.insert(role->token.content);
      take(*role);
    }
    const std::vector<NamedToken> others = settings_.tokens_of_other_roles();
    refuse_unordered(others, known);
    for (const NamedToken& token : others) {
      named.insert(token.token.content);
      take(token);
    }
    for (const NamedToken& token : settings_.extra_tokens()) take(token);
    std::vector<AddedToken> tokens;
    for (NamedToken& token : batch) {
      if (token.by_text || named.contains(token.token.content)) token.token.special = true;
      tokens.push_back(token.resolved());
    }
    parts_.add(tokens, because_);
    if (kind_.special_tokens_anew) parts_.add(special_tokens(others), because_);
  }

  /// Tokens of roles of their own are numbered in the order of the file, which a JSON object does not keep for us.
  void refuse_unordered(const std::vector<NamedToken>& others, const std::set<std::string>& known) const {
    const NamedToken* first = nullptr;
    for (const NamedToken& token : others) {
      const std::string& content = token.token.content;
      if (known.contains(content) || parts_.find(content) >= 0) continue;
      if (first != nullptr && first->token.content != content) {
        fail<FormatError>(
            token.token.source,
            "the ids of " + in_quotes(first->token.content) + " and " + in_quotes(content) + " in added_tokens_decoder",
            "neither there nor in the vocabulary");
      }
      first = &token;
    }
  }

  std::vector<AddedToken> special_tokens(const std::vector<NamedToken>& others) const {
    std::vector<AddedToken> out;
    for (const auto& role : roles_)
      if (role) out.push_back({.content = role->token.content, .special = true});
    for (const auto* list : {&others, &settings_.extra_tokens()})
      for (const NamedToken& token : *list) out.push_back({.content = token.token.content, .special = true});
    return out;
  }

  /// The id of a token that stands around every text.
  std::int32_t id_of_role(std::string_view role) {
    const auto at = std::find(token_roles.begin(), token_roles.end(), role) - token_roles.begin();
    const auto& named = roles_[static_cast<std::size_t>(at)];
    if (!named) {
      const auto node = settings_.find(role);
      fail<FormatError>(node ? node->where() : because_, "a token, which " + class_name() + " puts around every text",
                        "null");
    }
    const std::string& content = named->token.content;
    const std::int32_t id = parts_.find(content);
    if (parts_.vocabulary().find(content) >= 0 || numbered_.find(content) != nullptr) return id;
    if (guessed_) {
      fail<FormatError>(parts_.vocabulary_source, "the special token " + in_quotes(content), "a vocabulary without it");
    }
    std::string warning = parts_.vocabulary_source + ": no file numbers " + in_quotes(content) + ", the " +
                          std::string(role) + " of " + class_name() + "; it is " + std::to_string(id) +
                          ", after the vocabulary, as in transformers";
    parts_.warnings.push_back(std::move(warning));
    return id;
  }

  void set_special_tokens() {
    std::vector<PostProcessor>& out = parts_.post_processors;
    if (kind_.special_tokens == SpecialTokens::cls_sep) {
      out = {BertProcessor{id_of_role("cls_token"), id_of_role("sep_token")}};
    } else if (kind_.special_tokens == SpecialTokens::cls_sep_sep) {
      out = {RobertaProcessor{id_of_role("cls_token"), id_of_role("sep_token")}};
    } else if (const auto root = files_.root()) {
      out.clear();
      if (const auto node = root->child("post_processor"); node && kind_.special_tokens == SpecialTokens::as_file)
        read_post_processor(*node, out);
      check_special_ids(parts_, root->file + ", field post_processor");
    } else {
      out = {begin_and_end()};
    }
  }

  /// add_bos_token and add_eos_token.
  TemplateProcessor begin_and_end() {
    TemplateProcessor out;
    const auto ids = [&](const char* flag, std::size_t role) {
      const bool wanted = settings_.flag(flag, false) && roles_[role];
      return wanted ? std::vector<std::int32_t>{id_of_role(token_roles[role])} : std::vector<std::int32_t>();
    };
    const auto begin = ids("add_bos_token", 0), end = ids("add_eos_token", 1);
    for (const int sequence : {0, 1}) {
      for (const TemplatePart& part :
           {TemplatePart{-1, begin, sequence}, TemplatePart{sequence, {}, sequence}, TemplatePart{-1, end, sequence}}) {
        if (sequence == 0) out.single.push_back(part);
        out.pair.push_back(part);
      }
    }
    return out;
  }

  void set_flags() {
    parts_.added_tokens.split_special_tokens(settings_.flag("split_special_tokens", false));
    const bool cleans_up = settings_.flag("clean_up_tokenization_spaces", false);
    const bool for_bpe =
        settings_.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", false);
    parts_.cleans_up_spaces = cleans_up && (for_bpe || std::holds_alternative<WordPiece>(parts_.model));
    if (const auto root = files_.root()) parts_.cuts_beginning = cuts_beginning(*root);
    if (const auto node = settings_.find("truncation_side")) {
      const auto side = json_convert<std::string>(node->value, node->where());
      if (side != "left" && side != "right") fail<FormatError>(node->where(), "left or right", in_quotes(side));
      parts_.cuts_beginning = side == "left";
    }
    parts_.has_token_types = kind_.has_token_types || guessed_;
    if (const auto node = settings_.find("model_input_names")) {
      const auto names = json_convert<std::vector<std::string>>(node->value, node->where());
      parts_.has_token_types = std::find(names.begin(), names.end(), "token_type_ids") != names.end();
    }
  }

  /// Warns of tokens whose id tokenizer.json gives to another one.
  void note_overruled() {
    for (const NumberedToken& token : numbered_.overruled) {
      const AddedToken& given = token.named.token;
      const auto has_id = [&](const NumberedToken& other) { return other.id == token.id; };
      const AddedToken& other = std::find_if(numbered_.tokens.begin(), numbered_.tokens.end(), has_id)->named.token;
      const std::int32_t id = parts_.find(given.content);
      const std::string outcome = id < 0 ? " is no token" : " gets the id " + std::to_string(id);
      parts_.warnings.push_back(given.source + " gives the token " + in_quotes(given.content) + " the id " +
                                std::to_string(token.id) + ", " + other.source + " gives it to " +
                                in_quotes(other.content) + "; tokenizer.json counts, and " + in_quotes(given.content) +
                                outcome + " (as in transformers)");
    }
  }

  const TokenizerFiles& files_;
  const TokenizerSettings& settings_;
  const TokenizerClass& kind_;
  const std::string& because_;
  const bool guessed_;
  TokenizerParts parts_;
  NumberedTokens numbered_;
  std::array<std::optional<NamedToken>, token_roles.size()> roles_;
};

}  // namespace fedlora::detail
