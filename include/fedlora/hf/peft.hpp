// SPDX-License-Identifier: Apache-2.0
// Adapters in PEFT's own format (https://github.com/huggingface/peft, 0.21): a directory with adapter_config.json and
// adapter_model.safetensors, read and written so that `PeftModel.from_pretrained` and this library are interchangeable.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/hf/peft_config.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/config.hpp"
#include "fedlora/lora/state_dict.hpp"

namespace fedlora {

namespace detail {

/// A whole number as an integer, as PEFT's users write it.
inline Json plain_number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<std::int64_t>(value);
  return value;
}

/// Modules to save as PEFT expects them: one that lies inside another of the list is saved with it, and naming both
/// would make PEFT wrap it twice.
inline Json outermost_modules(const std::vector<std::string>& modules) {
  Json outer = Json::array();
  for (const std::string& module : modules) {
    const bool inside = std::any_of(modules.begin(), modules.end(),
                                    [&](const std::string& other) { return module.starts_with(other + "."); });
    if (!inside) outer.push_back(module);
  }
  return outer.empty() ? Json(nullptr) : outer;
}

inline Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

/// adapter_config.json with every field that PEFT 0.21 writes, so that it reads as if PEFT had written it.
inline Json peft_config_json(const AdapterLayout& layout) {
  const LoraConfig& config = layout.config;
  Json targets = Json::array();
  if (layout.sites.empty()) {
    targets = peft_no_targets;
  } else if (!config.target_pattern.empty()) {
    targets = config.target_pattern;
  } else if (!layout.target_modules.empty()) {
    targets = layout.target_modules;
  } else {
    for (const AdapterSite& site : layout.sites) targets.push_back(site.name);
  }
  // Patterns as configured; where ranks were given otherwise, every module that differs under its full name.
  Json ranks = Json::object();
  Json alphas = Json::object();
  for (const auto& [pattern, rank] : config.rank_pattern) ranks[pattern] = rank;
  for (const auto& [pattern, alpha] : config.alpha_pattern) alphas[pattern] = plain_number(alpha);
  for (const AdapterSite& site : layout.sites) {
    if (config.rank_pattern.empty() && site.rank != config.rank) ranks[site.name] = site.rank;
    if (config.alpha_pattern.empty() && site.alpha != config.alpha) alphas[site.name] = plain_number(site.alpha);
  }
  return {{"alora_invocation_tokens", nullptr},
          {"alpha_pattern", alphas},
          {"arrow_config", nullptr},
          {"auto_mapping", nullptr},
          {"base_model_name_or_path", text_or_null(layout.base_model)},
          {"bias", "none"},
          {"corda_config", nullptr},
          {"ensure_weight_tying", false},
          {"eva_config", nullptr},
          {"exclude_modules", nullptr},
          {"fan_in_fan_out", false},
          {"inference_mode", true},
          {"init_lora_weights", config.init == LoraInit::gaussian ? Json("gaussian") : Json(true)},
          {"kasa_config", nullptr},
          {"layer_replication", nullptr},
          {"layers_pattern", nullptr},
          {"layers_to_transform", nullptr},
          {"loftq_config", Json::object()},
          {"lora_alpha", plain_number(config.alpha)},
          {"lora_bias", false},
          {"lora_dropout", config.dropout},
          {"lora_ga_config", nullptr},
          {"megatron_config", nullptr},
          {"megatron_core", "megatron.core"},
          {"modules_to_save", outermost_modules(layout.modules_to_save)},
          {"monteclora_config", nullptr},
          {"peft_type", "LORA"},
          {"peft_version", "0.21.2"},
          {"qalora_group_size", 16},
          {"r", config.rank},
          {"rank_pattern", ranks},
          {"revision", nullptr},
          {"target_modules", targets},
          {"target_parameters", nullptr},
          {"task_type", layout.task == TaskType::causal_lm ? "CAUSAL_LM" : "SEQ_CLS"},
          {"trainable_token_indices", nullptr},
          {"use_bdlora", nullptr},
          {"use_dora", false},
          {"use_qalora", false},
          {"use_rslora", config.use_rslora},
          {"velora_config", nullptr}};
}

/// Removes a directory at the end of the scope, unless told to keep it.
struct RemovedDirectory {
  std::filesystem::path path;
  ~RemovedDirectory() {
    std::error_code ignored;
    if (!path.empty()) std::filesystem::remove_all(path, ignored);
  }
};

}  // namespace detail

/// Reads the tensors into an adapter of this layout; F64, F32, F16 and BF16 are converted. Names are checked both ways.
/// \throws as `read_peft_config`, and FormatError naming tensors that are missing, unexpected or of another shape,
///         ConfigError when rank and alpha of the file give a module another scale than the layout does.
template <class T>
Adapter<T> load_peft(const FileSet& files, const std::shared_ptr<const AdapterLayout>& layout) {
  const PeftConfig config = read_peft_config(files);
  const Bytes bytes = detail::peft_file(files, detail::peft_tensor_file);
  Adapter<T> adapter = adapter_from<T>(SafetensorsFile(bytes), layout, bytes.name, DtypePolicy::widen);
  if (config.lora.rank_pattern.empty() && config.lora.alpha_pattern.empty())
    for (const AdapterSite& site : layout->sites) {
      const auto rank = static_cast<double>(config.lora.rank);
      const double scale = config.lora.alpha / (config.lora.use_rslora ? std::sqrt(rank) : rank);
      if (std::abs(site.scale - scale) > 1e-12 * std::abs(scale))
        fail<ConfigError>(files.path_of(detail::peft_config_file) + ", module " + site.name,
                          "lora_alpha and r with the layout's scale " + std::to_string(site.scale),
                          std::to_string(scale));
    }
  return adapter;
}

template <class T>
Adapter<T> load_peft(const std::filesystem::path& directory, const std::shared_ptr<const AdapterLayout>& layout) {
  return load_peft<T>(FileSet::directory(directory), layout);
}

/// adapter_model.safetensors as `save_peft` writes it: equal adapters give equal bytes, so that a digest of them names
/// a result.
template <class T>
std::string peft_tensor_bytes(const Adapter<T>& adapter) {
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (!adapter.layout().id2label.empty()) metadata.emplace("id2label", Json(adapter.layout().id2label).dump());
  return adapter_bytes(adapter, metadata);
}

/// Writes adapter_model.safetensors and adapter_config.json as PEFT's `save_pretrained` does; label names go into the
/// tensors' metadata, which PEFT passes over. Missing directories are made. A new directory appears whole or not at
/// all; one that holds nothing but an older adapter is exchanged in one step where the file system can; otherwise each
/// file is replaced atomically, the configuration last, and other files are left alone. \throws IoError naming the path
/// and the reason.
template <class T>
void save_peft(const Adapter<T>& adapter, const std::filesystem::path& directory) {
  namespace fs = std::filesystem;
  const std::string tensors = peft_tensor_bytes(adapter);
  const std::string config = detail::peft_config_json(adapter.layout()).dump(2);
  const auto write_both = [&](const fs::path& into) {
    write_file_atomically(into / detail::peft_tensor_file, std::string_view(tensors));
    write_file_atomically(into / detail::peft_config_file, std::string_view(config));
  };

  std::error_code error;
  fs::path target = fs::weakly_canonical(fs::absolute(directory), error);  // a link to a directory is followed
  if (error) fail<IoError>(directory.string(), "a directory to write", error.message());
  if (!target.has_filename()) target = target.parent_path();  // "out/adapter/"
  if (!target.has_filename()) fail<IoError>(directory.string(), "a directory to write", "the root");
  fs::create_directories(target.parent_path(), error);
  if (error) fail<IoError>(target.parent_path().string(), "a directory that can be made", error.message());

  const bool exists = fs::exists(target, error);
  if (exists) {
    if (!fs::is_directory(target, error)) fail<IoError>(directory.string(), "a directory to write", "a file");
    for (const auto& entry : fs::directory_iterator(target, error)) {
      const std::string name = entry.path().filename().string();
      if (name != detail::peft_tensor_file && name != detail::peft_config_file) return write_both(target);
    }
    if (error) fail<IoError>(directory.string(), "a directory that can be read", error.message());
  }
  static std::atomic<unsigned> counter{0};
  const fs::path fresh =
      target.parent_path() / ("." + target.filename().string().substr(0, 150) + ".tmp-" + std::to_string(::getpid()) +
                              "-" + std::to_string(counter.fetch_add(1)));
  fs::remove_all(fresh, error);  // left by a killed process that had our id
  if (!fs::create_directory(fresh, error))
    fail<IoError>(fresh.string(), "a directory that can be made", error ? error.message() : "an existing one");
  const detail::RemovedDirectory removed{fresh};  // afterwards it is gone, or holds the old adapter
  write_both(fresh);
  const int reason = exists ? detail::exchange_names(fresh.c_str(), target.c_str())
                     : ::rename(fresh.c_str(), target.c_str()) == 0 ? 0
                                                                    : errno;
  if (reason == ENOTSUP) return write_both(target);
  if (reason != 0) fail<IoError>(directory.string(), "a directory that can be replaced", detail::errno_text(reason));
  detail::synchronise_directory(target.parent_path());
}

}  // namespace fedlora
