// SPDX-License-Identifier: Apache-2.0
// The tensors of a model directory, in one safetensors file or in shards, under the names that the files give them.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/io/safetensors.hpp"

namespace fedlora {

/// The tensors of model.safetensors or, without it, of the shards that model.safetensors.index.json lists. All headers
/// are read and validated at once; the data stays mapped, and is read by whoever touches it. Views share the mapping
/// and may outlive this.
class Checkpoint {
 public:
  /// \throws IoError when neither file, or a shard, is there (with a hint when there is a pytorch_model.bin);
  ///         FormatError naming the file and tensor when a file breaks its format or a shard lacks a tensor that the
  ///         index puts there.
  explicit Checkpoint(const FileSet& files) {
    if (auto single = files.open(single_file)) {
      take(SafetensorsFile(*single), *single, nullptr);
    } else if (auto index = files.open(index_file)) {
      read_shards(files, *index);
    } else {
      report_absence(files);
    }
  }

  /// The tensor, or null.
  const TensorView* find(std::string_view name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
  }

  /// All names, sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    out.reserve(tensors_.size());
    for (const auto& [name, tensor] : tensors_) out.push_back(name);
    return out;
  }

  /// The metadata of its files; of a key that several have, what the first says.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The path of the file that holds the tensor; for one that is nowhere, of the file that should have named it: the
  /// single file or the index.
  const std::string& where(std::string_view name) const {
    const TensorView* const tensor = find(name);
    return tensor == nullptr ? path_ : tensor->file;
  }

 private:
  static constexpr const char* single_file = "model.safetensors";
  static constexpr const char* index_file = "model.safetensors.index.json";

  using WeightMap = std::map<std::string, std::string>;

  /// Takes over a file's tensors; with an index, those that it puts into `shard` or does not mention.
  void take(const SafetensorsFile& file, const Bytes& bytes, const WeightMap* index, const std::string& shard = {}) {
    if (path_.empty()) path_ = bytes.name;
    metadata_.insert(file.metadata().begin(), file.metadata().end());
    for (const auto& [name, tensor] : file.tensors()) {
      if (index != nullptr) {
        const auto listed = index->find(name);
        if (listed != index->end() && listed->second != shard) continue;
      }
      const auto [entry, is_new] = tensors_.emplace(name, tensor);
      if (!is_new) {
        fail<FormatError>(detail::tensor_where(bytes.name, name), "a tensor in one shard only, or listed in the index",
                          "it in " + entry->second.file + " too");
      }
    }
  }

  void read_shards(const FileSet& files, const Bytes& index) {
    path_ = index.name;
    const auto weight_map = json_get<WeightMap>(parse_json(index), "weight_map", index.name);
    const std::string field = detail::json_where(index.name, "weight_map");
    if (weight_map.empty()) fail<FormatError>(field, "at least one tensor", "none");

    std::set<std::string> shards;
    for (const auto& [tensor, shard] : weight_map) {
      if (!is_shard_name(shard)) {
        fail<FormatError>(field + ", tensor " + detail::in_quotes(tensor),
                          "the name of a .safetensors file in the same directory", detail::in_quotes(shard));
      }
      shards.insert(shard);
    }
    for (const std::string& shard : shards) {
      const auto bytes = files.open(shard);
      if (!bytes) {
        fail<IoError>(files.path_of(shard), "a shard that " + index.name + " lists",
                      "no such file; there is " + files.listing());
      }
      take(SafetensorsFile(*bytes), *bytes, &weight_map, shard);
    }
    for (const auto& [tensor, shard] : weight_map) {
      if (find(tensor) == nullptr) {
        fail<FormatError>(detail::tensor_where(files.path_of(shard), tensor),
                          "the tensor, which " + index.name + " puts there", "none of that name");
      }
    }
  }

  /// Anything else could name a file outside the model's directory.
  static bool is_shard_name(std::string_view name) {
    return name.ends_with(".safetensors") && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos &&
           name.find("..") == name.npos;
  }

  [[noreturn]] static void report_absence(const FileSet& files) {
    for (const char* const pickled : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
      if (files.contains(pickled)) {
        fail<IoError>(
            files.name(), std::string(single_file) + " or " + index_file,
            std::string("only ") + pickled +
                ", a pickle, which may run code when it is loaded; convert it to safetensors (in transformers, "
                "from_pretrained(…).save_pretrained(…) writes them)");
      }
    }
    fail<IoError>(files.name(), std::string(single_file) + " or " + index_file, "neither; there is " + files.listing());
  }

  std::map<std::string, TensorView, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
  std::string path_;  ///< of the single file or the index
};

}  // namespace fedlora
