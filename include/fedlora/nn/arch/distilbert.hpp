// SPDX-License-Identifier: Apache-2.0
// DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT's block under other names, no token types, no pooler.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fedlora/nn/concepts.hpp"

namespace fedlora {

struct DistilBert {
  static constexpr std::string_view model_type = "distilbert";
  static constexpr std::string_view class_stem = "DistilBert";
  static constexpr NormKind norm = NormKind::layer_norm;
  static constexpr NormPlace norm_place = NormPlace::post;
  static constexpr Positions positions = Positions::learned;
  static constexpr bool gated_mlp = false;
  static constexpr bool causal = false;
  static constexpr Pooling pooling = Pooling::first_token;
  static constexpr bool attention_output_dropout = false;  ///< transformers drops after the MLP alone

  static constexpr FamilyNames names = {.prefix = "distilbert.",
                                        .word_embeddings = "embeddings.word_embeddings",
                                        .position_embeddings = "embeddings.position_embeddings",
                                        .token_type_embeddings = "",
                                        .embedding_norm = "embeddings.LayerNorm",
                                        .layers = "transformer.layer.",
                                        .linears = {"attention.q_lin", "attention.k_lin", "attention.v_lin",
                                                    "attention.out_lin", "", "ffn.lin1", "ffn.lin2"},
                                        .norms = {"sa_layer_norm", "output_layer_norm"},
                                        .final_norm = "",
                                        .lm_head = ""};

  static ModelConfig read_config(const Json& json, std::string_view file) {
    ModelConfig config;
    config.vocab_size = detail::read_size(json, "vocab_size", file);
    config.hidden_size = detail::read_size(json, "dim", file);
    config.layers = detail::read_size(json, "n_layers", file, 1024);
    config.heads = detail::read_size(json, "n_heads", file);
    config.intermediate_size = detail::read_size(json, "hidden_dim", file);
    config.max_positions = detail::read_size(json, "max_position_embeddings", file);
    config.activation = detail::read_activation(json, "activation", file);
    config.hidden_dropout = detail::read_probability(json, "dropout", file, 0.1);
    config.attention_dropout = detail::read_probability(json, "attention_dropout", file, 0.1);
    config.classifier_dropout = detail::read_probability(json, "seq_classif_dropout", file, 0.2);
    detail::read_common(json, file, config);
    return config;
  }

  /// pre_classifier (dense, ReLU), dropout, classifier. No checkpoint of the base has either.
  static std::vector<HeadLayer> head(const ModelConfig& config) {
    return {{.name = "pre_classifier",
             .in = config.hidden_size,
             .out = config.hidden_size,
             .activated = true,
             .activation = Activation::relu},
            {.name = "classifier", .in = config.hidden_size, .dropout_before = true}};
  }

  /// PEFT has no default for this family; these are the layers its users name.
  static std::vector<std::string> default_targets() { return {"q_lin", "v_lin"}; }
};

}  // namespace fedlora
