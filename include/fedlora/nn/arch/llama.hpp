// SPDX-License-Identifier: Apache-2.0
// Llama (Touvron et al. 2023, arXiv 2302.13971; grouped queries: 2307.09288): pre-norm RMSNorm, rotary positions,
// SwiGLU, causal.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fedlora/nn/concepts.hpp"

namespace fedlora {

struct Llama {
  static constexpr std::string_view model_type = "llama";
  static constexpr std::string_view class_stem = "Llama";
  static constexpr NormKind norm = NormKind::rms_norm;
  static constexpr NormPlace norm_place = NormPlace::pre;
  static constexpr Positions positions = Positions::rotary;
  static constexpr bool gated_mlp = true;
  static constexpr bool causal = true;
  static constexpr Pooling pooling = Pooling::last_token;
  static constexpr bool attention_output_dropout = false;

  static constexpr FamilyNames names = {
      .prefix = "model.",
      .word_embeddings = "embed_tokens",
      .position_embeddings = "",
      .token_type_embeddings = "",
      .embedding_norm = "",
      .layers = "layers.",
      .linears = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                  "mlp.up_proj", "mlp.down_proj"},
      .norms = {"input_layernorm", "post_attention_layernorm"},
      .final_norm = "norm",
      .lm_head = "lm_head"};

  static ModelConfig read_config(const Json& json, std::string_view file) {
    ModelConfig config;
    config.vocab_size = detail::read_size(json, "vocab_size", file);
    config.hidden_size = detail::read_size(json, "hidden_size", file);
    config.layers = detail::read_size(json, "num_hidden_layers", file, 1024);
    config.heads = detail::read_size(json, "num_attention_heads", file);
    config.intermediate_size = detail::read_size(json, "intermediate_size", file);
    config.max_positions = detail::read_size(json, "max_position_embeddings", file);
    if (json.contains("num_key_value_heads") && !json["num_key_value_heads"].is_null())
      config.kv_heads = detail::read_size(json, "num_key_value_heads", file);
    if (json.contains("head_dim") && !json["head_dim"].is_null())
      config.head_dim = detail::read_size(json, "head_dim", file);
    config.norm_eps = detail::read_norm_eps(json, "rms_norm_eps", file, 1e-6);
    config.activation = detail::read_activation(json, "hidden_act", file);
    config.input_bias = config.output_bias = json_get_or<bool>(json, "attention_bias", file, false);
    config.mlp_bias = json_get_or<bool>(json, "mlp_bias", file, false);
    config.tied_embeddings = json_get_or<bool>(json, "tie_word_embeddings", file, false);
    config.attention_dropout = detail::read_probability(json, "attention_dropout", file, 0.0);
    read_rope(json, file, config);
    detail::read_common(json, file, config);
    if (config.head_dim % 2 != 0)
      fail<ConfigError>(std::string(file) + ", field head_dim", "an even size", std::to_string(config.head_dim));
    return config;
  }

  /// score, without a bias, on the last token.
  static std::vector<HeadLayer> head(const ModelConfig& config) {
    return {{.name = "score", .in = config.hidden_size, .bias = false}};
  }

  static std::vector<std::string> default_targets() { return {"q_proj", "v_proj"}; }

 private:
  /// transformers 5 writes `rope_parameters`; before it there were `rope_theta` and `rope_scaling`.
  static void read_rope(const Json& json, std::string_view file, ModelConfig& config) {
    config.rope_theta = json_get_or<double>(json, "rope_theta", file, 10000.0);
    const char* field = json.contains("rope_parameters") ? "rope_parameters" : "rope_scaling";
    if (json.contains(field) && !json[field].is_null()) {
      const Json rope = json_get<Json>(json, field, file);
      const std::string where = std::string(file) + ", field " + field;
      config.rope_theta = json_get_or<double>(rope, "rope_theta", where, config.rope_theta);
      const auto type =
          json_get_or<std::string>(rope, "rope_type", where, json_get_or<std::string>(rope, "type", where, "default"));
      if (type == "linear" || type == "llama3") {
        config.rope_scaling.kind = type == "linear" ? RopeScaling::Kind::linear : RopeScaling::Kind::llama3;
        config.rope_scaling.factor = json_get<double>(rope, "factor", where);
        if (type == "llama3") {
          config.rope_scaling.low_frequency_factor = json_get<double>(rope, "low_freq_factor", where);
          config.rope_scaling.high_frequency_factor = json_get<double>(rope, "high_freq_factor", where);
          config.rope_scaling.original_max_positions =
              json_get<double>(rope, "original_max_position_embeddings", where);
        }
      } else if (type != "default") {
        fail<ConfigError>(where + ".rope_type", "default, linear or llama3", detail::in_quotes(type));
      }
    }
    const RopeScaling& scaling = config.rope_scaling;
    if (!(scaling.low_frequency_factor > 0 && scaling.high_frequency_factor > scaling.low_frequency_factor &&
          scaling.original_max_positions > 0))
      fail<ConfigError>(std::string(file) + ", rotary positions",
                        "0 < low_freq_factor < high_freq_factor and a positive original_max_position_embeddings",
                        std::to_string(scaling.low_frequency_factor) + ", " +
                            std::to_string(scaling.high_frequency_factor) + " and " +
                            std::to_string(scaling.original_max_positions));
    if (!(config.rope_theta > 0) || !(config.rope_scaling.factor > 0))
      fail<ConfigError>(std::string(file) + ", rotary positions", "a positive theta and factor",
                        std::to_string(config.rope_theta) + " and " + std::to_string(config.rope_scaling.factor));
  }
};

}  // namespace fedlora
