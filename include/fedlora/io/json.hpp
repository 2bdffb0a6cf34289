// SPDX-License-Identifier: Apache-2.0
// JSON from files that nobody vouches for: bounded, strict, and with errors that name file and field.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/io/file.hpp"

namespace fedlora {

using Json = nlohmann::json;

namespace detail {

inline constexpr std::size_t json_max_bytes = std::size_t{1} << 30;
inline constexpr std::size_t json_max_depth = 256;

/// A byte of a file in a message, from 0; with its line, from 1, where there are several.
inline std::string json_place(std::string_view file, std::string_view text, std::size_t at) {
  const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
  return std::string(file) + ", byte " + std::to_string(at) + (line > 1 ? " (line " + std::to_string(line) + ")" : "");
}

/// Appends a value as Python's json.dumps spells it where it has a number that JSON has no word for.
/// `indent` below 0: in one line.
inline void append_json(const Json& value, int indent, int depth, std::string& out) {
  const auto line = [&](int level) {
    if (indent >= 0) out.append("\n").append(static_cast<std::size_t>(indent * level), ' ');
  };
  const auto each = [&](char open, char close, auto&& item) {
    out.push_back(open);
    for (auto entry = value.begin(); entry != value.end(); ++entry) {
      if (entry != value.begin()) out.push_back(',');
      line(depth + 1);
      item(entry);
      append_json(*entry, indent, depth + 1, out);
    }
    if (!value.empty()) line(depth);
    out.push_back(close);
  };
  if (value.is_object()) {
    each('{', '}', [&](const auto& entry) {
      append_json(entry.key(), indent, depth, out);
      out.append(indent >= 0 ? ": " : ":");
    });
  } else if (value.is_array()) {
    each('[', ']', [](const auto&) {});
  } else if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    const double number = value.get<double>();
    out.append(std::isnan(number) ? "NaN" : number > 0 ? "Infinity" : "-Infinity");
  } else {
    out.append(value.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
}

/// Parses what Python's json.loads takes, as `parse_json` states it, and tells a handler of it as it comes: null(),
/// boolean(bool), number(as it was written, NaN, Infinity and -Infinity too), string(std::string), begin_object(), and
/// in it key(std::string) before every value, end_object(), begin_array(), end_array(). Messages call the text
/// Handler::kind and its end Handler::end. Nesting is bounded, so that recursion is.
template <class Handler>
class JsonParser {
 public:
  /// `place` is where the text is from, in messages. All three must outlive the parser.
  JsonParser(std::string_view text, std::string_view place, Handler& handler)
      : text_(text), place_(place), handler_(handler) {}

  /// One value, which fills the text. \throws FormatError at `place`; and what the handler throws.
  void whole() {
    if (const std::size_t invalid = first_invalid_utf8(text_); invalid != std::string_view::npos)
      fail<FormatError>(json_place(place_, text_, invalid), "JSON in UTF-8", in_quotes(text_.substr(invalid, 4)));
    value(0);
    skip_space();
    if (at_ < text_.size()) broken("the end after the value");
  }

 private:
  void value(std::size_t depth) {
    skip_space();
    const char first = peek();
    if (first == '{')
      object(depth + 1);
    else if (first == '[')
      array(depth + 1);
    else if (first == '"')
      handler_.string(string());
    else if (first == '-' || is_digit(first))
      handler_.number(number());
    else if (take("null"))
      handler_.null();
    else if (take("true"))
      handler_.boolean(true);
    else if (take("false"))
      handler_.boolean(false);
    else if (take("NaN"))
      handler_.number("NaN");
    else if (take("Infinity"))
      handler_.number("Infinity");
    else
      broken("a value");
  }

  void object(std::size_t depth) {
    check_depth(depth);
    handler_.begin_object();
    ++at_;
    skip_space();
    if (take("}")) return handler_.end_object();
    do {
      skip_space();
      if (peek() != '"') broken("a key in double quotes");
      std::string key = string();
      skip_space();
      if (!take(":")) broken("':' after the key " + in_quotes(key));
      handler_.key(std::move(key));
      value(depth);
      skip_space();
    } while (take(","));
    if (!take("}")) broken("',' or '}'");
    handler_.end_object();
  }

  void array(std::size_t depth) {
    check_depth(depth);
    handler_.begin_array();
    ++at_;
    skip_space();
    if (take("]")) return handler_.end_array();
    do {
      value(depth);
      skip_space();
    } while (take(","));
    if (!take("]")) broken("',' or ']'");
    handler_.end_array();
  }

  std::string string() {
    std::string result;
    const std::size_t begin = at_++;
    for (;;) {
      const std::size_t run = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
             static_cast<unsigned char>(text_[at_]) >= 0x20)
        ++at_;
      result.append(text_, run, at_ - run);
      if (at_ == text_.size()) {
        at_ = begin;
        broken("a string that ends");
      }
      if (text_[at_] == '"') break;
      if (text_[at_] != '\\') broken("control characters in strings written as \\u00NN");
      escape(result);
    }
    ++at_;
    return result;
  }

  /// One escape, which starts here.
  void escape(std::string& result) {
    constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    const std::size_t begin = at_++;
    if (peek() != 'u') {
      const std::size_t which = at_ < text_.size() ? letters.find(text_[at_]) : letters.npos;
      if (which == letters.npos) broken_at(begin, "an escape of JSON");
      result.push_back(meanings[which]);
      ++at_;
      return;
    }
    std::uint32_t point = four_digits(begin);
    if (point >= 0xD800 && point < 0xE000) {  // Python keeps half a pair; UTF-8 has no place for one
      const std::string_view expected = "both halves of a surrogate pair, the high one first";
      if (point >= 0xDC00 || text_.substr(at_, 2) != "\\u") broken_at(begin, expected);
      ++at_;
      const std::uint32_t low = four_digits(begin);
      if (low < 0xDC00 || low >= 0xE000) broken_at(begin, expected);
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(point, result);
  }

  /// The number behind the 'u' that stands here; `begin`: where its escape starts.
  std::uint32_t four_digits(std::size_t begin) {
    std::uint32_t number = 0;
    for (int i = 0; i < 4; ++i) {
      ++at_;
      const char c = peek();
      const int digit = is_digit(c)            ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) broken_at(begin, "four hexadecimal digits after \\u");
      number = number * 16 + static_cast<std::uint32_t>(digit);
    }
    ++at_;
    return number;
  }

  static void append_utf8(std::uint32_t point, std::string& out) {
    const auto tail = [&](int shift) { out.push_back(static_cast<char>(0x80 | (point >> shift & 0x3F))); };
    if (point < 0x80) {
      out.push_back(static_cast<char>(point));
      return;
    }
    out.push_back(static_cast<char>(point < 0x800     ? 0xC0 | point >> 6
                                    : point < 0x10000 ? 0xE0 | point >> 12
                                                      : 0xF0 | point >> 18));
    if (point >= 0x10000) tail(12);
    if (point >= 0x800) tail(6);
    tail(0);
  }

  std::string_view number() {
    const std::size_t begin = at_;
    if (take("-") && take("Infinity")) return text_.substr(begin, at_ - begin);
    const auto digits = [&] {
      if (!is_digit(peek())) broken("a digit");
      while (is_digit(peek())) ++at_;
    };
    if (peek() == '0')
      ++at_;
    else
      digits();
    if (take(".")) digits();
    if (take("e") || take("E")) {
      if (!take("+")) take("-");
      digits();
    }
    return text_.substr(begin, at_ - begin);
  }

  void check_depth(std::size_t depth) const {
    if (depth > json_max_depth)
      fail<FormatError>(place_, "JSON nested at most " + std::to_string(json_max_depth) + " deep", "deeper nesting");
  }

  [[noreturn]] void broken(std::string_view expected) const { broken_at(at_, expected); }
  [[noreturn]] void broken_at(std::size_t at, std::string_view expected) const {
    const std::string_view rest = text_.substr(at), line = rest.substr(0, rest.find_first_of("\r\n"));
    fail<FormatError>(json_place(place_, text_, at), std::string(Handler::kind).append(" (").append(expected) + ")",
                      rest.empty()   ? std::string(Handler::end)
                      : line.empty() ? "the end of the line"
                                     : in_quotes(line, 30));
  }

  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\n\r", at_), text_.size()); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }
  /// Passes over `word` if it stands here.
  bool take(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  std::string_view text_, place_;
  Handler& handler_;
  std::size_t at_ = 0;
};

/// Makes a value of what JsonParser tells. J is Json, or nlohmann's type that keeps the order of keys.
template <class J>
class JsonTree {
 public:
  static constexpr std::string_view kind = "JSON", end = "the end of the text";

  explicit JsonTree(std::string_view file) : file_(file) {}

  void null() { add(nullptr); }
  void boolean(bool value) { add(value); }
  void number(std::string_view written) {
    const char* const first = written.data();
    const char* const last = first + written.size();
    const auto whole = [&](auto integer) {
      const auto [behind, error] = std::from_chars(first, last, integer);
      if (error != std::errc() || behind != last) return false;
      add(integer);
      return true;
    };
    if (*first == '-' ? whole(std::int64_t{}) : whole(std::uint64_t{})) return;
    if (*first == 'N') return add(std::numeric_limits<double>::quiet_NaN());
    J value = J::parse(first, last, nullptr, false);  // as a double; nlohmann reads it the same under every locale
    if (value.is_discarded()) value = (*first == '-' ? -1 : 1) * std::numeric_limits<double>::infinity();
    add(std::move(value));
  }
  void string(std::string value) { add(std::move(value)); }

  void begin_object() { open_.push_back({J::object(), {}, {}}); }
  void begin_array() { open_.push_back({J::array(), {}, {}}); }
  void key(std::string name) { open_.back().key = std::move(name); }
  void end_object() { close(); }
  void end_array() { close(); }

  J take() { return std::move(value_); }

 private:
  /// An object or array whose end has not come.
  struct Open {
    J value;
    std::string key;                            // of the member that comes
    std::map<std::string, std::size_t> places;  // of the keys, where the object does not look them up by itself
  };

  void close() {
    J whole = std::move(open_.back().value);
    open_.pop_back();
    add(std::move(whole));
  }

  void add(J value) {
    if (open_.empty()) {
      value_ = std::move(value);
    } else if (Open& in = open_.back(); in.value.is_array()) {
      in.value.push_back(std::move(value));
    } else {
      J& place = place_of(in, value);
      place = std::move(value);
    }
  }

  /// Where the value of the key goes; `member` is what will, and must be the same as what is there.
  J& place_of(Open& in, const J& member) const {
    auto& members = *in.value.template get_ptr<typename J::object_t*>();
    if constexpr (std::is_same_v<J, Json>) {
      const auto [entry, is_new] = members.emplace(std::move(in.key), J());
      if (!is_new) check_same(entry->first, entry->second, member);
      return entry->second;
    } else {  // a list, which would be searched from its front
      const auto [place, is_new] = in.places.emplace(in.key, members.size());
      if (is_new) return members.emplace_back(std::move(in.key), J()).second;
      J& earlier = (members.begin() + static_cast<std::ptrdiff_t>(place->second))->second;
      check_same(place->first, earlier, member);
      return earlier;
    }
  }

  /// Python takes the last of two values; a person may have meant either.
  void check_same(const std::string& key, const J& before, const J& now) const {
    std::string first, second;
    append_json(before, -1, 0, first);
    append_json(now, -1, 0, second);
    if (before != now && first != second)
      fail<FormatError>(
          file_, "every key once in a JSON object, or with one value",
          "the key " + in_quotes(key) + " twice, with " + in_quotes(first, 80) + " and " + in_quotes(second, 80));
  }

  std::string_view file_;
  std::vector<Open> open_;
  J value_;
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
    default: {
      std::string text;
      append_json(value, -1, 0, text);
      return text;
    }
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
      if (!std::isfinite(number)) fail<FormatError>(where, "a finite number", shown(value));
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

/// Parses one JSON value that fills the whole of `file`, as Python's json reads it: RFC 8259, and NaN, Infinity and
/// -Infinity for numbers, which json.dump writes. Integers beyond 64 bits become doubles, numbers beyond doubles
/// infinite. A key that comes again with the same value counts once. At most 1 GiB, nested at most 256 deep, valid
/// UTF-8 without a byte-order mark, no half of a surrogate pair. \throws FormatError naming the file and, where the
/// syntax is at fault, byte and line; for a key with two values it names both.
template <class J = Json>
J parse_json(const Bytes& file) {
  const std::string_view text = file.text();
  if (text.size() > detail::json_max_bytes) {
    fail<FormatError>(file.name, "JSON of at most 1 GiB", std::to_string(text.size()) + " bytes");
  }
  if (text.starts_with("\xEF\xBB\xBF")) {
    fail<FormatError>(file.name + ", byte 0", "JSON in UTF-8 without a byte-order mark",
                      "one (Python's json refuses it too: save the file again without it)");
  }
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF"))
    fail<FormatError>(file.name + ", byte 0", "JSON in UTF-8", "a text in UTF-16");
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos)
    fail<FormatError>(detail::json_place(file.name, text, zero), "JSON", "a zero byte");
  detail::JsonTree<J> tree(file.name);
  detail::JsonParser(text, file.name, tree).whole();
  return tree.take();
}

/// A value as text that `parse_json` and Python's json read back, NaN and infinities too (`dump` would write null).
/// `indent` below 0: in one line.
inline std::string json_text(const Json& value, int indent = -1) {
  std::string text;
  detail::append_json(value, indent, 0, text);
  return text;
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
