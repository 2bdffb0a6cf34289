// SPDX-License-Identifier: Apache-2.0
// Random checkpoints of a few hundred numbers, in memory, for every family: small enough to differentiate numerically.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/pretrained.hpp"
#include "fedlora/nn/arch/bert.hpp"
#include "fedlora/nn/arch/distilbert.hpp"
#include "fedlora/nn/arch/llama.hpp"
#include "fedlora/nn/arch/roberta.hpp"

namespace fedlora::tests {

constexpr std::int32_t tiny_vocabulary = 11;

/// config.json of a tiny model: 2 layers, hidden 8, 2 heads, up to 12 tokens, every dropout 0.2.
template <class Arch>
Json tiny_config() {
  Json config = {{"model_type", std::string(Arch::model_type)},
                 {"vocab_size", tiny_vocabulary},
                 {"max_position_embeddings", 12},
                 {"id2label", {{"0", "a"}, {"1", "b"}, {"2", "c"}}},
                 {"attention_dropout", 0.2}};
  if constexpr (Arch::model_type == "distilbert") {
    config.update({{"dim", 8}, {"n_layers", 2}, {"n_heads", 2}, {"hidden_dim", 10}, {"activation", "gelu"}});
    config.update({{"dropout", 0.2}, {"seq_classif_dropout", 0.2}});
    return config;
  }
  config.update({{"hidden_size", 8}, {"num_hidden_layers", 2}, {"num_attention_heads", 2}, {"intermediate_size", 10}});
  if constexpr (Arch::model_type == "llama") {
    config.update({{"num_key_value_heads", 1}, {"hidden_act", "silu"}, {"rms_norm_eps", 0.01}, {"rope_theta", 20.0}});
  } else {
    config.update({{"type_vocab_size", 2}, {"hidden_act", "gelu"}, {"layer_norm_eps", 0.01}});
    config.update({{"hidden_dropout_prob", 0.2}, {"attention_probs_dropout_prob", 0.2}});
    if (Arch::model_type == "roberta") config.update({{"pad_token_id", 1}, {"max_position_embeddings", 14}});
  }
  return config;
}

/// Tensors by name: shape and values.
using TinyTensors = std::map<std::string, std::pair<std::vector<Index>, std::vector<double>>>;

/// The tensors of a tiny model; the head's own layers too, and an lm_head where there is one.
template <class Arch>
TinyTensors tiny_tensors(const ModelConfig& config, std::uint64_t seed) {
  const FamilyNames& names = Arch::names;
  TinyTensors tensors;
  RandomSequence draws(derive_key(seed, Purpose::user));
  const auto add = [&](const std::string& name, std::vector<Index> shape, double centre, double scale) {
    std::vector<double> values(static_cast<std::size_t>(shape.size() == 2 ? shape[0] * shape[1] : shape[0]));
    for (double& value : values) value = centre + scale * draws.normal();
    tensors[name] = {std::move(shape), std::move(values)};
  };
  const std::string prefix(names.prefix);
  const Index hidden = config.hidden_size;
  const auto linear = [&](const std::string& name, Index out, Index in, bool bias) {
    add(name + ".weight", {out, in}, 0, 1 / std::sqrt(static_cast<double>(in)));
    if (bias) add(name + ".bias", {out}, 0, 0.3);
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {hidden}, 1, 0.3);
    if (Arch::norm == NormKind::layer_norm) add(name + ".bias", {hidden}, 0, 0.3);
  };
  add(prefix + std::string(names.word_embeddings) + ".weight", {config.vocab_size, hidden}, 0, 1);
  if (!names.position_embeddings.empty())
    add(prefix + std::string(names.position_embeddings) + ".weight",
        {config.max_positions + config.position_offset, hidden}, 0, 1);
  if (!names.token_type_embeddings.empty())
    add(prefix + std::string(names.token_type_embeddings) + ".weight", {config.token_types, hidden}, 0, 1);
  if (!names.embedding_norm.empty()) norm(prefix + std::string(names.embedding_norm));
  const Index q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  const Index inner = config.intermediate_size;
  const std::pair<Index, Index> shapes[] = {{q, hidden},     {kv, hidden},    {kv, hidden},   {hidden, q},
                                            {inner, hidden}, {inner, hidden}, {hidden, inner}};
  for (Index layer = 0; layer < config.layers; ++layer) {
    for (std::size_t i = 0; i < layer_linears; ++i)
      if (!names.linears[i].empty())
        linear(names.linear(layer, static_cast<LayerLinear>(i)), shapes[i].first, shapes[i].second,
               i < 3   ? config.input_bias
               : i < 4 ? config.output_bias
                       : config.mlp_bias);
    for (const auto& name : names.norms)
      norm(prefix + std::string(names.layers) + std::to_string(layer) + "." + std::string(name));
  }
  if (!names.final_norm.empty()) norm(prefix + std::string(names.final_norm));
  for (const HeadLayer& layer : Arch::head(config))
    linear(layer.name, layer.out > 0 ? layer.out : 3, layer.in, layer.bias);
  if (!names.lm_head.empty()) linear(std::string(names.lm_head), config.vocab_size, hidden, false);
  return tensors;
}

/// A tiny base of family Arch, with its head. `patch` changes config.json, `edit` the tensors.
template <class Arch, class B = CpuBackend<double>>
Pretrained<Arch, B> tiny_base(std::uint64_t seed = 1, const Json& patch = Json::object(),
                              const std::function<void(TinyTensors&)>& edit = {}, const B& backend = {}) {
  Json json = tiny_config<Arch>();
  json.update(patch);
  const ModelConfig config = Arch::read_config(json, "tiny/config.json");
  const auto tensors = std::make_shared<TinyTensors>(tiny_tensors<Arch>(config, seed));
  if (edit) edit(*tensors);
  std::map<std::string, TensorView> views;
  for (const auto& [name, value] : *tensors) {
    TensorView& view = views[name];
    view.name = name;
    view.dtype = Dtype::f64;
    view.shape = value.first;
    view.bytes = std::as_bytes(std::span<const double>(value.second));
    view.owner = tensors;
    view.file = "tiny";
  }
  WeightLoader<B> load(
      backend,
      [&](const std::string& name) {
        const auto found = views.find(name);
        return found == views.end() ? nullptr : &found->second;
      },
      "tiny", Arch::names.prefix);
  Pretrained<Arch, B> base;
  base.backend = backend;
  base.name = "tiny";
  base.transformer = std::make_shared<const Transformer<Arch, B>>(config, load);
  for (const HeadLayer& layer : Arch::head(config))
    for (const std::string& name : {layer.name + ".weight", layer.name + ".bias"})
      if (views.contains(name)) base.head.emplace(name, load.optional(name, views[name].shape));
  if (!Arch::names.lm_head.empty())
    base.lm_head = load.optional(std::string(Arch::names.lm_head) + ".weight", {config.vocab_size, config.hidden_size});
  return base;
}

/// Examples of these lengths, with three labels.
inline Dataset tiny_data(const std::vector<Index>& lengths, std::uint64_t seed = 3) {
  Dataset data;
  RandomSequence draws(derive_key(seed, Purpose::user));
  for (const Index length : lengths) {
    std::vector<std::int32_t> tokens, types;
    for (Index i = 0; i < length; ++i) {
      tokens.push_back(static_cast<std::int32_t>(draws.below(tiny_vocabulary)));
      types.push_back(2 * i < length ? 0 : 1);
    }
    data.append(tokens, types);
    data.labels.push_back(static_cast<std::int32_t>(draws.below(3)));
  }
  return data;
}

inline std::vector<Index> all_of(const Dataset& data) {
  std::vector<Index> examples(static_cast<std::size_t>(data.size()));
  std::iota(examples.begin(), examples.end(), 0);
  return examples;
}

/// An adapter with nothing left at zero.
template <class T>
Adapter<T> random_adapter(const std::shared_ptr<const AdapterLayout>& layout, std::uint64_t seed = 7,
                          double scale = 0.4) {
  Adapter<T> adapter(layout);
  RandomSequence draws(derive_key(seed, Purpose::user));
  for (T& value : adapter.values()) value = static_cast<T>(scale * draws.normal());
  return adapter;
}

/// Largest |a - b| over the largest |b|.
template <class A, class E>
double difference(const A& a, const E& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double worst = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double here = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(here <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, here);
    size = std::max(size, std::abs(static_cast<double>(b[i])));
  }
  return size > 0 ? worst / size : worst;
}

}  // namespace fedlora::tests
