// SPDX-License-Identifier: Apache-2.0
// BERT (Devlin et al. 2018, arXiv 1810.04805): post-norm, bidirectional, learned positions, pooler.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fedlora/nn/concepts.hpp"

namespace fedlora {

struct Bert {
  static constexpr std::string_view model_type = "bert";
  static constexpr std::string_view class_stem = "Bert";
  static constexpr NormKind norm = NormKind::layer_norm;
  static constexpr NormPlace norm_place = NormPlace::post;
  static constexpr Positions positions = Positions::learned;
  static constexpr bool gated_mlp = false;
  static constexpr bool causal = false;
  static constexpr Pooling pooling = Pooling::first_token;
  static constexpr bool attention_output_dropout = true;

  static constexpr FamilyNames names = {
      .prefix = "bert.",
      .word_embeddings = "embeddings.word_embeddings",
      .position_embeddings = "embeddings.position_embeddings",
      .token_type_embeddings = "embeddings.token_type_embeddings",
      .embedding_norm = "embeddings.LayerNorm",
      .layers = "encoder.layer.",
      .linears = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "",
                  "intermediate.dense", "output.dense"},
      .norms = {"attention.output.LayerNorm", "output.LayerNorm"},
      .final_norm = "",
      .lm_head = "",
      .output_embeddings = "cls.predictions.decoder"};

  static ModelConfig read_config(const Json& json, std::string_view file) {
    ModelConfig config;
    config.vocab_size = detail::read_size_or(json, "vocab_size", file, 30522);
    config.hidden_size = detail::read_size_or(json, "hidden_size", file, 768);
    config.layers = detail::read_size_or(json, "num_hidden_layers", file, 12, 1024);
    config.heads = detail::read_size_or(json, "num_attention_heads", file, 12);
    config.intermediate_size = detail::read_size_or(json, "intermediate_size", file, 3072);
    config.max_positions = detail::read_size_or(json, "max_position_embeddings", file, 512);
    config.token_types = detail::read_size_or(json, "type_vocab_size", file, 2);
    config.norm_eps = detail::read_norm_eps(json, "layer_norm_eps", file, 1e-12);
    config.activation = detail::read_activation(json, "hidden_act", file, "gelu");
    config.tied_embeddings = json_get_or<bool>(json, "tie_word_embeddings", file, true);
    config.hidden_dropout = detail::read_probability(json, "hidden_dropout_prob", file, 0.1);
    config.attention_dropout = detail::read_probability(json, "attention_probs_dropout_prob", file, 0.1);
    config.classifier_dropout = detail::read_probability(json, "classifier_dropout", file, config.hidden_dropout);
    if (const auto kind = json_get_or<std::string>(json, "position_embedding_type", file, "absolute");
        kind != "absolute")
      fail<ConfigError>(std::string(file) + ", field position_embedding_type", "\"absolute\"", detail::in_quotes(kind));
    detail::refuse_unless_off(json, "is_decoder", file, "attention here goes both ways");
    detail::refuse_unless_off(json, "add_cross_attention", file, "there is no encoder to attend to");
    detail::read_common(json, file, config);
    return config;
  }

  /// pooler (dense, tanh), dropout, classifier. A family of other names hands its own on.
  static std::vector<HeadLayer> head(const ModelConfig& config, const FamilyNames& family = names) {
    return {{.name = std::string(family.prefix) + "pooler.dense", .in = config.hidden_size, .out = config.hidden_size, .activated = true},
            {.name = "classifier", .in = config.hidden_size, .dropout_before = true}};
  }

  static std::vector<std::string> default_targets() { return {"query", "value"}; }
};

}  // namespace fedlora
