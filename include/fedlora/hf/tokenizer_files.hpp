// SPDX-License-Identifier: Apache-2.0
// Tokenizers from the files of the Hugging Face ecosystem: tokenizer.json, else vocab.txt (BERT), else vocab.json and
// merges.txt (GPT-2, RoBERTa). The `padding` and `truncation` of tokenizer.json are passed over: the caller of encode()
// decides about length. What the files hold is read by the headers of hf/tokenizer/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/hf/tokenizer/json_node.hpp"
#include "fedlora/hf/tokenizer/settings.hpp"
#include "fedlora/hf/tokenizer/stages.hpp"
#include "fedlora/hf/tokenizer/vocabulary_files.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora {

namespace detail {

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
