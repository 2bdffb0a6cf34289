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
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/data/labels.hpp"
#include "fedlora/hf/adapter_metadata.hpp"
#include "fedlora/hf/peft_config.hpp"
#include "fedlora/hf/peft_tensors.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/config.hpp"
#include "fedlora/lora/name_pattern.hpp"
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
  Json task_type = layout.task == TaskType::causal_lm ? "CAUSAL_LM" : "SEQ_CLS";
  if (config.freeze_head && layout.task == TaskType::sequence_classification)
    task_type = nullptr;  // with one, PEFT expects the head among the tensors
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
          {"task_type", task_type},
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

/// Where each label of the layout has its row in the file's output layer; empty when they go one by one. Names come
/// with the adapter, else from the base's config.json.
inline std::vector<Index> output_rows_of(const PeftConfig& config, const AdapterLayout& layout, const std::string& file,
                                         std::vector<std::string>& notes) {
  if (layout.id2label.empty() || !config.num_labels) return {};
  const auto labels = static_cast<Index>(layout.id2label.size());
  if (!config.id2label.empty()) {
    const LabelMatch match = match_labels(config.id2label, layout.id2label);
    if (match.rule != LabelRule::name || *config.num_labels != labels)
      fail<ConfigError>(file + ", metadata id2label", "the labels " + quoted_list(layout.id2label) + ", in any order",
                        quoted_list(config.id2label));
    return match.rows;
  }
  if (*config.num_labels != labels)
    fail<ConfigError>(file, "a head for the labels " + quoted_list(layout.id2label),
                      "one of " + std::to_string(*config.num_labels) + " rows");
  const std::vector<std::string> head = row_names(layout.base_id2label, labels);
  LabelMatch match = match_labels(head, layout.id2label);
  if (!match) {  // the names are those of another head
    match = match_labels(row_names({}, labels), layout.id2label);
    if (!match) return {};
    match.rule = LabelRule::order;
  }
  const bool nameless = layout.id2label == row_names({}, labels);  // LABEL_0, …: which says it
  if (match.rule != LabelRule::name || (head != layout.base_id2label && !nameless))
    notes.push_back(file + " does not name its labels: " + label_rows_text(match, head, layout.id2label));
  return match.rows;
}

inline bool pools_otherwise(const AdapterContext& file, const AdapterContext& here) {
  return file.pooling && here.pooling && *file.pooling != *here.pooling;
}

inline bool is_for_another_base(const AdapterContext& file, const AdapterContext& here) {
  return !file.base_digest.empty() && !here.base_digest.empty() && file.base_digest != here.base_digest;
}

/// \throws ConfigError for what makes the results of most adapters mean nothing, where nobody would be told.
inline void refuse_other_context(const AdapterContext& file, const AdapterLayout& layout, const std::string& where) {
  constexpr const char* way = " (with `notes`, load_peft goes on and says it there)";
  const AdapterContext& here = layout.context;
  if (pools_otherwise(file, here))
    fail<ConfigError>(where + ", metadata pooling", std::string(pooling_name(*here.pooling)) + ", the model's" + way,
                      std::string(pooling_name(*file.pooling)));
  if (is_for_another_base(file, here))
    fail<ConfigError>(where + ", metadata base_digest", here.base_digest + ", that of " + layout.base_model + way,
                      file.base_digest + ", an adapter for another base");
}

/// What the adapter's file and the model disagree about, beside tensors, a sentence each. \throws ConfigError for what
/// changes the meaning of the numbers.
inline std::vector<std::string> compare_context(const AdapterContext& file, const AdapterLayout& layout,
                                                const std::string& where) {
  std::vector<std::string> notes;
  const AdapterContext& here = layout.context;
  if (file.problem_type && here.problem_type && *file.problem_type != *here.problem_type)
    fail<ConfigError>(where + ", metadata problem_type", std::string(problem_type_name(*here.problem_type)),
                      std::string(problem_type_name(*file.problem_type)));
  if (pools_otherwise(file, here))
    notes.push_back(where + " was trained with pooling " + std::string(pooling_name(*file.pooling)) +
                    ", the model here has " + std::string(pooling_name(*here.pooling)));
  if (file.max_tokens > 0 && here.max_tokens > 0 && file.max_tokens != here.max_tokens)
    notes.push_back(where + " was trained on texts of up to " + std::to_string(file.max_tokens) +
                    " tokens, here they are cut at " + std::to_string(here.max_tokens));
  if (std::string note = text_pairs_note(file.text_pairs, here.text_pairs, where); !note.empty())
    notes.push_back(std::move(note));
  if (is_for_another_base(file, here))
    notes.push_back("warning: " + where + " was trained over a base with digest " + file.base_digest + ", " +
                    layout.base_model + " has " + here.base_digest +
                    ": unless these are the same weights in another precision, its results mean nothing");
  return notes;
}

/// `adapter_from`, whose complaint is followed by the `differences` that may be why.
template <class T>
Adapter<T> adapter_of(const PeftTensors& tensors, const std::shared_ptr<const AdapterLayout>& layout,
                      const std::vector<std::string>& differences) {
  try {
    return adapter_from<T>(tensors.adapter, layout, tensors.file, DtypePolicy::widen);
  } catch (const FormatError& error) {
    std::string text = error.what();
    for (const std::string& difference : differences) text += "; " + printable(difference, 1000);
    throw FormatError(text);
  }
}

/// Rows of the output layer in the layout's order: row i is the file's row `rows[i]`.
template <class T>
void permute_output_rows(Adapter<T>& adapter, const std::vector<Index>& rows) {
  const AdapterLayout& layout = adapter.layout();
  if (rows.empty()) return;
  for (const SavedTensor& tensor : layout.saved) {
    if (!tensor.name.starts_with(layout.output_layer + ".")) continue;
    const auto values =
        adapter.values().subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.size()));
    const std::vector<T> stored(values.begin(), values.end());
    const Index width = tensor.size() / static_cast<Index>(rows.size());
    for (std::size_t row = 0; row < rows.size(); ++row)
      std::copy_n(stored.begin() + rows[row] * width, width, values.begin() + static_cast<Index>(row) * width);
  }
}

}  // namespace detail

/// Reads the tensors into an adapter of this layout; F64, F32, F16 and BF16 are converted. Names are checked both ways.
/// Where the head's labels stand in another order than the layout's, each takes its own row (data/labels.hpp; an
/// adapter without names of its own has those of the base's config.json). What a person should be told is added to
/// `notes`, if given: which label became which row where that was not told by names, a base of another digest, another
/// pooling, texts cut elsewhere, pairs of texts or single ones.
/// \throws as `read_peft_config`, and FormatError naming tensors that are missing, unexpected or of another shape,
///         ConfigError when rank and alpha of the file give a module another scale than the layout does, when the head
///         is for other labels, for embeddings that are not the base's own, and, where there are no `notes` to say it
///         in, when the adapter pools otherwise or is for another base.
template <class T>
Adapter<T> load_peft(const FileSet& files, const std::shared_ptr<const AdapterLayout>& layout,
                     std::vector<std::string>* notes = nullptr) {
  const PeftConfig config = read_peft_config(files);
  const detail::PeftTensors tensors = detail::peft_tensors_of(files);
  std::vector<std::string> told = config.notes;
  if (notes == nullptr) detail::refuse_other_context(config.context, *layout, tensors.file);
  std::vector<std::string> differences = detail::compare_context(config.context, *layout, tensors.file);
  const std::vector<Index> rows = detail::output_rows_of(config, *layout, tensors.file, told);
  if (std::string note = detail::check_saved_embeddings(tensors, layout->base_model, config.modules_to_save);
      !note.empty())
    told.push_back(std::move(note));

  Adapter<T> adapter = detail::adapter_of<T>(tensors, layout, differences);
  told.insert(told.end(), differences.begin(), differences.end());
  detail::permute_output_rows(adapter, rows);
  const LoraConfig& lora = config.lora;
  const detail::PatternValues<Index> ranks(lora.rank_pattern, "LoRA rank_pattern");
  const detail::PatternValues<double> alphas(lora.alpha_pattern, "LoRA alpha_pattern");
  for (const AdapterSite& site : layout->sites) {
    const auto rank = static_cast<double>(ranks.find(site.name).value_or(lora.rank));
    const double alpha = alphas.find(site.name).value_or(lora.alpha);
    const double scale = alpha / (lora.use_rslora ? std::sqrt(rank) : rank);
    if (std::abs(site.scale - scale) > 1e-12 * std::abs(scale))
      fail<ConfigError>(files.path_of(detail::peft_config_file) + ", module " + site.name,
                        "lora_alpha and r with the layout's scale " + std::to_string(site.scale),
                        std::to_string(scale));
  }
  if (notes != nullptr) notes->insert(notes->end(), told.begin(), told.end());
  return adapter;
}

template <class T>
Adapter<T> load_peft(const std::filesystem::path& directory, const std::shared_ptr<const AdapterLayout>& layout,
                     std::vector<std::string>* notes = nullptr) {
  return load_peft<T>(FileSet::directory(directory), layout, notes);
}

/// adapter_model.safetensors as `save_peft` writes it: equal adapters give equal bytes, so that a digest of them names
/// a result.
template <class T>
std::string peft_tensor_bytes(const Adapter<T>& adapter) {
  return adapter_bytes(adapter, adapter_metadata(adapter.layout()));
}

/// Writes adapter_model.safetensors and adapter_config.json as PEFT's `save_pretrained` does; what PEFT has no field
/// for goes into the tensors' metadata, which it passes over (hf/adapter_metadata.hpp). Missing directories are made. A
/// new directory appears whole or not at all; one that holds nothing but an older adapter is exchanged in one step
/// where the file system can; otherwise each file is replaced atomically, the configuration last, and other files are
/// left alone. \throws IoError naming the path and the reason.
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
