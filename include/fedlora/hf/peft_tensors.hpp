// SPDX-License-Identifier: Apache-2.0
// The tensors in adapter_model.safetensors: which of them are the adapter's, under the keys that PEFT saves them under,
// and what else may stand beside them.
#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/hf/adapter_metadata.hpp"
#include "fedlora/hf/checkpoint.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/safetensors.hpp"

namespace fedlora::detail {

inline constexpr const char* peft_config_file = "adapter_config.json";
inline constexpr const char* peft_tensor_file = "adapter_model.safetensors";
/// Before the name of every module and tensor in a key.
inline constexpr std::string_view peft_prefix = "base_model.model.";

/// What the file holds. Views share its memory.
struct PeftTensors {
  std::string file;  ///< for messages
  std::map<std::string, TensorView> adapter;
  std::map<std::string, TensorView> embeddings;  ///< the base's own, input or output, as PEFT may save them
  SafetensorsMetadata metadata;
};

inline Bytes peft_file(const FileSet& files, const char* file) {
  if (auto bytes = files.open(file)) return *std::move(bytes);
  std::string got = "no such file; there is " + files.listing();
  if (std::string_view(file) == peft_tensor_file && files.contains("adapter_model.bin"))
    got += " (pickled tensors are not read: save the adapter again with safetensors)";
  fail<IoError>(files.path_of(file),
                std::string("this file (a PEFT adapter is ") + peft_config_file + " and " + peft_tensor_file + ")",
                got);
}

/// Whether a module is a base's input embeddings or output layer, by the names that transformers gives them.
inline bool is_embedding(std::string_view module) {
  const std::string_view last = module.substr(module.rfind('.') + 1);
  constexpr std::array<std::string_view, 6> names = {"embed_tokens", "word_embeddings", "lm_head",
                                                     "wte",          "embed_out",       "shared"};
  return std::find(names.begin(), names.end(), last) != names.end();
}

/// What to do with an adapter that PEFT can apply and this library cannot.
inline constexpr const char* peft_merge =
    "merge it in PEFT (merge_and_unload), save the result and take that as the base";

/// Refuses a tensor whose kind is known and not supported with a better message than "unexpected".
inline void refuse_foreign_tensor(const std::string& name, const std::string& where) {
  struct Kind {
    std::string_view part, what, before = "";
    bool merge = true;
  };
  constexpr std::string_view wrapped = "a state dict of PEFT's wrappers", save = "write it with save_pretrained";
  constexpr Kind kinds[] = {
      {"lora_magnitude_vector", "DoRA's magnitudes"},
      {"lora_embedding_", "an adapted embedding", "train without the embeddings in target_modules, or "},
      {"trainable_tokens", "single trained rows of an embedding"},
      {".base_layer.", "a trained tensor of the base itself"},
      {".lora_A.bias", "an adapter's bias"},
      {".lora_B.bias", "an adapter's bias"},
      {".modules_to_save.", wrapped, save, false},
      {".original_module", wrapped, save, false}};
  for (const Kind& kind : kinds)
    if (name.find(kind.part) != std::string::npos)
      fail<ConfigError>(where + ", tensor " + in_quotes(name), "low-rank factors of linear layers and whole modules",
                        std::string(kind.what) + ", which is not supported: " + std::string(kind.before) +
                            (kind.merge ? peft_merge : ""));
}

/// The key without the adapter's name, which PEFT leaves out when it saves and takes when it is its own "default":
/// "….lora_A.default.weight" is "….lora_A.weight". \throws FormatError for another name, or a factor without PEFT's
/// prefix: PEFT passes such tensors over with a warning, and the base would answer alone.
inline std::string peft_key(const std::string& name, const std::string& where) {
  for (const std::string_view factor : {".lora_A.", ".lora_B."}) {
    const std::size_t at = name.rfind(factor);
    if (at == std::string::npos) continue;
    if (!name.starts_with(peft_prefix))
      fail<FormatError>(where + ", tensor " + in_quotes(name),
                        "a name that starts with base_model.model., as PEFT saves it", "one that PEFT would pass over");
    const std::string rest = name.substr(at + factor.size());
    if (rest == "default.weight") return name.substr(0, at + factor.size()) + "weight";
    if (rest != "weight" && rest.ends_with(".weight"))
      fail<FormatError>(where + ", tensor " + in_quotes(name),
                        "a name that ends in " + std::string(factor.substr(1)) + "weight",
                        "an adapter that was saved under the name " + in_quotes(rest.substr(0, rest.size() - 7)) +
                            ", which PEFT would pass over; save it with save_pretrained");
  }
  return name;
}

/// \throws FormatError for a malformed file, ConfigError for tensors of a kind that is not supported, each by name.
inline PeftTensors peft_tensors_of(const FileSet& files) {
  const Bytes bytes = peft_file(files, peft_tensor_file);
  const SafetensorsFile file(bytes);
  PeftTensors result;
  result.file = bytes.name;
  result.metadata = file.metadata();
  for (const auto& [name, view] : file.tensors()) {
    const std::string key = peft_key(name, bytes.name);
    refuse_foreign_tensor(key, bytes.name);
    const std::string_view module = std::string_view(key).substr(0, key.ends_with(".weight") ? key.size() - 7 : 0);
    auto& place = is_embedding(module) ? result.embeddings : result.adapter;
    if (!place.emplace(key, view).second)
      fail<FormatError>(bytes.name + ", tensor " + in_quotes(name), "every tensor once", in_quotes(key) + " too");
  }
  return result;
}

/// How a tensor that was saved with an adapter stands to the base's of that shape.
enum class Likeness { same, rounded, other };

/// `rounded`: the same but for rounding of the base's values to the dtype of the saved ones.
inline Likeness likeness(const TensorView& saved, const TensorView& base) {
  constexpr Index chunk = 4096;
  const auto stretch = [](const TensorView& tensor, Index first, Index count) {
    const std::size_t width = tensor.bytes.size() / static_cast<std::size_t>(tensor.size());
    TensorView part = tensor;
    part.shape = {count};
    part.bytes = tensor.bytes.subspan(static_cast<std::size_t>(first) * width, static_cast<std::size_t>(count) * width);
    return part;
  };
  const auto rounded = [&](double value) {
    if (saved.dtype == Dtype::f64) return value;
    const auto single = static_cast<float>(value);
    if (saved.dtype == Dtype::bf16) return static_cast<double>(bf16_to_float(float_to_bf16(single)));
    if (saved.dtype == Dtype::f16) return static_cast<double>(f16_to_float(float_to_f16(single)));
    return static_cast<double>(single);
  };
  Likeness result = Likeness::same;
  std::vector<double> here(chunk), there(chunk);
  for (Index first = 0; first < saved.size(); first += chunk) {
    const Index count = std::min(chunk, saved.size() - first);
    copy_tensor(stretch(saved, first, count), std::span(here).first(static_cast<std::size_t>(count)));
    copy_tensor(stretch(base, first, count), std::span(there).first(static_cast<std::size_t>(count)));
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      if (here[i] == there[i]) continue;
      if (here[i] != rounded(there[i])) return Likeness::other;
      result = Likeness::rounded;
    }
  }
  return result;
}

/// The tensor of a checkpoint that a key without PEFT's prefix names, or none. A checkpoint may lack the prefix of the
/// task model, and an output layer that is tied to the input.
inline const TensorView* find_embedding(const Checkpoint& checkpoint, const std::string& name) {
  if (const TensorView* own = checkpoint.find(name)) return own;
  for (std::size_t dot = name.find('.'); dot != std::string::npos && dot + 7 < name.size();
       dot = name.find('.', dot + 1))
    if (const TensorView* own = checkpoint.find(name.substr(dot + 1))) return own;
  for (const std::string& other : checkpoint.names())
    if (other.ends_with(".weight") && is_embedding(other.substr(0, other.size() - 7))) return checkpoint.find(other);
  return nullptr;
}

/// Passes over embeddings that were saved beside the factors and are the base's as they stand in the directory `base`.
/// PEFT saves them where `modules_to_save` names them, and by itself once the vocabulary was resized, and takes them in
/// place of the base's. \throws ConfigError for others, and where there is no such directory to compare them with.
/// Returns a note, or nothing.
inline std::string check_saved_embeddings(const PeftTensors& tensors, const std::string& base,
                                          const std::vector<std::string>& modules_to_save) {
  if (tensors.embeddings.empty()) return {};
  std::error_code ignored;
  std::optional<Checkpoint> checkpoint;
  if (std::filesystem::is_directory(base, ignored)) checkpoint.emplace(FileSet::directory(base));
  std::string names, rounded;
  for (const auto& [key, saved] : tensors.embeddings) {
    const std::string where = tensors.file + ", tensor " + in_quotes(key);
    const std::string name = key.substr(key.starts_with(peft_prefix) ? peft_prefix.size() : 0);
    const std::string module = name.substr(0, name.rfind('.'));
    const bool asked = std::any_of(modules_to_save.begin(), modules_to_save.end(),
                                   [&](const std::string& one) { return module.ends_with(one); });  // as PEFT does
    const std::string what =
        std::string(
            asked ? "a module that was trained and saved whole, as modules_to_save says, and that PEFT takes"
                  : "the base's embeddings, which PEFT saves with an adapter over a resized vocabulary and takes") +
        " in place of the base's";
    const std::string way = std::string("; that is not supported: ") + peft_merge;
    names += (names.empty() ? "" : ", ") + name;
    if (!checkpoint)
      fail<ConfigError>(where, "no embeddings, or a base in a directory to compare them with",
                        what + " (" + in_quotes(base) + " is no directory)");
    const TensorView* own = find_embedding(*checkpoint, name);
    if (own == nullptr) fail<ConfigError>(where, "a tensor of " + base, "none of that name there");
    if (own->shape != saved.shape)
      fail<ConfigError>(where, "shape " + shape_text(own->shape) + ", as in " + own->file,
                        shape_text(saved.shape) + ": " + what + way);
    const Likeness like = likeness(saved, *own);
    if (like == Likeness::other) fail<ConfigError>(where, "the values in " + own->file, "others: " + what + way);
    if (like == Likeness::rounded)
      rounded += "; " + name + " equals the base's but for rounding to " + std::string(dtype_name(saved.dtype)) +
                 ": the base's is used, peft takes the rounded";
  }
  return tensors.file + ": passes over " + names + ", which PEFT saved with the adapter and which " +
         (rounded.empty() ? "are the base's own" : "the base has too" + rounded);
}

}  // namespace fedlora::detail
