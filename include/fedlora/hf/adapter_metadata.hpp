// SPDX-License-Identifier: Apache-2.0
// What an adapter needs beside PEFT's fields, in the metadata of its safetensors file: the names of its labels under
// "id2label", a JSON array of texts, and the rest (`AdapterContext`) under "fedlora", a JSON object
//
//   {"version": 1, "pooling": "mean", "max_tokens": 128, "problem_type": "…", "base_digest": "…", "text_pairs": false}
//
// PEFT has no field for any of it: what it knows of the model around an adapter is the class that is loaded first.
// Fields of ours in adapter_config.json would make it warn of a file from the future, and drop them; the metadata of a
// safetensors file is a place for one's own, which PEFT and transformers pass over. So an adapter that pools otherwise
// than its family does gives other numbers there than here. A merged checkpoint keeps the same two entries.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

using SafetensorsMetadata = std::map<std::string, std::string>;

/// The metadata that files of this adapter carry, PEFT's own "format" among it.
inline SafetensorsMetadata adapter_metadata(const AdapterLayout& layout) {
  SafetensorsMetadata metadata = {{"format", "pt"}};
  if (!layout.id2label.empty()) metadata.emplace("id2label", Json(layout.id2label).dump());
  const AdapterContext& context = layout.context;
  Json json = Json::object();
  if (context.pooling) json["pooling"] = pooling_name(*context.pooling);
  if (context.max_tokens > 0) json["max_tokens"] = context.max_tokens;
  if (context.problem_type) json["problem_type"] = problem_type_name(*context.problem_type);
  if (!context.base_digest.empty()) json["base_digest"] = context.base_digest;
  if (context.text_pairs) json["text_pairs"] = *context.text_pairs;
  if (json.empty()) return metadata;
  json["version"] = 1;
  metadata.emplace("fedlora", json.dump());
  return metadata;
}

/// The label names in a file's metadata; empty without any. `where` is the file. \throws FormatError for anything but
/// distinct texts.
inline std::vector<std::string> id2label_of(const SafetensorsMetadata& metadata, const std::string& where) {
  const auto found = metadata.find("id2label");
  if (found == metadata.end()) return {};
  const std::string field = where + ", metadata id2label";
  const Json labels = parse_json(bytes_of(found->second, field));
  if (!labels.is_array()) fail<FormatError>(field, "an array of texts", labels.type_name());
  std::vector<std::string> names;
  for (const Json& label : labels) {
    if (!label.is_string()) fail<FormatError>(field, "an array of texts", label.type_name());
    names.push_back(label.get<std::string>());
    if (std::count(names.begin(), names.end(), names.back()) > 1)
      fail<FormatError>(field, "every label once", detail::in_quotes(names.back(), 60) + " twice");
  }
  return names;
}

/// What a file's metadata says of the model around its adapter. \throws FormatError for a field or a version that is
/// not known here, or a value that cannot be: passing it over could change results.
inline AdapterContext adapter_context_of(const SafetensorsMetadata& metadata, const std::string& where) {
  AdapterContext context;
  const auto found = metadata.find("fedlora");
  if (found == metadata.end()) return context;
  const std::string file = where + ", metadata fedlora";
  const Json json = parse_json(bytes_of(found->second, file));
  if (!json.is_object()) fail<FormatError>(file, "an object", json.type_name());
  if (const auto form = json_get<Index>(json, "version", file); form != 1)
    fail<FormatError>(file + ", field version", "1, or a newer fedlora to read it", std::to_string(form));
  for (const auto& [field, value] : json.items())
    if (field != "version" && field != "pooling" && field != "max_tokens" && field != "problem_type" &&
        field != "base_digest" && field != "text_pairs")
      fail<FormatError>(file + ", field " + field,
                        "version, pooling, max_tokens, problem_type, base_digest or text_pairs",
                        "a field that this version does not know");
  const auto read = [&](const char* field, auto&& of, const char* expected) {
    const auto name = json_get<std::string>(json, field, file);
    const auto value = of(name);
    if (!value) fail<FormatError>(file + ", field " + field, expected, detail::in_quotes(name));
    return value;
  };
  if (json.contains("pooling")) context.pooling = read("pooling", pooling_named, "cls, last or mean");
  if (json.contains("problem_type"))
    context.problem_type =
        read("problem_type", problem_type_of, "single_label_classification, multi_label_classification or regression");
  context.max_tokens = json_get_or<Index>(json, "max_tokens", file, 0);
  if (context.max_tokens < 0 || context.max_tokens > (Index{1} << 24))
    fail<FormatError>(file + ", field max_tokens", "a number of tokens", std::to_string(context.max_tokens));
  context.base_digest = json_get_or<std::string>(json, "base_digest", file, "");
  if (json.contains("text_pairs")) context.text_pairs = json_get<bool>(json, "text_pairs", file);
  return context;
}

/// The sentence for what was trained on pairs of texts and meets single ones, or the other way round; empty where it is
/// as it was, or not known.
inline std::string text_pairs_note(const std::optional<bool>& trained, const std::optional<bool>& here,
                                   const std::string& where) {
  if (!trained || !here || *trained == *here) return {};
  return where + (*trained ? " was trained on pairs of texts, here each example has one text"
                           : " was trained on single texts, here they come in pairs");
}

}  // namespace fedlora
