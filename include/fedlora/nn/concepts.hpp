// SPDX-License-Identifier: Apache-2.0
// What makes a model family. A new one is a single file that satisfies this.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/nn/config.hpp"

namespace fedlora {

/// Where a block normalises: after each residual sum (BERT), or before each sub-layer (Llama).
enum class NormPlace { post, pre };

/// How a family tells positions apart.
enum class Positions { learned, rotary };

/// An architecture policy. The constants choose code at compile time; `names` and `head` are its map to Hugging Face.
template <class A>
concept Architecture = requires(const Json& json, std::string_view file, const ModelConfig& config) {
  { A::model_type } -> std::convertible_to<std::string_view>;
  { A::class_stem } -> std::convertible_to<std::string_view>;  // of transformers' classes: "Bert"
  { A::norm } -> std::convertible_to<NormKind>;
  { A::norm_place } -> std::convertible_to<NormPlace>;
  { A::positions } -> std::convertible_to<Positions>;
  { A::gated_mlp } -> std::convertible_to<bool>;
  { A::causal } -> std::convertible_to<bool>;
  { A::pooling } -> std::convertible_to<Pooling>;
  { A::attention_output_dropout } -> std::convertible_to<bool>;
  { A::names } -> std::convertible_to<FamilyNames>;
  { A::read_config(json, file) } -> std::same_as<ModelConfig>;
  { A::head(config) } -> std::same_as<std::vector<HeadLayer>>;
  { A::default_targets() } -> std::same_as<std::vector<std::string>>;
};

}  // namespace fedlora
