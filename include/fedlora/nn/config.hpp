// SPDX-License-Identifier: Apache-2.0
// The numbers of a Transformer, as config.json states them, and the names that a family gives its parts.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/backend/operations.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora {

/// How rotary frequencies are stretched for contexts longer than those of pre-training.
struct RopeScaling {
  enum class Kind { none, linear, llama3 } kind = Kind::none;
  double factor = 1;
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  double original_max_positions = 8192;
};

/// What a classification head is trained for, and with which loss; transformers' `problem_type`.
enum class ProblemType {
  single_label,  ///< one of several labels: softmax cross-entropy
  regression,    ///< one number or several: mean squared error
  multi_label,   ///< any set of the labels: binary cross-entropy of every label
};

/// As config.json spells them, by number.
inline constexpr std::array<std::string_view, 3> problem_type_names = {"single_label_classification", "regression",
                                                                       "multi_label_classification"};

constexpr std::string_view problem_type_name(ProblemType type) {
  return problem_type_names[static_cast<std::size_t>(type)];
}

/// The type that a name in config.json spells, or none.
constexpr std::optional<ProblemType> problem_type_of(std::string_view name) {
  for (std::size_t i = 0; i < problem_type_names.size(); ++i)
    if (name == problem_type_names[i]) return static_cast<ProblemType>(i);
  return std::nullopt;
}

/// A Transformer's sizes and constants, whatever its family.
struct ModelConfig {
  Index vocab_size = 0;
  Index hidden_size = 0;
  Index layers = 0;
  Index heads = 0;
  Index kv_heads = 0;
  Index head_dim = 0;
  Index intermediate_size = 0;
  Index max_positions = 0;    ///< longest sequence in tokens
  Index position_offset = 0;  ///< row of the position table that position 0 takes (RoBERTa: pad_token_id + 1)
  std::optional<std::int32_t> unplaced_token;  ///< has the row before that one and is not counted (RoBERTa's padding)
  Index token_types = 0;                       ///< 0: the family has none
  std::optional<Index> pad_token;  ///< where the last token stands for a text: passed over at its end
  double norm_eps = 1e-12;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  Activation activation = Activation::gelu;
  bool input_bias = true;   ///< query, key and value have biases
  bool output_bias = true;  ///< attention's output has one
  bool mlp_bias = true;
  bool tied_embeddings = false;  ///< the layer over the vocabulary has the word embeddings for weights
  double hidden_dropout = 0;
  double attention_dropout = 0;
  double classifier_dropout = 0;
  double initializer_range = 0.02;
  std::vector<std::string> architectures;
  std::vector<std::string> id2label;        ///< of the checkpoint's own head; empty when it names none
  std::optional<ProblemType> problem_type;  ///< of the checkpoint's own head; absent when it names none
};

/// The linear layers of a block, in the order transformers holds them.
enum class LayerLinear { query, key, value, output, gate, up, down };
inline constexpr std::size_t layer_linears = 7;

/// What a family calls its parts. Linear layers that it lacks are empty.
struct FamilyNames {
  std::string_view prefix;  ///< of the base inside a task model: "bert."
  std::string_view word_embeddings;
  std::string_view position_embeddings;
  std::string_view token_type_embeddings;
  std::string_view embedding_norm;
  std::string_view layers;  ///< "encoder.layer."
  std::array<std::string_view, layer_linears> linears;
  std::array<std::string_view, 2> norms;  ///< in the order they are applied within a block
  std::string_view final_norm;
  std::string_view lm_head;
  std::string_view
      output_embeddings;  ///< the layer over the vocabulary that may share the word embeddings, by its whole name

  /// The name of a tensor of the base without the prefix ("encoder.layer.0.output.dense.weight"), whether a checkpoint
  /// has it with the prefix, without, or twice; empty for a tensor that is none of the base's.
  std::string_view within_base(std::string_view stored) const {
    for (int level = 0; level < 3; ++level) {
      for (const std::string_view part : {word_embeddings, layers, final_norm}) {
        const std::string_view module = part.substr(0, part.find('.'));
        if (!module.empty() && stored.starts_with(module) && stored.substr(module.size()).starts_with('.'))
          return stored;
      }
      if (prefix.empty() || !stored.starts_with(prefix)) break;
      stored.remove_prefix(prefix.size());
    }
    return {};
  }

  /// The whole name of a linear layer: "bert.encoder.layer.0.attention.self.query".
  std::string linear(Index layer, LayerLinear which) const {
    return std::string(prefix) + std::string(layers) + std::to_string(layer) + "." +
           std::string(linears[static_cast<std::size_t>(which)]);
  }
};

/// One linear layer of a classification head.
struct HeadLayer {
  std::string name;  ///< whole name: "bert.pooler.dense", "classifier"
  Index in = 0;
  Index out = 0;  ///< 0: the number of labels
  bool bias = true;
  bool activated = false;  ///< followed by `activation`
  Activation activation = Activation::tanh;
  bool dropout_before = false;
};

/// Which row stands for a sequence.
enum class Pooling { first_token, last_token, mean };

/// As options and files spell them, by number.
inline constexpr std::array<std::string_view, 3> pooling_names = {"cls", "last", "mean"};

constexpr std::string_view pooling_name(Pooling pooling) { return pooling_names[static_cast<std::size_t>(pooling)]; }

/// The pooling of that name, or none.
constexpr std::optional<Pooling> pooling_named(std::string_view name) {
  for (std::size_t i = 0; i < pooling_names.size(); ++i)
    if (name == pooling_names[i]) return static_cast<Pooling>(i);
  return std::nullopt;
}

namespace detail {

/// The names of transformers' ACT2FN, but for those with trained parameters. "gelu_fast" rounds √(2/π) to ten digits.
inline constexpr std::pair<std::string_view, Activation> activation_names[] = {
    {"gelu", Activation::gelu},
    {"gelu_python", Activation::gelu},
    {"gelu_new", Activation::gelu_tanh},
    {"gelu_fast", Activation::gelu_tanh},
    {"gelu_accurate", Activation::gelu_tanh},
    {"gelu_pytorch_tanh", Activation::gelu_tanh},
    {"gelu_python_tanh", Activation::gelu_tanh},
    {"gelu_10", Activation::gelu_10},
    {"quick_gelu", Activation::quick_gelu},
    {"relu", Activation::relu},
    {"relu2", Activation::relu2},
    {"relu6", Activation::relu6},
    {"leaky_relu", Activation::leaky_relu},
    {"silu", Activation::silu},
    {"swish", Activation::silu},
    {"hardswish", Activation::hard_swish},
    {"mish", Activation::mish},
    {"tanh", Activation::tanh},
    {"sigmoid", Activation::sigmoid},
    {"laplace", Activation::laplace},
    {"sqrtsoftplus", Activation::sqrt_softplus},
    {"linear", Activation::linear}};

inline Activation read_activation(const Json& json, std::string_view field, std::string_view file,
                                  std::string_view fallback) {
  const auto name = json.contains(field) ? json_get<std::string>(json, field, file) : std::string(fallback);
  std::string known;
  for (const auto& [spelled, activation] : activation_names) {
    if (name == spelled) return activation;
    known.append(known.empty() ? "" : ", ").append(spelled);
  }
  const bool trained = name == "prelu" || name == "xielu";
  fail<ConfigError>(json_where(file, field), "one of " + known,
                    in_quotes(name) + (trained ? ", which has trained parameters of its own" : ""));
}

/// Refuses a field that changes what transformers computes, unless it is absent, null, false, 0 or empty.
inline void refuse_unless_off(const Json& json, std::string_view field, std::string_view file,
                              std::string_view reason) {
  const Json* const value = json_find(json, field, file);
  const bool off = value == nullptr || value->is_null() || *value == false || *value == 0 ||
                   (value->is_structured() && value->empty());
  if (!off) fail<ConfigError>(json_where(file, field), "nothing or false (" + std::string(reason) + ")", shown(*value));
}

inline double read_probability(const Json& json, std::string_view field, std::string_view file, double fallback) {
  const auto value = json_get_or<double>(json, field, file, fallback);
  if (!(value >= 0 && value < 1))
    fail<ConfigError>(std::string(file) + ", field " + std::string(field), "a probability in [0, 1)",
                      std::to_string(value));
  return value;
}

/// What is added to a variance before its root.
inline double read_norm_eps(const Json& json, std::string_view field, std::string_view file, double fallback) {
  const auto value = json_get_or<double>(json, field, file, fallback);
  if (!(value > 0 && value <= 1))
    fail<ConfigError>(std::string(file) + ", field " + std::string(field), "a number above 0, at most 1",
                      std::to_string(value));
  return value;
}

inline Index read_size(const Json& json, std::string_view field, std::string_view file,
                       Index largest = Index{1} << 24) {
  const auto value = json_get<Index>(json, field, file);
  if (value < 1 || value > largest)
    fail<ConfigError>(json_where(file, field), "a size from 1 to " + std::to_string(largest), std::to_string(value));
  return value;
}

/// The same, or what transformers takes where the field is absent (null is no size, there and here).
inline Index read_size_or(const Json& json, std::string_view field, std::string_view file, Index fallback,
                          Index largest = Index{1} << 24) {
  return json.contains(field) ? read_size(json, field, file, largest) : fallback;
}

/// Label names by number: id2label's, unless num_labels asks for another number of them, which transformers then names
/// itself. Empty when neither is there.
inline std::vector<std::string> read_id2label(const Json& json, std::string_view file) {
  const Json* const labels = json_find(json, "id2label", file);
  const std::string where = json_where(file, "id2label");
  std::vector<std::string> names;
  if (labels != nullptr && !labels->is_null()) {
    if (!labels->is_object()) fail<FormatError>(where, "an object", shown(*labels));
    names.resize(labels->size());
    for (const auto& [key, label] : labels->items()) {
      std::size_t id = names.size();
      if (!key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos)
        id = static_cast<std::size_t>(std::stol(key));
      if (id >= names.size() || std::to_string(id) != key)
        fail<ConfigError>(where, "the keys \"0\" to \"" + std::to_string(names.size() - 1) + "\"", in_quotes(key));
      names[id] = label.is_number_integer() ? label.dump() : json_convert<std::string>(label, where + "." + key);
    }
  }
  if (const Json* const number = json_find(json, "num_labels", file);
      number != nullptr && !number->is_null() && *number != 0) {
    const auto count = static_cast<std::size_t>(read_size(json, "num_labels", file, Index{1} << 20));
    if (count != names.size()) {
      names.clear();
      for (std::size_t id = 0; id < count; ++id) names.push_back("LABEL_" + std::to_string(id));
    }
  }
  return names;
}

/// Fields that all families write alike, and the checks that hold for all.
inline void read_common(const Json& json, std::string_view file, ModelConfig& config) {
  refuse_unless_off(json, "per_layer_config", file, "layers of one model that differ are not supported");
  config.initializer_range = json_get_or<double>(json, "initializer_range", file, 0.02);
  if (!(config.initializer_range >= 0 && config.initializer_range <= 100))
    fail<ConfigError>(std::string(file) + ", field initializer_range", "a deviation from 0 to 100",
                      std::to_string(config.initializer_range));
  config.architectures = json_get_or<std::vector<std::string>>(json, "architectures", file, {});
  config.id2label = read_id2label(json, file);
  if (const auto name = json_get_or<std::string>(json, "problem_type", file, ""); !name.empty()) {
    config.problem_type = problem_type_of(name);
    const std::string field = std::string(file) + ", field problem_type";
    if (!config.problem_type)
      fail<ConfigError>(field, "regression, single_label_classification, multi_label_classification or null",
                        in_quotes(name));
    if (config.problem_type == ProblemType::single_label && config.id2label.size() == 1)
      fail<ConfigError>(field, "regression for a single label (transformers refuses this too)", in_quotes(name));
  }
  if (config.kv_heads == 0) config.kv_heads = config.heads;
  if (config.head_dim == 0) {
    if (config.hidden_size % config.heads != 0)
      fail<ConfigError>(std::string(file), "a hidden size that the attention heads divide",
                        std::to_string(config.hidden_size) + " and " + std::to_string(config.heads));
    config.head_dim = config.hidden_size / config.heads;
  }
  if (config.heads % config.kv_heads != 0)
    fail<ConfigError>(std::string(file), "attention heads that the key-value heads divide",
                      std::to_string(config.heads) + " and " + std::to_string(config.kv_heads));
}

}  // namespace detail
}  // namespace fedlora
