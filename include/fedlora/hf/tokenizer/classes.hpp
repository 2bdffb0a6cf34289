// SPDX-License-Identifier: Apache-2.0
// Tokenizer classes: which one transformers 5 takes for a checkpoint, and what it builds. Most classes take no more
// than the vocabulary, the merges and the post-processor from tokenizer.json and put their own stages around them, so
// that settings of tokenizer_config.json go before what tokenizer.json says. A class is described here by the fields of
// tokenizer.json that it stands for.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/hf/tokenizer/json_node.hpp"
#include "fedlora/hf/tokenizer/known_classes.hpp"
#include "fedlora/hf/tokenizer/settings.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::detail {

/// How a class puts special tokens around a text. `as_file` and `bos_eos` are the same where there is no
/// tokenizer.json; they differ where there is one: transformers keeps its post_processor in a class of the first kind,
/// and takes it away without another in its place in one of the second, whose texts then have no special tokens around
/// them.
enum class SpecialTokens {
  as_file,      ///< as tokenizer.json's post_processor; without tokenizer.json as add_bos_token, add_eos_token say
  bos_eos,      ///< as add_bos_token, add_eos_token say without tokenizer.json; nothing with it
  cls_sep,      ///< BERT's template
  cls_sep_sep,  ///< RoBERTa's: two separators between a pair, every token type 0
};

/// What a class makes of a vocabulary.
struct TokenizerClass {
  std::string_view name;
  std::string_view vocabulary = {};  ///< the file that it reads without tokenizer.json; none: it needs tokenizer.json
  bool has_token_types = false;      ///< the model is told which text a token belongs to
  SpecialTokens special_tokens = SpecialTokens::as_file;
  std::array<const char*, 7> tokens = {};  ///< the class's own token of each of token_roles; null: none
  bool passes_pad_token = true;            ///< the padding of tokenizer.json names no token
  bool mask_takes_space = false;     ///< the class's own tokens are objects, the mask takes the white space before it
  bool special_tokens_anew = false;  ///< every special token ends without flags, whatever the files say of it
  /// normalizer, pre_tokenizer, decoder and model (without vocabulary) as tokenizer.json would have them; null: as
  /// tokenizer.json has them.
  Json (*stages)(const TokenizerSettings&) = nullptr;
  /// The types of normalizer and pre_tokenizer in a tokenizer.json that means the same: "NFC|Split,ByteLevel".
  std::array<std::string_view, 2> usual = {};
};

/// The unknown token of a class whose model needs one.
inline std::string unknown_token(const TokenizerSettings& settings, const char* fallback) {
  const auto token = settings.token("unk_token");
  if (!token) return fallback;
  if (!*token) fail<FormatError>(settings.find("unk_token")->where(), "a token", "null");
  return (*token)->token.content;
}

inline Json bert_stages(const TokenizerSettings& settings) {
  const bool lower_case = settings.flag("do_lower_case", true);
  Json strip_accents = nullptr;
  if (const auto node = settings.find("strip_accents"); node && !node->value.is_null())
    strip_accents = settings.flag("strip_accents", lower_case);
  return {{"normalizer",
           {{"type", "BertNormalizer"},
            {"handle_chinese_chars", settings.flag("tokenize_chinese_chars", true)},
            {"strip_accents", strip_accents},
            {"lowercase", lower_case}}},
          {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
          {"decoder", {{"type", "WordPiece"}}},
          {"model", {{"type", "WordPiece"}, {"unk_token", unknown_token(settings, "[UNK]")}}}};
}

/// Byte-level BPE with GPT-2's words.
inline Json byte_level_stages(const TokenizerSettings& settings) {
  return {{"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", settings.flag("add_prefix_space", false)}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}}}};
}

inline Json gpt_neox_stages(const TokenizerSettings& settings) {
  Json out = byte_level_stages(settings);
  out["normalizer"] = {{"type", "NFC"}};
  return out;
}

/// add_prefix_space of the classes for which null is a value.
inline bool prefix_space(const TokenizerSettings& settings, bool fallback) {
  const auto node = settings.find("add_prefix_space");
  return node && !node->value.is_null() ? settings.flag("add_prefix_space", fallback) : fallback;
}

inline Json qwen2_stages(const TokenizerSettings& settings) {
  constexpr const char* words =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  Json out = gpt_neox_stages(TokenizerSettings());
  out["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", words}}}, {"behavior", "Isolated"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", prefix_space(settings, false)}, {"use_regex", false}}}}};
  return out;
}

inline Json pieces_decoder() {
  return {{"type", "Sequence"},
          {"decoders",
           {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
            {{"type", "ByteFallback"}},
            {{"type", "Fuse"}}}}};
}

inline Json llama_stages(const TokenizerSettings& settings) {
  const bool prefix = prefix_space(settings, true);
  const auto node = settings.find("legacy");
  const bool legacy = node && !node->value.is_null() && settings.flag("legacy", false);
  Json decoder = pieces_decoder();
  if (prefix) decoder["decoders"].push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Metaspace"},
            {"replacement", "\u2581"},
            {"prepend_scheme", !prefix  ? "never"
                               : legacy ? "always"
                                        : "first"},
            {"split", false}}},
          {"decoder", decoder},
          {"model", {{"type", "BPE"}, {"fuse_unk", true}, {"byte_fallback", true}}}};
}

inline Json gemma_stages(const TokenizerSettings& settings) {
  return {{"normalizer", {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}},
          {"pre_tokenizer",
           {{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "MergedWithPrevious"}, {"invert", false}}},
          {"decoder", pieces_decoder()},
          {"model",
           {{"type", "BPE"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"unk_token", unknown_token(settings, "<unk>")}}}};
}

/// The classes that this library builds. Tokens in the order of token_roles: bos, eos, unk, sep, pad, cls, mask.
inline const std::vector<TokenizerClass>& tokenizer_classes() {
  static constexpr const char* end = "<|endoftext|>";
  static const std::vector<TokenizerClass> classes = [] {
    TokenizerClass plain{.name = "TokenizersBackend"};
    TokenizerClass bert{.name = "BertTokenizer",
                        .vocabulary = "vocab.txt",
                        .has_token_types = true,
                        .special_tokens = SpecialTokens::cls_sep,
                        .tokens = {nullptr, nullptr, "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"},
                        .stages = bert_stages,
                        .usual = {"BertNormalizer|BertPreTokenizer"}};
    TokenizerClass distilbert = bert;
    distilbert.name = "DistilBertTokenizer";
    distilbert.has_token_types = false;
    TokenizerClass mpnet = distilbert;
    mpnet.name = "MPNetTokenizer";
    mpnet.special_tokens = SpecialTokens::cls_sep_sep;
    mpnet.tokens = {"<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"};
    mpnet.mask_takes_space = true;
    TokenizerClass roberta{.name = "RobertaTokenizer",
                           .vocabulary = "vocab.json",
                           .special_tokens = SpecialTokens::cls_sep_sep,
                           .tokens = {"<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"},
                           .stages = byte_level_stages,
                           .usual = {"|ByteLevel"}};
    TokenizerClass deberta = roberta;
    deberta.name = "DebertaTokenizer";
    deberta.has_token_types = true;
    deberta.tokens = {"[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"};
    TokenizerClass gpt2 = roberta;
    gpt2.name = "GPT2Tokenizer";
    gpt2.special_tokens = SpecialTokens::as_file;
    gpt2.tokens = {end, end, end};
    TokenizerClass gpt_neox = gpt2;
    gpt_neox.name = "GPTNeoXTokenizer";
    gpt_neox.special_tokens = SpecialTokens::bos_eos;
    gpt_neox.tokens = {end, end, end, nullptr, "<|padding|>"};
    gpt_neox.stages = gpt_neox_stages;
    gpt_neox.usual = {"NFC|ByteLevel"};
    TokenizerClass qwen2 = gpt2;
    qwen2.name = "Qwen2Tokenizer";
    qwen2.tokens = {nullptr, end, end, nullptr, end};
    qwen2.special_tokens_anew = true;
    qwen2.stages = qwen2_stages;
    qwen2.usual = {"NFC|Split,ByteLevel"};
    TokenizerClass llama{.name = "LlamaTokenizer",
                         .tokens = {"<s>", "</s>", "<unk>"},
                         .passes_pad_token = false,
                         .stages = llama_stages,
                         .usual = {"|Metaspace", "Prepend,Replace|"}};
    TokenizerClass gemma{.name = "GemmaTokenizer",
                         .tokens = {"<bos>", "<eos>", "<unk>", nullptr, "<pad>", nullptr, "<mask>"},
                         .stages = gemma_stages,
                         .usual = {"Replace|Split", "Replace|"}};
    plain.passes_pad_token = false;
    return std::vector<TokenizerClass>{plain, bert,     distilbert, mpnet, roberta, deberta,
                                       gpt2,  gpt_neox, qwen2,      llama, gemma};
  }();
  return classes;
}

/// The class of that name, or null.
inline const TokenizerClass* tokenizer_class_named(std::string_view name) {
  for (const TokenizerClass& known : tokenizer_classes()) {
    if (known.name == name) return &known;
  }
  return nullptr;
}

/// The class that a name leads to in transformers: one of tokenizer_classes(); "" for one that is not built here;
/// nothing for a name that transformers does not know.
inline std::optional<std::string_view> resolved_tokenizer_class(std::string_view name) {
  for (;; name.remove_suffix(4)) {
    for (const TokenizerNames& row : tokenizer_class_names) {
      if (is_listed(name, row.names)) return row.tokenizer_class;
    }
    if (!name.ends_with("Fast")) return std::nullopt;
  }
}

/// The class that transformers registers for a model type, or "".
inline std::string_view registered_tokenizer_class(std::string_view model_type) {
  for (const TokenizerNames& row : tokenizer_model_types) {
    if (is_listed(model_type, row.names)) return row.tokenizer_class;
  }
  return "";
}

/// What config.json says about the tokenizer.
struct TokenizerHints {
  std::string file = "config.json", model_type, model_name, tokenizer_class;

  explicit TokenizerHints(const FileSet& files) {
    const auto bytes = files.open("config.json");
    if (!bytes) return;
    file = bytes->name;
    const Json json = parse_json(*bytes);
    const auto text = [&](const char* field) {
      const Json* found = json_find(json, field, file);
      return found != nullptr && found->is_string() ? found->get<std::string>() : std::string();
    };
    model_type = text("model_type");
    model_name = text("model_name");
    tokenizer_class = text("tokenizer_class");
  }

  bool names_wrong_class() const {
    return is_listed(model_type, tokenizer_types_named_wrongly) || is_listed(model_name, tokenizer_types_named_wrongly);
  }
};

/// The class of a checkpoint's tokenizer, and the file and field that decide it. No class: no file names one.
struct ChosenTokenizerClass {
  const TokenizerClass* kind = nullptr;
  std::string because = {};
  bool guessed = false;  ///< no file names it or the model's type
};

/// What AutoTokenizer of transformers 5 decides: the class that tokenizer_config.json names, else config.json; else
/// that of the model type. A class that transformers does not know, and some that it knows to be named wrongly, stand
/// for tokenizer.json alone. \throws ConfigError for a class that is not built here, naming file, field and class.
inline ChosenTokenizerClass choose_tokenizer_class(const FileSet& files, const TokenizerSettings& settings,
                                                   std::string_view tokenizer_json) {
  const TokenizerHints hints(files);
  const JsonNode config = settings.config();
  const auto named = config.get_or<std::string>("tokenizer_class", "");
  const std::string hub = named.empty() ? hints.tokenizer_class : named;
  const std::string by_name =
      named.empty() ? hints.file + ", field tokenizer_class" : config.file + ", field tokenizer_class";
  const std::string_view registered = registered_tokenizer_class(hints.model_type);
  const auto stem = [](std::string_view name) {
    return name.substr(0, name.size() - (name.ends_with("Fast") ? 4 : 0));
  };
  const auto plain = [](std::string because) {
    return ChosenTokenizerClass{tokenizer_class_named("TokenizersBackend"), std::move(because), false};
  };
  const auto built = [&](std::string_view name, const std::string& because) {
    const auto resolved = resolved_tokenizer_class(name);
    if (!resolved) return plain(because);
    if (resolved->empty()) {
      std::string known;
      for (const TokenizerClass& entry : tokenizer_classes())
        known.append(known.empty() ? "" : ", ").append(entry.name);
      fail<ConfigError>(because,
                        "a tokenizer class that is read here (" + known + ", with or without Fast)" +
                            (tokenizer_json.empty() ? "" : "; PreTrainedTokenizerFast reads tokenizer.json alone"),
                        in_quotes(name));
    }
    return ChosenTokenizerClass{tokenizer_class_named(*resolved), because, false};
  };

  bool has_code = false;
  if (const auto map = config.child("auto_map"))
    has_code = map->value.is_array() || (map->value.is_object() && map->child("AutoTokenizer").has_value());
  if (!has_code && stem(hub) == "LlamaTokenizer" && !hints.names_wrong_class() &&
      tokenizer_json.find("\"ByteLevel\"") != std::string_view::npos)
    return plain(by_name);
  if (!has_code && !hub.empty() && !registered.empty() && stem(registered) != stem(hub)) {
    if (registered == "TokenizersBackend") return plain(hints.file + ", field model_type");
    return hints.names_wrong_class() ? built(registered, hints.file + ", field model_type") : built(hub, by_name);
  }
  const bool has_configuration =
      !registered.empty() && !is_listed(hints.model_type, tokenizer_types_without_configuration);
  if (has_code && !hints.names_wrong_class() && !has_configuration &&
      (named.empty() || !resolved_tokenizer_class(named))) {
    fail<ConfigError>(config.file + ", field auto_map",
                      "a tokenizer of transformers itself (without this field tokenizer.json is read alone)",
                      "one in code of the checkpoint's own, which is not run");
  }
  if (!hub.empty()) return built(hub, by_name);
  if (hints.model_type == "encoder-decoder")
    fail<ConfigError>(hints.file + ", field model_type", "a model of one part", "'encoder-decoder'");
  if (config.child("tokenizer_class")) return plain(by_name);  // it is ""
  if (hints.model_type.empty()) {
    if (tokenizer_json.empty()) return {};
    return {tokenizer_class_named("TokenizersBackend"), "tokenizer.json alone", true};
  }
  return has_configuration ? built(registered, hints.file + ", field model_type")
                           : plain(hints.file + ", field model_type");
}

}  // namespace fedlora::detail
