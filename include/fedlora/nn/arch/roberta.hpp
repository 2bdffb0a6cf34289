// SPDX-License-Identifier: Apache-2.0
// RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT's block; positions start after the padding row; a two-layer head.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fedlora/nn/arch/bert.hpp"

namespace fedlora {

struct Roberta : Bert {
  static constexpr std::string_view model_type = "roberta";
  static constexpr std::string_view class_stem = "Roberta";

  static constexpr FamilyNames names = [] {
    FamilyNames names = Bert::names;
    names.prefix = "roberta.";
    names.output_embeddings = "lm_head.decoder";
    return names;
  }();

  static ModelConfig read_config(const Json& json, std::string_view file) {
    ModelConfig config = Bert::read_config(json, file);
    if (!json.contains("vocab_size")) config.vocab_size = 50265;
    const auto pad = json.contains("pad_token_id") ? json_get<Index>(json, "pad_token_id", file) : Index{1};
    if (pad < -1 || pad >= config.max_positions - 1)
      fail<ConfigError>(std::string(file) + ", field pad_token_id",
                        "an id from -1 to max_position_embeddings - 2 = " + std::to_string(config.max_positions - 2),
                        std::to_string(pad));
    config.position_offset = pad + 1;
    if (pad >= 0) config.unplaced_token = static_cast<std::int32_t>(pad);
    config.max_positions -= config.position_offset;
    return config;
  }

  /// dropout, dense, tanh, dropout, out_proj.
  static std::vector<HeadLayer> head(const ModelConfig& config) {
    return {{.name = "classifier.dense",
             .in = config.hidden_size,
             .out = config.hidden_size,
             .activated = true,
             .dropout_before = true},
            {.name = "classifier.out_proj", .in = config.hidden_size, .dropout_before = true}};
  }
};

}  // namespace fedlora
