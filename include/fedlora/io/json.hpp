// SPDX-License-Identifier: Apache-2.0
// JSON from files that nobody vouches for: bounded, strict, and with errors that name file and field.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/io/file.hpp"

namespace fedlora {

using Json = nlohmann::json;

namespace detail {

inline constexpr std::size_t json_max_bytes = std::size_t{1} << 30;
inline constexpr std::size_t json_max_depth = 256;

/// Builds the value from nlohmann's events, which its own builder does without looking at depth or at repeated keys.
class JsonBuilder {
 public:
  JsonBuilder(std::string_view file, std::size_t bytes) : file_(file), bytes_(bytes) {}

  bool null() { return place(nullptr); }
  bool boolean(bool value) { return place(value); }
  bool number_integer(std::int64_t value) { return place(value); }
  bool number_unsigned(std::uint64_t value) { return place(value); }
  bool number_float(double value, const std::string&) { return place(value); }
  bool string(std::string& value) { return place(std::move(value)); }
  bool binary(Json::binary_t&) { return false; }  // never comes from text

  bool start_object(std::size_t) { return enter(Json::object()); }
  bool end_object() { return leave(); }
  bool start_array(std::size_t) { return enter(Json::array()); }
  bool end_array() { return leave(); }

  bool key(std::string& name) {
    const auto [entry, is_new] = open_.back()->get_ptr<Json::object_t*>()->emplace(std::move(name), nullptr);
    if (!is_new)
      fail<FormatError>(file_, "every key once in a JSON object", "the key " + in_quotes(entry->first) + " twice");
    slot_ = &entry->second;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) {
    // nlohmann counts the bytes read, the end of the input as one more.
    const std::size_t offset = std::min(position > 0 ? position - 1 : 0, bytes_);
    std::string_view reason = error.what();
    if (const std::size_t prefix = reason.find("] "); prefix != std::string_view::npos)
      reason.remove_prefix(prefix + 2);
    if (reason.starts_with("parse error at ")) {
      if (const std::size_t colon = reason.find(": "); colon != std::string_view::npos) reason.remove_prefix(colon + 2);
    }
    fail<FormatError>(std::string(file_) + ", byte " + std::to_string(offset), "JSON", in_quotes(reason, 200));
  }

  Json take() { return std::move(root_); }

 private:
  template <class V>
  Json* put(V&& value) {
    if (open_.empty()) {
      root_ = std::forward<V>(value);
      return &root_;
    }
    if (open_.back()->is_array()) return &open_.back()->get_ptr<Json::array_t*>()->emplace_back(std::forward<V>(value));
    *slot_ = std::forward<V>(value);
    return slot_;
  }

  template <class V>
  bool place(V&& value) {
    put(std::forward<V>(value));
    return true;
  }

  // An element of an array may move when its array grows, but not while it is itself still open.
  bool enter(Json&& value) {
    if (open_.size() == json_max_depth) {
      fail<FormatError>(file_, "JSON nested at most " + std::to_string(json_max_depth) + " deep", "deeper nesting");
    }
    open_.push_back(put(std::move(value)));
    return true;
  }

  bool leave() {
    open_.pop_back();
    return true;
  }

  std::string_view file_;
  std::size_t bytes_;
  Json root_;
  std::vector<Json*> open_;
  Json* slot_ = nullptr;
};

/// A value in a message: its type, and the value itself when it is short.
inline std::string shown(const Json& value) {
  switch (value.type()) {
    case Json::value_t::string:
      return "the string " + in_quotes(value.get_ref<const std::string&>(), 60);
    case Json::value_t::array:
      return "an array of " + std::to_string(value.size());
    case Json::value_t::object:
      return "an object";
    default:
      return value.dump();
  }
}

template <class T>
inline constexpr bool json_no_conversion = false;

template <class T>
T json_convert(const Json& value, const std::string& where);

template <class T>
struct JsonConversion {
  static T of(const Json& value, const std::string& where) {
    if constexpr (std::same_as<T, bool>) {
      if (!value.is_boolean()) fail<FormatError>(where, "true or false", shown(value));
      return value.get<bool>();
    } else if constexpr (std::integral<T>) {
      const bool fits = value.is_number_unsigned()
                            ? std::in_range<T>(value.get<std::uint64_t>())
                            : value.is_number_integer() && std::in_range<T>(value.get<std::int64_t>());
      if (!fits) {
        fail<FormatError>(where,
                          "an integer from " + std::to_string(std::numeric_limits<T>::min()) + " to " +
                              std::to_string(std::numeric_limits<T>::max()),
                          shown(value));
      }
      return value.get<T>();
    } else if constexpr (std::floating_point<T>) {
      if (!value.is_number()) fail<FormatError>(where, "a number", shown(value));
      const double number = value.get<double>();
      if (number > static_cast<double>(std::numeric_limits<T>::max()) ||
          number < static_cast<double>(std::numeric_limits<T>::lowest())) {
        fail<FormatError>(where, "a number that the type holds", shown(value));
      }
      return static_cast<T>(number);
    } else if constexpr (std::same_as<T, std::string>) {
      if (!value.is_string()) fail<FormatError>(where, "a string", shown(value));
      return value.get_ref<const std::string&>();
    } else if constexpr (std::same_as<T, Json>) {
      if (!value.is_object()) fail<FormatError>(where, "an object", shown(value));
      return value;
    } else {
      static_assert(json_no_conversion<T>, "json_get has no conversion to this type");
    }
  }
};

template <class T>
struct JsonConversion<std::vector<T>> {
  static std::vector<T> of(const Json& value, const std::string& where) {
    if (!value.is_array()) fail<FormatError>(where, "an array", shown(value));
    std::vector<T> out;
    out.reserve(value.size());
    for (const Json& element : value)
      out.push_back(json_convert<T>(element, where + "[" + std::to_string(out.size()) + "]"));
    return out;
  }
};

template <class T>
struct JsonConversion<std::map<std::string, T>> {
  static std::map<std::string, T> of(const Json& value, const std::string& where) {
    if (!value.is_object()) fail<FormatError>(where, "an object", shown(value));
    std::map<std::string, T> out;
    for (const auto& [key, element] : value.items()) out.emplace(key, json_convert<T>(element, where + "." + key));
    return out;
  }
};

template <class T>
T json_convert(const Json& value, const std::string& where) {
  return JsonConversion<T>::of(value, where);
}

inline std::string json_where(std::string_view file, std::string_view field) {
  return std::string(file).append(", field ").append(field);
}

/// The field, or null when the object lacks it.
inline const Json* json_find(const Json& object, std::string_view field, std::string_view file) {
  if (!object.is_object()) fail<FormatError>(file, "an object with the field " + in_quotes(field), shown(object));
  const auto found = object.find(field);
  return found == object.end() ? nullptr : &*found;
}

}  // namespace detail

/// Parses one JSON value (RFC 8259) that fills the whole of `file`: at most 1 GiB, nested at most 256 deep, valid
/// UTF-8, finite numbers, every key once. Integers beyond 64 bits become doubles. \throws FormatError naming the file
/// and, where the syntax is at fault, the offset of the byte (from 0).
inline Json parse_json(const Bytes& file) {
  const std::string_view text = file.text();
  if (text.size() > detail::json_max_bytes) {
    fail<FormatError>(file.name, "JSON of at most 1 GiB", std::to_string(text.size()) + " bytes");
  }
  // nlohmann takes a zero byte for the end of its input, and what follows would go unread.
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos) {
    fail<FormatError>(file.name + ", byte " + std::to_string(zero), "JSON", "a zero byte");
  }
  detail::JsonBuilder builder(file.name, text.size());
  Json::sax_parse(text.data(), text.data() + text.size(), &builder);
  return builder.take();
}

/// A field of an object as bool, integer (no fraction, no exponent, in range), float or double (integers too),
/// std::string, Json (an object), or std::vector / std::map<std::string, …> of these. \throws FormatError naming `file`
/// and `field` when the field is missing, of another type or out of range.
template <class T>
T json_get(const Json& object, std::string_view field, std::string_view file) {
  const Json* const value = detail::json_find(object, field, file);
  if (value == nullptr) fail<FormatError>(detail::json_where(file, field), "a value", "no such field");
  return detail::json_convert<T>(*value, detail::json_where(file, field));
}

/// The same, or `fallback` when the field is absent or null.
/// \throws FormatError naming `file` and `field` when the field is there and of another type or out of range.
template <class T>
T json_get_or(const Json& object, std::string_view field, std::string_view file, T fallback) {
  const Json* const value = detail::json_find(object, field, file);
  if (value == nullptr || value->is_null()) return fallback;
  return detail::json_convert<T>(*value, detail::json_where(file, field));
}

}  // namespace fedlora
