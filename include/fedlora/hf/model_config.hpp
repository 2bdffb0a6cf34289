// SPDX-License-Identifier: Apache-2.0
// config.json of a checkpoint: which family it is of, and whether its weights are numbers that can be read.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/dtype.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/hf/checkpoint.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

namespace detail {

[[noreturn]] inline void fail_quantised(const std::string& where, const std::string& format) {
  fail<ConfigError>(where, "weights in F64, F32, F16 or BF16",
                    "a checkpoint quantised by " + format +
                        " (take its unquantised original, which the same adapters fit, or a copy of this one that "
                        "transformers' dequantize() and save_pretrained() made)");
}

/// Refuses a configuration that says how its weights are quantised. One that names no method, or bitsandbytes with
/// neither 8 nor 4 bits, says nothing: transformers passes over it too, and the tensors tell.
inline void refuse_quantised(const Json& config, const std::string& file) {
  for (const char* field : {"quantization_config", "compression_config"}) {
    const Json* const how = json_find(config, field, file);
    if (how == nullptr || how->is_null()) continue;
    const std::string where = json_where(file, field);
    if (!how->is_object()) fail<FormatError>(where, "an object", shown(*how));
    auto method = json_get_or<std::string>(*how, "quant_method", where, "");
    const bool four = json_get_or<bool>(*how, "load_in_4bit", where, false);
    const bool eight = json_get_or<bool>(*how, "load_in_8bit", where, false);
    if (four || eight) fail_quantised(where, std::string("bitsandbytes, in ") + (four ? "4" : "8") + " bits");
    if (method.empty() && field == std::string_view("compression_config") && !how->empty())
      method = "compressed-tensors";
    if (!method.empty() && method != "bitsandbytes") {
      const Json* const bits = json_find(*how, "bits", where);
      fail_quantised(where, method + (bits != nullptr && bits->is_number() ? ", in " + bits->dump() + " bits" : ""));
    }
  }
}

/// What tensors are called that only a quantised checkpoint has, and whose they are.
inline constexpr std::array<std::pair<std::string_view, std::string_view>, 13> quantised_names = {
    {{".qweight", "GPTQ or AWQ"},
     {".qzeros", "GPTQ or AWQ"},
     {".weight.absmax", "bitsandbytes, in 4 bits"},
     {".weight.quant_map", "bitsandbytes, in 4 bits"},
     {".SCB", "bitsandbytes, in 8 bits"},
     {".W_q", "HQQ"},
     {".weight._data", "Quanto"},
     {".codebooks", "AQLM"},
     {".weight_packed", "compressed-tensors"},
     {".weight_scale_inv", "an FP8 format"},
     {".weight_scale", "a format with scales beside the weights"},
     {"_proj_blocks", "MXFP4"},
     {".weight_scales", "EETQ"}}};

/// Refuses tensors that are quantised, whatever the configuration says.
inline void refuse_quantised(const Checkpoint& checkpoint) {
  const std::vector<std::string> names = checkpoint.names();
  for (const std::string& name : names)
    for (const auto& [ending, format] : quantised_names)
      if (name.ends_with(ending)) fail_quantised(tensor_where(checkpoint.where(name), name), std::string(format));
  for (const std::string& name : names) {
    const Dtype dtype = checkpoint.find(name)->dtype;
    if (name.ends_with(".weight") && dtype_bits(dtype) <= 8 && dtype != Dtype::boolean)
      fail_quantised(tensor_where(checkpoint.where(name), name), "a format of " + std::string(dtype_name(dtype)));
  }
}

/// Refuses a checkpoint that has nothing under the family's names: it was saved by another program, or as a part of
/// something larger, and the first name shows of what.
inline void require_names(const Checkpoint& checkpoint, const FamilyNames& family, std::string_view type,
                          const std::string& file) {
  const std::vector<std::string> names = checkpoint.names();
  if (std::any_of(names.begin(), names.end(), [&](const auto& name) { return !family.within_base(name).empty(); }))
    return;
  std::string got = names.empty() ? "no tensor" : "";
  for (std::size_t i = 0; i < names.size() && i < 4; ++i) got.append(i == 0 ? "" : ", ").append(in_quotes(names[i]));
  if (names.size() > 4) got.append(" and ").append(std::to_string(names.size() - 4)).append(" more");
  for (const std::string& name : names)
    if (const std::size_t at = name.find("." + std::string(family.layers) + "0."); at != name.npos) {
      got.append("; its layers begin with ").append(in_quotes(name.substr(0, at + 1)));
      break;
    }
  fail<FormatError>(file,
                    "tensors as transformers names them for " + std::string(type) + ", with or without '" +
                        std::string(family.prefix) + "'",
                    got);
}

/// config.json. \throws ConfigError when it says that the weights are quantised.
inline Json read_model_config(const FileSet& files) {
  if (!files.contains("config.json") && files.contains("adapter_config.json"))
    fail<IoError>(files.name(), "a base model (config.json and its weights)",
                  "an adapter (adapter_config.json says which base it is for: give that, and this as the adapter)");
  const Bytes file = files.require("config.json");
  Json config = parse_json(file);
  if (!config.is_object()) fail<FormatError>(file.name, "an object", shown(config));
  refuse_quantised(config, file.name);
  return config;
}

inline std::string model_type_of(const FileSet& files, const Json& json) {
  return json_get<std::string>(json, "model_type", files.path_of("config.json"));
}

}  // namespace detail

}  // namespace fedlora
