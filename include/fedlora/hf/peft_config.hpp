// SPDX-License-Identifier: Apache-2.0
// What an adapter in PEFT's format (https://github.com/huggingface/peft, 0.21) says of itself: adapter_config.json, and
// the names and shapes in adapter_model.safetensors.
#pragma once

#include <algorithm>
#include <filesystem>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/config.hpp"
#include "fedlora/lora/sites.hpp"

namespace fedlora {

/// What adapter_config.json says, and what can be told from the tensors' names and shapes.
struct PeftConfig {
  LoraConfig lora;  ///< `modules_to_save` without the names PEFT adds for every classifier ("classifier", "score")
  std::optional<TaskType> task;
  std::string base_model;                    ///< base_model_name_or_path; empty when null
  std::vector<std::string> modules_to_save;  ///< as the file has it
  std::vector<std::string> id2label;         ///< label names that this library kept beside the tensors; empty without
  std::optional<Index> num_labels;           ///< rows of the classifier's last weight, when one is saved
};

namespace detail {

inline constexpr const char* peft_config_file = "adapter_config.json";
inline constexpr const char* peft_tensor_file = "adapter_model.safetensors";
/// PEFT's name for targets that are meant to match nothing: an adapter of whole modules only.
inline constexpr const char* peft_no_targets = "dummy-target-modules";

/// True for null, false, "", [] and {}: a feature that is off.
inline bool is_off(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         ((value.is_string() || value.is_structured()) && value.empty()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty());
}

/// Refuses what would change the meaning of the tensors and is not implemented here.
inline void refuse_foreign_features(const Json& config, const std::string& where) {
  const auto type = json_get<std::string>(config, "peft_type", where);
  if (type != "LORA") fail<ConfigError>(where + ", field peft_type", "LORA", in_quotes(type));
  const auto bias = json_get_or<std::string>(config, "bias", where, "none");
  if (bias != "none")
    fail<ConfigError>(where + ", field bias", "none (trained biases are not supported)", in_quotes(bias));
  for (const char* field : {"use_dora", "lora_bias", "use_qalora", "use_bdlora", "fan_in_fan_out",
                            "layers_to_transform", "layers_pattern", "layer_replication", "target_parameters",
                            "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config",
                            "velora_config", "monteclora_config", "megatron_config"}) {
    const auto found = config.find(field);
    if (found != config.end() && !is_off(*found))
      fail<ConfigError>(where + ", field " + field, "nothing (this feature of PEFT is not supported)",
                        in_quotes(found->dump()));
  }
}

/// A rank, bounded so that a hostile file cannot ask for a huge adapter.
inline Index checked_rank(const Json& value, const std::string& where) {
  if (!value.is_number_integer() || value < 1 || value > 65536)
    fail<FormatError>(where, "a whole number in [1, 65536]", in_quotes(value.dump()));
  return value.get<Index>();
}

inline double checked_number(const Json& value, const std::string& where, double minimum, double maximum) {
  if (!value.is_number() || !(value.get<double>() >= minimum && value.get<double>() <= maximum))
    fail<FormatError>(where, "a number in [" + std::to_string(minimum) + ", " + std::to_string(maximum) + "]",
                      in_quotes(value.dump()));
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
  } else if (!init.is_boolean() && init != "orthogonal" && init != "eva") {
    // PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take something out of the base weights when they start: over the untouched
    // base their tensors mean something else.
    fail<ConfigError>(field("init_lora_weights"), "an initialisation that leaves the base as it is",
                      in_quotes(init.dump()));
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

inline Bytes peft_file(const FileSet& files, const char* file) {
  if (auto bytes = files.open(file)) return *std::move(bytes);
  std::string got = "no such file; there is " + files.listing();
  if (std::string_view(file) == peft_tensor_file && files.contains("adapter_model.bin"))
    got += " (pickled tensors are not read: save the adapter again with safetensors)";
  fail<IoError>(files.path_of(file),
                std::string("this file (a PEFT adapter is ") + peft_config_file + " and " + peft_tensor_file + ")",
                got);
}

inline Json peft_config_of(const FileSet& files) {
  const Bytes bytes = peft_file(files, peft_config_file);
  Json config = parse_json(bytes);
  if (!config.is_object()) fail<FormatError>(bytes.name, "an object", config.type_name());
  refuse_foreign_features(config, bytes.name);
  return config;
}

/// Tensors whose kind is known and not supported deserve a better message than "unexpected".
inline void refuse_foreign_tensors(const SafetensorsFile& tensors, const std::string& where) {
  const auto ends_or_has = [](const std::string& name, std::string_view part) {
    return name.find(part) != std::string::npos;
  };
  for (const auto& [name, view] : tensors.tensors()) {
    const char* kind = ends_or_has(name, "lora_magnitude_vector")                               ? "DoRA's magnitudes"
                       : ends_or_has(name, "lora_embedding_")                                   ? "an adapted embedding"
                       : ends_or_has(name, ".lora_A.bias") || ends_or_has(name, ".lora_B.bias") ? "an adapter's bias"
                                                                                                : nullptr;
    if (kind != nullptr)
      fail<ConfigError>(where + ", tensor " + in_quotes(name), "low-rank factors of linear layers and whole modules",
                        std::string(kind) + ", which is not supported");
  }
}

/// The modules that the file has low-rank factors of.
inline std::vector<std::string> adapted_modules(const SafetensorsFile& tensors) {
  constexpr std::string_view before = "base_model.model.", after = ".lora_A.weight";
  std::vector<std::string> modules;
  for (const auto& [name, view] : tensors.tensors())
    if (name.starts_with(before) && name.ends_with(after))
      modules.push_back(name.substr(before.size(), name.size() - before.size() - after.size()));
  return modules;
}

/// PEFT keeps entries of target_modules that match nothing, or only what is saved whole ("out_proj" for RoBERTa's
/// all-linear): the tensors tell which ones count.
inline void drop_idle_targets(LoraConfig& config, const std::vector<std::string>& modules) {
  const auto idle = [&](const std::string& target) {
    return target != "all-linear" && std::none_of(modules.begin(), modules.end(), [&](const std::string& module) {
             return is_target({}, {target}, module);
           });
  };
  if (!std::all_of(config.target_modules.begin(), config.target_modules.end(), idle))
    std::erase_if(config.target_modules, idle);
}

/// PEFT takes the first pattern of the file that matches a module. Patterns are held in sorted order here, in which
/// PEFT saves them: a file in another order is refused where that makes a difference.
inline void check_pattern_order(const Bytes& file, const std::vector<std::string>& modules) {
  const auto ordered = nlohmann::ordered_json::parse(file.text());  // parse_json has seen it already
  for (const char* field : {"rank_pattern", "alpha_pattern"}) {
    if (!ordered.contains(field) || !ordered[field].is_object()) continue;
    std::vector<std::pair<std::string, double>> patterns;
    for (const auto& [pattern, value] : ordered[field].items()) patterns.emplace_back(pattern, value.get<double>());
    auto sorted = patterns;
    std::sort(sorted.begin(), sorted.end());
    if (sorted == patterns) continue;
    for (const std::string& module : modules) {
      const auto first = [&](const auto& list) {
        return std::find_if(list.begin(), list.end(), [&](const auto& entry) {
          return std::regex_match(module, compile_pattern("(.*\\.)?(" + entry.first + ")", field));
        });
      };
      const auto here = first(sorted), there = first(patterns);
      if (here != sorted.end() && here->second != there->second)
        fail<ConfigError>(file.name + ", field " + field, "sorted patterns where several match one module",
                          in_quotes(there->first) + " before " + in_quotes(here->first) + ", for " + module);
    }
  }
}

inline std::vector<std::string> id2label_of(const SafetensorsFile& tensors, const std::string& where) {
  const auto found = tensors.metadata().find("id2label");
  if (found == tensors.metadata().end()) return {};
  const std::string field = where + ", metadata id2label";
  const Json labels = parse_json(bytes_of(found->second, field));
  if (!labels.is_array()) fail<FormatError>(field, "an array of texts", labels.type_name());
  std::vector<std::string> names;
  for (const Json& label : labels) {
    if (!label.is_string()) fail<FormatError>(field, "an array of texts", label.type_name());
    names.push_back(label.get<std::string>());
  }
  return names;
}
}  // namespace detail


/// Reads adapter_config.json, and the names and shapes in adapter_model.safetensors.
/// \throws IoError for a missing file, FormatError for a malformed one, ConfigError for what PEFT can do and this
///         library cannot (DoRA, trained biases, other methods than LoRA, …), each naming file and field.
inline PeftConfig read_peft_config(const FileSet& files) {
  const Json json = detail::peft_config_of(files);
  const std::string where = files.path_of(detail::peft_config_file);
  PeftConfig config;
  config.lora = detail::lora_config_of(json, where);
  config.task = detail::task_of(json, where);
  config.base_model = json_get_or<std::string>(json, "base_model_name_or_path", where, "");
  config.modules_to_save = json_get_or<std::vector<std::string>>(json, "modules_to_save", where, {});
  for (const std::string& module : config.modules_to_save)
    if (config.task != TaskType::sequence_classification || (module != "classifier" && module != "score"))
      config.lora.modules_to_save.push_back(module);

  const Bytes bytes = detail::peft_file(files, detail::peft_tensor_file);
  const SafetensorsFile tensors(bytes);
  detail::refuse_foreign_tensors(tensors, bytes.name);
  const std::vector<std::string> modules = detail::adapted_modules(tensors);
  if (const auto excluded = json.find("exclude_modules"); excluded != json.end() && !detail::is_off(*excluded)) {
    config.lora.target_modules = modules;  // what is left when PEFT has excluded some, each by its whole name
    config.lora.target_pattern.clear();
    config.lora.head_only = modules.empty();
  }
  detail::drop_idle_targets(config.lora, modules);
  detail::check_pattern_order(detail::peft_file(files, detail::peft_config_file), modules);
  config.id2label = detail::id2label_of(tensors, bytes.name);
  for (const char* weight : {"classifier.out_proj.weight", "classifier.weight", "score.weight"}) {
    const TensorView* view = tensors.find(std::string("base_model.model.") + weight);
    if (view != nullptr && view->shape.size() == 2 && !config.num_labels) config.num_labels = view->shape[0];
  }
  if (config.num_labels && !config.id2label.empty() && static_cast<Index>(config.id2label.size()) != *config.num_labels)
    fail<FormatError>(bytes.name + ", metadata id2label", std::to_string(*config.num_labels) + " labels",
                      std::to_string(config.id2label.size()));
  return config;
}

inline PeftConfig read_peft_config(const std::filesystem::path& directory) {
  return read_peft_config(FileSet::directory(directory));
}

}  // namespace fedlora
