// SPDX-License-Identifier: Apache-2.0
// Loads a Hugging Face checkpoint: config.json, safetensors, tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/hf/adapter_metadata.hpp"
#include "fedlora/hf/base_digest.hpp"
#include "fedlora/hf/cache.hpp"
#include "fedlora/hf/checkpoint.hpp"
#include "fedlora/hf/model_config.hpp"
#include "fedlora/hf/tokenizer_files.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/lora/pretrained.hpp"
#include "fedlora/nn/arch/bert.hpp"
#include "fedlora/nn/arch/distilbert.hpp"
#include "fedlora/nn/arch/llama.hpp"
#include "fedlora/nn/arch/roberta.hpp"
#include "fedlora/nn/weights.hpp"

namespace fedlora {

namespace detail {

/// Buffers that old checkpoints carry and nobody needs.
inline bool is_known_buffer(std::string_view name) {
  return name.ends_with("position_ids") || name.ends_with("token_type_ids") || name.ends_with("inv_freq") ||
         name.ends_with(".masked_bias");
}

/// With what the tokenizer's files warn of, and the tokens that the embedding has no row for.
template <class Result>
void take_tokenizer(Tokenizer tokenizer, const ModelConfig& config, Result& result) {
  result.warnings.insert(result.warnings.end(), tokenizer.warnings().begin(), tokenizer.warnings().end());
  const std::int32_t largest = tokenizer.largest_id();
  if (largest >= config.vocab_size) {
    const std::string source = tokenizer.source_of(largest);
    result.warnings.push_back(result.name + ": the tokenizer's ids go up to " + std::to_string(largest) + ", " +
                              in_quotes(tokenizer.id_to_token(largest).value_or("")) +
                              (source.empty() ? "" : " by " + source) + "; the embedding has " +
                              std::to_string(config.vocab_size) + " rows: texts with tokens beyond them are refused");
  }
  result.tokenizer = std::make_shared<const Tokenizer>(std::move(tokenizer));
}

/// The first dozen tensors that nothing used, for a warning; empty when all were.
inline std::string unused_names(const Checkpoint& checkpoint, const std::set<std::string>& used) {
  std::string text;
  std::size_t count = 0;
  for (const std::string& name : checkpoint.names())
    if (!used.contains(name) && !is_known_buffer(name) && ++count <= 12) text += (text.empty() ? "" : ", ") + name;
  return count > 12 ? text + " and " + std::to_string(count - 12) + " more" : text;
}

}  // namespace detail

/// Loads the checkpoint in `files` as a base of family Arch. Weights stay mapped where they can. Missing tensors of the
/// base are errors; tensors that nothing uses are named in one warning of the result.
template <Architecture Arch, Backend B>
Pretrained<Arch, B> load_pretrained(const B& backend, const FileSet& files) {
  const Json json = detail::read_model_config(files);
  const std::string config_file = files.path_of("config.json");
  if (const std::string type = detail::model_type_of(files, json); type != Arch::model_type)
    fail<ConfigError>(config_file + ", field model_type", "\"" + std::string(Arch::model_type) + "\"",
                      "\"" + type + "\"");
  const ModelConfig config = Arch::read_config(json, config_file);

  const auto checkpoint = std::make_shared<const Checkpoint>(files);
  detail::refuse_quantised(*checkpoint);
  const FamilyNames& names = Arch::names;
  detail::require_names(*checkpoint, names, Arch::model_type, checkpoint->where(""));
  WeightLoader<B> load(
      backend, [&](const std::string& name) { return checkpoint->find(name); }, files.name(), names.prefix);
  Pretrained<Arch, B> result;
  result.backend = backend;
  result.name = files.name();
  result.transformer = std::make_shared<const Transformer<Arch, B>>(config, load);
  result.digest = base_digest(*checkpoint, load.used(), names);
  result.context = adapter_context_of(checkpoint->metadata(), files.name());

  for (const HeadLayer& layer : Arch::head(config)) {
    for (const char* part : {".weight", ".bias"}) {
      const std::string name = layer.name + part;
      const TensorView* const tensor = load.find_head(name);
      if (tensor == nullptr || tensor->shape.empty() || tensor->shape.size() > 2) continue;
      result.head.emplace(name, load.optional(tensor->name, tensor->shape));
    }
  }
  if (!names.lm_head.empty()) {
    // Where both are there and differ, neither stands for the other, whatever the configuration says (as in
    // transformers).
    const std::string name = std::string(names.lm_head) + ".weight";
    const TensorView* const own = load.find_head(name);
    if (own == nullptr ? config.tied_embeddings : load.used().contains(own->name))
      result.lm_head = result.transformer->word_embeddings();
    else if (own != nullptr)
      result.lm_head = load.optional(own->name, {config.vocab_size, config.hidden_size});
    if (own != nullptr && result.lm_head.empty())
      result.warnings.push_back(own->file + ": " + own->name + " has shape " + shape_text(own->shape) + ", not " +
                                shape_text(config.vocab_size, config.hidden_size) + ", and is not used");
  }
  if (json.contains("auto_map") && !json["auto_map"].empty())
    result.warnings.push_back(config_file +
                              ": auto_map names code of the model's own, which is not run; it is read as " +
                              std::string(Arch::model_type) + ", as transformers does without trust_remote_code");

  if (files.contains("adapter_config.json"))
    result.warnings.push_back(files.path_of("adapter_config.json") +
                              ": an adapter lies beside the base; it is not applied unless it is given as the "
                              "adapter (transformers would apply it)");
  if (const std::string unused = detail::unused_names(*checkpoint, load.used()); !unused.empty())
    result.warnings.push_back(files.name() + ": tensors that " + std::string(Arch::model_type) +
                              " does not use: " + unused);

  if (files.contains("tokenizer.json") || files.contains("vocab.txt") || files.contains("vocab.json"))
    detail::take_tokenizer(load_tokenizer(files), config, result);
  return result;
}

/// The same from a directory, or from the Hugging Face cache by "org/name" and revision.
template <Architecture Arch, Backend B>
Pretrained<Arch, B> load_pretrained(const B& backend, std::string_view dir_or_repo,
                                    std::string_view revision = "main") {
  return load_pretrained<Arch>(backend, FileSet::directory(resolve_model(dir_or_repo, revision)));
}

/// A list of families for `with_pretrained`. A family of your own joins as Families<Bert, Llama, Mine>.
template <Architecture... Archs>
struct Families {};

/// The families of nn/arch/.
using KnownFamilies = Families<Bert, DistilBert, Roberta, Llama>;

namespace detail {

template <Backend B, class F, Architecture First, Architecture... Rest>
auto with_family(const B& backend, const FileSet& files, const std::string& type, const std::string& names, F&& f,
                 Families<First, Rest...>) {
  if (type == First::model_type) return f(load_pretrained<First>(backend, files));
  const std::string known = names + (names.empty() ? "" : ", ") + std::string(First::model_type);
  if constexpr (sizeof...(Rest) > 0)
    return with_family(backend, files, type, known, std::forward<F>(f), Families<Rest...>{});
  else
    fail<ConfigError>(files.path_of("config.json") + ", field model_type", "one of " + known, "\"" + type + "\"");
}

}  // namespace detail

/// Loads the checkpoint as whichever family of `List` its config.json names, and calls `f` with it. `f` must return the
/// same type for every family. \throws ConfigError for a model type that none of them has.
template <class List = KnownFamilies, Backend B, class F>
auto with_pretrained(const B& backend, const FileSet& files, F&& f) {
  const std::string type = detail::model_type_of(files, detail::read_model_config(files));
  return detail::with_family(backend, files, type, "", std::forward<F>(f), List{});
}

/// The same from a directory, or from the Hugging Face cache by "org/name" and revision.
template <class List = KnownFamilies, Backend B, class F>
auto with_pretrained(const B& backend, std::string_view dir_or_repo, F&& f, std::string_view revision = "main") {
  return with_pretrained<List>(backend, FileSet::directory(resolve_model(dir_or_repo, revision)), std::forward<F>(f));
}

}  // namespace fedlora
