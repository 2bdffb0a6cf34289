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
      .lm_head = "lm_head",
      .output_embeddings = "lm_head"};

  static ModelConfig read_config(const Json& json, std::string_view file) {
    ModelConfig config;
    config.vocab_size = detail::read_size_or(json, "vocab_size", file, 32000);
    config.hidden_size = detail::read_size_or(json, "hidden_size", file, 4096);
    config.layers = detail::read_size_or(json, "num_hidden_layers", file, 32, 1024);
    config.heads = detail::read_size_or(json, "num_attention_heads", file, 32);
    config.intermediate_size = detail::read_size_or(json, "intermediate_size", file, 11008);
    config.max_positions = detail::read_size_or(json, "max_position_embeddings", file, 2048);
    if (json.contains("num_key_value_heads") && !json["num_key_value_heads"].is_null())
      config.kv_heads = detail::read_size(json, "num_key_value_heads", file);
    if (json.contains("head_dim") && !json["head_dim"].is_null())
      config.head_dim = detail::read_size(json, "head_dim", file);
    config.norm_eps = detail::read_norm_eps(json, "rms_norm_eps", file, 1e-6);
    config.activation = detail::read_activation(json, "hidden_act", file, "silu");
    config.input_bias = config.output_bias = json_get_or<bool>(json, "attention_bias", file, false);
    config.mlp_bias = json_get_or<bool>(json, "mlp_bias", file, false);
    config.tied_embeddings = json_get_or<bool>(json, "tie_word_embeddings", file, false);
    config.attention_dropout = detail::read_probability(json, "attention_dropout", file, 0.0);
    if (json.contains("pad_token_id") && !json["pad_token_id"].is_null())
      config.pad_token = json_get<Index>(json, "pad_token_id", file);
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
  /// transformers 5 writes `rope_parameters`; before it there were `rope_scaling`, which transformers 5 prefers where
  /// both are, and `rope_theta`.
  static void read_rope(const Json& json, std::string_view file, ModelConfig& config) {
    const char* field = "rope_parameters";
    if (json.contains("rope_scaling") && !json["rope_scaling"].is_null() && !json["rope_scaling"].empty())
      field = "rope_scaling";
    const Json rope = json_get_or<Json>(json, field, file, Json::object());
    const std::string where = detail::json_where(file, field);
    config.rope_theta =
        json_get_or<double>(rope, "rope_theta", where, json_get_or<double>(json, "rope_theta", file, 10000.0));
    for (const auto& [object, place] : {std::pair<const Json&, std::string>{rope, where}, {json, std::string(file)}})
      if (const auto part = json_get_or<double>(object, "partial_rotary_factor", place, 1); part != 1)
        fail<ConfigError>(detail::json_where(place, "partial_rotary_factor"), "1 (all channels of a head turn)",
                          std::to_string(part));
    const auto type =
        json_get_or<std::string>(rope, "rope_type", where, json_get_or<std::string>(rope, "type", where, "default"));
    RopeScaling& scaling = config.rope_scaling;
    if (type == "linear" || type == "llama3" || type == "dynamic")
      scaling.factor = json_get<double>(rope, "factor", where);
    if (type == "linear") {
      scaling.kind = RopeScaling::Kind::linear;
    } else if (type == "llama3") {
      scaling.kind = RopeScaling::Kind::llama3;
      scaling.low_frequency_factor = json_get<double>(rope, "low_freq_factor", where);
      scaling.high_frequency_factor = json_get<double>(rope, "high_freq_factor", where);
      // Where it also stands outside, transformers takes that; where it stands nowhere, the model's own length.
      constexpr const char* original = "original_max_position_embeddings";
      scaling.original_max_positions = json_get_or<double>(
          json, original, file, json_get_or<double>(rope, original, where, static_cast<double>(config.max_positions)));
    } else if (type == "dynamic") {
      scaling.factor = 1;  // it stretches what is longer than max_position_embeddings, and no sequence is
    } else if (type != "default") {
      fail<ConfigError>(where + ".rope_type", "default, linear, llama3 or dynamic", detail::in_quotes(type));
    }
    if (!(scaling.low_frequency_factor > 0 && scaling.high_frequency_factor > scaling.low_frequency_factor &&
          scaling.original_max_positions > 0))
      fail<ConfigError>(std::string(file) + ", rotary positions",
                        "0 < low_freq_factor < high_freq_factor and a positive original_max_position_embeddings",
                        std::to_string(scaling.low_frequency_factor) + ", " +
                            std::to_string(scaling.high_frequency_factor) + " and " +
                            std::to_string(scaling.original_max_positions));
    if (!(config.rope_theta > 0) || !(scaling.factor > 0))
      fail<ConfigError>(std::string(file) + ", rotary positions", "a positive theta and factor",
                        std::to_string(config.rope_theta) + " and " + std::to_string(scaling.factor));
  }
};

}  // namespace fedlora
