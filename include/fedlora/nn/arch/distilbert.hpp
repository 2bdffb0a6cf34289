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
                                        .lm_head = "",
                                        .output_embeddings = "vocab_projector"};

  static ModelConfig read_config(const Json& json, std::string_view file) {
    ModelConfig config;
    // transformers takes BERT's names for these three too, and before the family's own.
    const auto size = [&](const char* name, const char* own, Index fallback, Index largest) {
      return detail::read_size_or(json, json.contains(name) ? name : own, file, fallback, largest);
    };
    constexpr Index largest = Index{1} << 24;
    config.vocab_size = detail::read_size_or(json, "vocab_size", file, 30522);
    config.hidden_size = size("hidden_size", "dim", 768, largest);
    config.layers = size("num_hidden_layers", "n_layers", 6, 1024);
    config.heads = size("num_attention_heads", "n_heads", 12, largest);
    config.intermediate_size = detail::read_size_or(json, "hidden_dim", file, 3072);
    config.max_positions = detail::read_size_or(json, "max_position_embeddings", file, 512);
    config.activation = detail::read_activation(json, "activation", file, "gelu");
    config.tied_embeddings = json_get_or<bool>(json, "tie_word_embeddings", file, true);
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
