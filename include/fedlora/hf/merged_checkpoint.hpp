// SPDX-License-Identifier: Apache-2.0
// A base with an adapter merged into it, as a directory that transformers loads.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/hf/adapter_metadata.hpp"
#include "fedlora/hf/checkpoint.hpp"
#include "fedlora/hf/model_config.hpp"
#include "fedlora/hf/tokenizer_files.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/merge.hpp"
#include "fedlora/nn/concepts.hpp"

namespace fedlora {

namespace detail {

/// A tensor to be written, in F32 unless it is no floating-point tensor, or F64 before.
struct OwnedTensor {
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape;
  std::vector<std::byte> bytes;

  template <class W>
  static OwnedTensor of(std::vector<Index> shape, std::span<const W> values) {
    const auto bytes = std::as_bytes(values);
    return {dtype_of<W>, std::move(shape), {bytes.begin(), bytes.end()}};
  }
};

/// The checkpoint's tensor, widened, with the site's update (−1: none).
template <class W, class T>
OwnedTensor merged_tensor(const TensorView& tensor, const Adapter<T>& adapter, Index site) {
  std::vector<W> values(static_cast<std::size_t>(tensor.size()));
  copy_tensor(tensor, std::span<W>(values));
  if (site >= 0) merge(adapter, site, std::span<W>(values));
  for (const W value : values)
    if (!std::isfinite(value))
      fail<FormatError>(tensor.file + ", tensor " + tensor.name,
                        site >= 0 ? "finite numbers, merged" : "finite numbers", std::to_string(value));
  return OwnedTensor::of<W>(tensor.shape, values);
}

/// Every tensor of a checkpoint, and what a task model calls it: the base's with its prefix, however the checkpoint has
/// them, embeddings kept under the output layer's name alone by their own; of the others, `outside` are the model's
/// too.
inline std::map<std::string, std::string> names_in_task_model(const Checkpoint& checkpoint, const FamilyNames& family,
                                                              bool tied, const std::set<std::string>& outside) {
  const std::string prefix(family.prefix), embeddings = prefix + std::string(family.word_embeddings) + ".weight";
  std::map<std::string, std::string> names;
  bool has_embeddings = false;
  for (const std::string& stored : checkpoint.names()) {
    std::string& name = names[stored] = stored;
    const std::string bare = stored.starts_with(prefix) ? stored.substr(prefix.size()) : stored;
    if (const auto within = family.within_base(stored); !within.empty())
      name = prefix + std::string(within);
    else if (outside.contains(prefix + bare))
      name = prefix + bare;
    else if (outside.contains(bare))
      name = bare;
    has_embeddings = has_embeddings || name == embeddings;
  }
  for (const std::string& output :
       {std::string(family.output_embeddings) + ".weight", prefix + std::string(family.output_embeddings) + ".weight"})
    if (tied && !has_embeddings && names.contains(output)) names[output] = embeddings;
  return names;
}

/// The tensors of the task model, by transformers' names, with the adapter merged into them.
template <Architecture Arch, class T>
std::map<std::string, OwnedTensor> merged_tensors(const FileSet& base, const ModelConfig& model,
                                                  const Adapter<T>& adapter) {
  const AdapterLayout& layout = adapter.layout();
  const Checkpoint checkpoint(base);
  refuse_quantised(checkpoint);
  std::set<std::string> outside;   // tensors of the task model that are not the base's
  std::set<std::string> left_out;  // those of them that this adapter's head does not have
  if (layout.task == TaskType::causal_lm) {
    outside.insert(std::string(Arch::names.lm_head) + ".weight");
  } else {
    for (const HeadLayer& layer : Arch::head(model)) {
      outside.insert({layer.name + ".weight", layer.name + ".bias"});
      if (layout.context.pooling == Pooling::mean && layer.name != layout.output_layer)
        left_out.insert({layer.name + ".weight", layer.name + ".bias"});
    }
  }
  std::map<std::string, Index> sites;
  for (std::size_t i = 0; i < layout.sites.size(); ++i)
    sites.emplace(layout.sites[i].name + ".weight", static_cast<Index>(i));

  std::map<std::string, OwnedTensor> tensors;
  for (const auto& [stored, name] : names_in_task_model(checkpoint, Arch::names, model.tied_embeddings, outside)) {
    if (!name.starts_with(Arch::names.prefix) && !outside.contains(name)) continue;
    if (layout.find_saved(name) != nullptr || left_out.contains(name)) continue;
    const TensorView& tensor = *checkpoint.find(stored);
    const auto site = sites.find(name);
    const Index number = site == sites.end() ? -1 : site->second;
    if (site != sites.end()) sites.erase(site);
    if (tensor.dtype == Dtype::f64)
      tensors.emplace(name, merged_tensor<double>(tensor, adapter, number));
    else if (tensor.dtype == Dtype::f32 || tensor.dtype == Dtype::f16 || tensor.dtype == Dtype::bf16)
      tensors.emplace(name, merged_tensor<float>(tensor, adapter, number));
    else
      tensors.emplace(name, OwnedTensor{tensor.dtype, tensor.shape, {tensor.bytes.begin(), tensor.bytes.end()}});
  }
  if (!sites.empty())
    fail<FormatError>(base.name() + ", tensor " + sites.begin()->first, "the weight that the adapter is for", "none");
  for (const SavedTensor& saved : layout.saved) {
    const auto values =
        adapter.values().subspan(static_cast<std::size_t>(saved.offset), static_cast<std::size_t>(saved.size()));
    const std::vector<float> rounded(values.begin(), values.end());
    tensors.emplace(saved.name, OwnedTensor::of<float>(saved.shape, rounded));
  }
  return tensors;
}

/// The base's config.json as that of the task model, whose class begins with `stem`.
inline Json merged_config(Json config, const AdapterLayout& layout, std::string_view stem) {
  const bool language_model = layout.task == TaskType::causal_lm;
  const std::string task_class = std::string(stem) + (language_model ? "ForCausalLM" : "ForSequenceClassification");
  config["architectures"] = Json::array({task_class});  // (clang 14 leaks the old value where a brace stands here)
  config.erase("torch_dtype");
  config["dtype"] = "float32";
  if (language_model) return config;
  Json id2label = Json::object(), label2id = Json::object();
  for (std::size_t i = 0; i < layout.id2label.size(); ++i) {
    id2label[std::to_string(i)] = layout.id2label[i];
    label2id[layout.id2label[i]] = i;
  }
  config.erase("num_labels");
  config["id2label"] = std::move(id2label);
  config["label2id"] = std::move(label2id);
  config["problem_type"] = problem_type_name(layout.context.problem_type.value_or(ProblemType::single_label));
  return config;
}

/// Files that appear in a directory together, or not at all where one cannot be written.
class StagedFiles {
 public:
  /// \throws IoError when there can be no such directory.
  explicit StagedFiles(std::filesystem::path directory)
      : directory_(std::move(directory)), stage_(directory_ / ".partial") {
    std::error_code error;
    is_new_ = !std::filesystem::exists(directory_, error);
    std::filesystem::create_directories(stage_, error);
    if (error) fail<IoError>(directory_.string(), "a directory to write to", error.message());
  }
  StagedFiles(const StagedFiles&) = delete;
  StagedFiles& operator=(const StagedFiles&) = delete;
  ~StagedFiles() {
    std::error_code ignored;
    std::filesystem::remove_all(stage_, ignored);
    if (is_new_) std::filesystem::remove(directory_, ignored);  // unless it holds something
  }

  void write(const std::string& file, std::string_view bytes) {
    write_file_atomically(stage_ / file, bytes);
    files_.push_back(file);
  }

  void publish() {
    for (const std::string& file : files_) {
      std::error_code error;
      std::filesystem::rename(stage_ / file, directory_ / file, error);
      if (error) fail<IoError>((directory_ / file).string(), "a place for a file", error.message());
    }
  }

 private:
  std::filesystem::path directory_, stage_;
  std::vector<std::string> files_;
  bool is_new_ = false;
};

}  // namespace detail

/// Writes `base` with `adapter` merged into it: model.safetensors under the names of transformers' task model,
/// config.json with that class and the labels, the tokenizer's files. Weights are widened to F32 (F64 stays), so that
/// merging rounds once. Tensors that the task model does not have are left out. Files are replaced one by one, the
/// weights first and config.json last.
///
/// What transformers has no field for stays in the metadata of model.safetensors (hf/adapter_metadata.hpp), where
/// `load_pretrained` finds it: an adapter that pools otherwise than its family is read right here, and pools as the
/// family does elsewhere. Head layers that its pooling has no use for are left out, so that transformers says they are
/// new.
///
/// \throws FormatError naming a module of the adapter that the checkpoint does not have, ConfigError when `directory`
///         is the base itself, IoError.
template <Architecture Arch, class T>
void save_merged(const FileSet& base, const Adapter<T>& adapter, const std::filesystem::path& directory) {
  const AdapterLayout& layout = adapter.layout();
  const std::string config_file = base.path_of("config.json");
  const Json config = detail::read_model_config(base);
  const ModelConfig model = Arch::read_config(config, config_file);
  std::error_code error;
  if (std::filesystem::equivalent(directory, base.name(), error))
    fail<ConfigError>(directory.string(), "another directory than the base model's", "the same");
  const auto tensors = detail::merged_tensors<Arch>(base, model, adapter);
  std::vector<TensorToWrite> list;
  for (const auto& [name, tensor] : tensors) list.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
  SafetensorsMetadata metadata = adapter_metadata(layout);
  metadata.erase("id2label");  // config.json has it

  detail::StagedFiles staged(directory);
  staged.write("model.safetensors", safetensors_bytes(list, metadata));
  for (const char* file : detail::tokenizer_file_names)
    if (const auto bytes = base.open(file)) staged.write(file, bytes->text());
  if (layout.task == TaskType::causal_lm)
    if (const auto bytes = base.open("generation_config.json")) staged.write("generation_config.json", bytes->text());
  staged.write("config.json", json_text(detail::merged_config(config, layout, Arch::class_stem), 2) + "\n");
  staged.publish();
}

}  // namespace fedlora
