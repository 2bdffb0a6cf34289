// SPDX-License-Identifier: Apache-2.0
// What an adapter in PEFT's format (https://github.com/huggingface/peft, 0.21) says of itself: adapter_config.json, and
// the names and shapes in adapter_model.safetensors.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/data/labels.hpp"
#include "fedlora/hf/adapter_metadata.hpp"
#include "fedlora/hf/peft_tensors.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/config.hpp"
#include "fedlora/lora/sites.hpp"

namespace fedlora {

/// What adapter_config.json says, and what can be told from the tensors' names and shapes.
struct PeftConfig {
  LoraConfig lora;  ///< `modules_to_save` without the names PEFT adds for every classifier ("classifier", "score")
  std::optional<TaskType> task;
  std::string base_class;                    ///< auto_mapping's base_model_class; empty when null
  std::string base_model;                    ///< base_model_name_or_path; empty when null
  std::vector<std::string> modules_to_save;  ///< as the file has it
  std::vector<std::string> id2label;         ///< label names that this library kept beside the tensors; empty without
  std::optional<Index> num_labels;           ///< rows of the classifier's last weight, when one is saved
  AdapterContext context;                    ///< what this library kept beside the tensors
  std::vector<std::string> notes;            ///< what a person should be told: fields that were passed over
};

namespace detail {

/// PEFT's name for targets that are meant to match nothing: an adapter of whole modules only.
inline constexpr const char* peft_no_targets = "dummy-target-modules";

/// Fields of PEFT's LoraConfig that are read here.
inline constexpr std::array<std::string_view, 18> peft_fields_read = {"alpha_pattern",
                                                                      "auto_mapping",
                                                                      "base_model_name_or_path",
                                                                      "bias",
                                                                      "exclude_modules",
                                                                      "fan_in_fan_out",
                                                                      "init_lora_weights",
                                                                      "layers_pattern",
                                                                      "layers_to_transform",
                                                                      "lora_alpha",
                                                                      "lora_dropout",
                                                                      "modules_to_save",
                                                                      "peft_type",
                                                                      "r",
                                                                      "rank_pattern",
                                                                      "target_modules",
                                                                      "task_type",
                                                                      "use_rslora"};

/// Fields that cannot matter to a trained adapter: bookkeeping, how its numbers were drawn in the beginning
/// (init_lora_weights says so where that matters), and sizes of features that have a switch of their own.
inline constexpr std::array<std::string_view, 12> peft_fields_passed_over = {
    "corda_config",  "ensure_weight_tying", "eva_config",   "inference_mode", "loftq_config",      "lora_ga_config",
    "megatron_core", "merge_weights",       "peft_version", "revision",       "qalora_group_size", "runtime_config"};

/// True for null, false, 0, "", [] and {}: a feature that is off.
inline bool is_off(const Json& value) {
  return value.is_null() || value == false || value == 0 || value == "" || (value.is_structured() && value.empty());
}

/// Whether a field is there and says something.
inline bool is_on(const Json& config, const char* field) {
  const auto found = config.find(field);
  return found != config.end() && !found->is_null() && *found != "" && !(found->is_structured() && found->empty());
}

/// Refuses what would change the meaning of the tensors and is not implemented here: known features of PEFT by their
/// names, and fields of a PEFT to come unless they are off.
inline void refuse_foreign_features(const Json& config, const std::string& where) {
  const auto type = json_get<std::string>(config, "peft_type", where);
  if (type != "LORA") fail<ConfigError>(where + ", field peft_type", "LORA", in_quotes(type));
  const auto bias = json_get_or<std::string>(config, "bias", where, "none");
  if (bias != "none")
    fail<ConfigError>(where + ", field bias", "none (trained biases are not supported)", in_quotes(bias));
  constexpr std::array<std::string_view, 14> unsupported = {"use_dora",
                                                            "lora_bias",
                                                            "use_qalora",
                                                            "use_bdlora",
                                                            "layer_replication",
                                                            "target_parameters",
                                                            "trainable_token_indices",
                                                            "alora_invocation_tokens",
                                                            "arrow_config",
                                                            "kasa_config",
                                                            "velora_config",
                                                            "monteclora_config",
                                                            "megatron_config",
                                                            "enable_lora"};
  const auto among = [](const auto& fields, const std::string& field) {
    return std::find(fields.begin(), fields.end(), field) != fields.end();
  };
  for (const auto& [field, value] : config.items()) {
    if (among(peft_fields_read, field) || among(peft_fields_passed_over, field) || is_off(value)) continue;
    const std::string got = in_quotes(value.dump(-1, ' ', false, Json::error_handler_t::replace));
    if (among(unsupported, field))
      fail<ConfigError>(where + ", field " + field, "nothing (this feature of PEFT is not supported)", got);
    fail<ConfigError>(
        where + ", field " + field,
        "a field of PEFT up to 0.21 (this one may change what the tensors mean; take it out of the file if "
        "you know that it does not)",
        got);
  }
}

/// A rank, bounded so that a hostile file cannot ask for a huge adapter.
inline Index checked_rank(const Json& value, const std::string& where) {
  if (!value.is_number_integer() || value < 1 || value > 65536)
    fail<FormatError>(where, "a whole number in [1, 65536]", shown(value));
  return value.get<Index>();
}

inline double checked_number(const Json& value, const std::string& where, double minimum, double maximum) {
  if (!value.is_number() || !(value.get<double>() >= minimum && value.get<double>() <= maximum))
    fail<FormatError>(where, "a number in [" + std::to_string(minimum) + ", " + std::to_string(maximum) + "]",
                      shown(value));
  return value.get<double>();
}

inline LoraConfig lora_config_of(const Json& config, const std::string& where) {
  const auto field = [&](const char* name) { return where + ", field " + name; };
  const auto value = [&](const char* name, Json fallback) {
    const auto found = config.find(name);
    return found == config.end() || found->is_null() ? fallback : *found;
  };
  LoraConfig lora;
  lora.rank = checked_rank(value("r", 8), field("r"));
  lora.alpha = checked_number(value("lora_alpha", 8), field("lora_alpha"), 0, 1e6);
  lora.dropout = checked_number(value("lora_dropout", 0.0), field("lora_dropout"), 0, 1);
  lora.use_rslora = json_get_or<bool>(config, "use_rslora", where, false);

  const Json targets = value("target_modules", Json::array());
  if (targets == peft_no_targets) {
    lora.head_only = true;
  } else if (targets == "all-linear") {
    lora.target_modules = {"all-linear"};
  } else if (targets.is_string()) {
    lora.target_pattern = targets.get<std::string>();
  } else {
    lora.target_modules = json_get_or<std::vector<std::string>>(config, "target_modules", where, {});
  }

  const Json ranks = value("rank_pattern", Json::object());
  if (!ranks.is_object()) fail<FormatError>(field("rank_pattern"), "an object", ranks.type_name());
  for (const auto& [pattern, rank] : ranks.items())
    lora.rank_pattern.emplace(pattern, checked_rank(rank, field("rank_pattern") + ", " + in_quotes(pattern)));
  const Json alphas = value("alpha_pattern", Json::object());
  if (!alphas.is_object()) fail<FormatError>(field("alpha_pattern"), "an object", alphas.type_name());
  for (const auto& [pattern, alpha] : alphas.items())
    lora.alpha_pattern.emplace(pattern,
                               checked_number(alpha, field("alpha_pattern") + ", " + in_quotes(pattern), 0, 1e6));

  const Json init = value("init_lora_weights", true);
  if (init == "gaussian") {
    lora.init = LoraInit::gaussian;
  } else if (!init.is_boolean() && init != "orthogonal" && init != "eva" && init != "mica") {
    // PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take something out of the base weights when they start: over the untouched
    // base their tensors mean something else.
    fail<ConfigError>(field("init_lora_weights"),
                      "an initialisation that leaves the base as it is (PEFT's save_pretrained with "
                      "path_initial_model_for_weight_conversion makes such an adapter of this one)",
                      shown(init));
  }
  return lora;
}

inline std::optional<TaskType> task_of(const Json& config, const std::string& where) {
  const auto task = json_get_or<std::string>(config, "task_type", where, "");
  if (task.empty()) return std::nullopt;
  if (task == "SEQ_CLS") return TaskType::sequence_classification;
  if (task == "CAUSAL_LM") return TaskType::causal_lm;
  fail<ConfigError>(where + ", field task_type", "SEQ_CLS, CAUSAL_LM or null", in_quotes(task));
}

/// adapter_config.json, its keys in the file's order.
inline nlohmann::ordered_json peft_config_of(const FileSet& files) {
  const Bytes bytes = peft_file(files, peft_config_file);
  auto config = parse_json<nlohmann::ordered_json>(bytes);
  if (!config.is_object()) fail<FormatError>(bytes.name, "an object", config.type_name());
  return config;
}

/// The modules that the file has low-rank factors of.
inline std::vector<std::string> adapted_modules(const PeftTensors& tensors) {
  constexpr std::string_view after = ".lora_A.weight";
  std::vector<std::string> modules;
  for (const auto& [name, view] : tensors.adapter)
    if (name.starts_with(peft_prefix) && name.ends_with(after))
      modules.push_back(name.substr(peft_prefix.size(), name.size() - peft_prefix.size() - after.size()));
  return modules;
}

/// The layers that layers_to_transform names; empty when it names none. \throws FormatError for what is no number.
inline std::vector<Index> layers_of(const Json& config, const std::string& where) {
  const auto found = config.find("layers_to_transform");
  if (found == config.end() || found->is_null()) return {};
  std::vector<Index> layers;
  for (const Json& layer : found->is_array() ? *found : Json::array({*found})) {
    if (!layer.is_number_integer())
      fail<FormatError>(where + ", field layers_to_transform", "a whole number or a list of them",
                        in_quotes(found->dump()));
    layers.push_back(layer.get<Index>());
  }
  return layers;
}

/// PEFT passes tensors of layers that layers_to_transform does not name over: a file with some was put together.
/// \throws ConfigError naming one.
inline void check_layers(const Json& config, const std::vector<std::string>& modules, const std::string& where) {
  const std::vector<Index> layers = layers_of(config, where);
  if (layers.empty()) return;
  for (const std::string& module : modules)
    for (std::size_t dot = module.find('.'); dot != module.npos; dot = module.find('.', dot + 1)) {
      Index layer = 0;
      const auto [end, error] = std::from_chars(module.data() + dot + 1, module.data() + module.size(), layer);
      if (error != std::errc() || end == module.data() + module.size() || *end != '.') continue;
      if (std::find(layers.begin(), layers.end(), layer) == layers.end())
        fail<ConfigError>(where + ", field layers_to_transform", "every layer that there are tensors of",
                          config["layers_to_transform"].dump() + ", without that of " + in_quotes(module));
      break;
    }
}

/// Whether the tensors alone say which modules are adapted: where PEFT has excluded some, or taken some layers, or
/// where an expression is one that is not read here.
inline bool told_by_tensors(const Json& config, const LoraConfig& lora, const std::string& where) {
  if (!layers_of(config, where).empty()) return true;
  if (is_on(config, "layers_pattern") || is_on(config, "exclude_modules")) return true;
  if (lora.target_pattern.empty()) return false;
  try {
    NamePattern(lora.target_pattern, NamePattern::Place::whole, where);
  } catch (const Error&) {
    return true;
  }
  return false;
}

/// PEFT keeps entries of target_modules that match nothing, or only what is saved whole ("out_proj" for RoBERTa's
/// all-linear): the tensors tell which ones count.
inline void drop_idle_targets(LoraConfig& config, const std::vector<std::string>& modules) {
  const auto idle = [&](const std::string& target) {
    return target != "all-linear" && std::none_of(modules.begin(), modules.end(),
                                                  [&](const std::string& module) { return is_named(module, target); });
  };
  if (!std::all_of(config.target_modules.begin(), config.target_modules.end(), idle))
    std::erase_if(config.target_modules, idle);
}

/// Reads every expression. PEFT takes the first of the file that matches a module; here they are held in sorted order,
/// in which PEFT saves them: a file in another order is refused where that makes a difference.
inline void check_patterns(const nlohmann::ordered_json& config, const std::vector<std::string>& modules,
                           const std::string& file) {
  for (const char* field : {"rank_pattern", "alpha_pattern"}) {
    if (!config.contains(field) || !config[field].is_object()) continue;
    using Entry = std::pair<std::string, double>;
    std::vector<std::pair<std::string, Entry>> patterns;
    for (const auto& [pattern, value] : config[field].items())
      patterns.emplace_back(pattern, Entry(pattern, value.template get<double>()));
    const std::string where = json_where(file, field);
    const PatternValues<Entry> in_file(patterns, where);
    if (std::is_sorted(patterns.begin(), patterns.end())) continue;
    std::sort(patterns.begin(), patterns.end());
    const PatternValues<Entry> in_order(patterns, where);
    for (const std::string& module : modules)
      if (const auto here = in_order.find(module), there = in_file.find(module); here && here->second != there->second)
        fail<ConfigError>(where, "sorted patterns where several match one module",
                          in_quotes(there->first) + " before " + in_quotes(here->first) + ", for " + module);
  }
}

}  // namespace detail

/// Reads adapter_config.json, and the names and shapes in adapter_model.safetensors.
/// \throws IoError for a missing file, FormatError for a malformed one, ConfigError for what PEFT can do and this
///         library cannot (DoRA, trained biases, other methods than LoRA, …), each naming file and field.
inline PeftConfig read_peft_config(const FileSet& files) {
  const nlohmann::ordered_json in_order = detail::peft_config_of(files);
  const Json json = in_order;
  const std::string where = files.path_of(detail::peft_config_file);
  detail::refuse_foreign_features(json, where);
  PeftConfig config;
  config.lora = detail::lora_config_of(json, where);
  config.task = detail::task_of(json, where);
  config.base_model = json_get_or<std::string>(json, "base_model_name_or_path", where, "");
  if (detail::is_on(json, "auto_mapping"))
    config.base_class =
        json_get_or<std::string>(json["auto_mapping"], "base_model_class", where + ", field auto_mapping", "");
  config.modules_to_save = json_get_or<std::vector<std::string>>(json, "modules_to_save", where, {});
  for (const std::string& module : config.modules_to_save)
    if (!detail::is_embedding(module) &&
        (config.task != TaskType::sequence_classification || (module != "classifier" && module != "score")))
      config.lora.modules_to_save.push_back(module);
  if (json_get_or<bool>(json, "fan_in_fan_out", where, false))
    config.notes.push_back(where +
                           ": fan_in_fan_out is for layers that store (in, out), which this adapter has none of; "
                           "passed over, as PEFT does");

  const detail::PeftTensors tensors = detail::peft_tensors_of(files);
  const std::vector<std::string> modules = detail::adapted_modules(tensors);
  if (detail::told_by_tensors(json, config.lora, where)) {
    detail::check_layers(json, modules, where);
    config.lora.target_modules = modules;  // each by its whole name
    config.lora.target_pattern.clear();
    config.lora.head_only = modules.empty();
  }
  detail::drop_idle_targets(config.lora, modules);
  detail::check_patterns(in_order, modules, where);
  config.id2label = id2label_of(tensors.metadata, tensors.file);
  config.context = adapter_context_of(tensors.metadata, tensors.file);
  for (const char* weight : {"classifier.out_proj.weight", "classifier.weight", "score.weight"}) {
    const auto found = tensors.adapter.find(std::string(detail::peft_prefix) + weight);
    if (found != tensors.adapter.end() && found->second.shape.size() == 2 && found->second.size() > 0 &&
        !config.num_labels)
      config.num_labels = found->second.shape[0];
  }
  config.lora.freeze_head = !config.task && !config.num_labels;
  if (config.num_labels && !config.id2label.empty() && static_cast<Index>(config.id2label.size()) != *config.num_labels)
    fail<FormatError>(tensors.file + ", metadata id2label", std::to_string(*config.num_labels) + " labels",
                      std::to_string(config.id2label.size()));
  return config;
}

inline PeftConfig read_peft_config(const std::filesystem::path& directory) {
  return read_peft_config(FileSet::directory(directory));
}

/// The names of the rows of an adapter's head: its own, else those of the base's config.json where it names as many,
/// else LABEL_0, LABEL_1, …. Empty when the adapter has no head.
inline std::vector<std::string> adapter_labels(const PeftConfig& adapter,
                                               const std::vector<std::string>& base_id2label) {
  if (!adapter.id2label.empty()) return adapter.id2label;
  return adapter.num_labels ? row_names(base_id2label, *adapter.num_labels) : std::vector<std::string>{};
}

}  // namespace fedlora
