// SPDX-License-Identifier: Apache-2.0
// A value of a tokenizer's JSON file that knows the way to it, for messages that name file and field.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::detail {

/// A value of a JSON file and the way to it, for messages.
struct JsonNode {
  const Json& value;
  std::string file;
  std::string path;  ///< "model.vocab"; empty: the whole file

  std::string where() const { return path.empty() ? file : file + ", field " + path; }
  std::string path_of(std::string_view field) const {
    return path.empty() ? std::string(field) : path + "." + std::string(field);
  }
  std::string where(std::string_view field) const { return file + ", field " + path_of(field); }

  template <class T>
  T get(std::string_view field) const {
    const Json* found = json_find(value, field, where());
    if (found == nullptr) fail<FormatError>(where(field), "a value", "no such field");
    return json_convert<T>(*found, where(field));
  }
  template <class T>
  T get_or(std::string_view field, T fallback) const {
    const Json* found = json_find(value, field, where());
    return found == nullptr || found->is_null() ? fallback : json_convert<T>(*found, where(field));
  }

  /// true or false where the field is there; null is refused.
  bool flag(std::string_view field, bool fallback) const {
    const Json* found = json_find(value, field, where());
    return found == nullptr ? fallback : json_convert<bool>(*found, where(field));
  }

  /// A field that may be absent or null.
  std::optional<JsonNode> child(std::string_view field) const {
    const Json* found = json_find(value, field, where());
    if (found == nullptr || found->is_null()) return std::nullopt;
    return JsonNode{*found, file, path_of(field)};
  }
  JsonNode required(std::string_view field) const {
    if (auto found = child(field)) return *found;
    fail<FormatError>(where(field), "a value", "no such field");
  }
  /// The elements of an array; the field may be absent or null.
  std::vector<JsonNode> elements(std::string_view field) const {
    std::vector<JsonNode> out;
    const auto array = child(field);
    if (!array) return out;
    if (!array->value.is_array()) fail<FormatError>(array->where(), "an array", shown(array->value));
    for (std::size_t i = 0; i < array->value.size(); ++i)
      out.push_back({array->value[i], file, array->path + "[" + std::to_string(i) + "]"});
    return out;
  }

  std::string type() const { return get<std::string>("type"); }
  [[noreturn]] void unknown_type(std::string_view known) const {
    fail<FormatError>(where("type"), "one of " + std::string(known), in_quotes(type()));
  }
};

/// A string of exactly one character.
inline char32_t one_character(const JsonNode& node, std::string_view field, const std::string& text) {
  std::size_t end = 0;
  const char32_t c = text.empty() ? 0 : next_code_point(text, end);
  if (text.empty() || end != text.size()) fail<FormatError>(node.where(field), "one character", in_quotes(text));
  return c;
}

}  // namespace fedlora::detail
