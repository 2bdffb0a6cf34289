// SPDX-License-Identifier: Apache-2.0
// Records of JSON Lines files: an object on every line, of which the named fields are kept as text.
#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/data/csv.hpp"

namespace fedlora {

/// A field asked of every object.
struct JsonlField {
  std::string name;
  bool strings_only = true;  ///< texts are strings; labels and ids may also be numbers or booleans
  /// Labels may also be an array of these: each of its elements with a NUL behind it, which no text holds.
  bool arrays = false;
};

namespace detail {

/// Listens to nlohmann's parser, so that a number is kept as it was written and nothing unasked is stored.
class JsonlListener {
 public:
  JsonlListener(std::span<const JsonlField> fields, std::string place, std::vector<std::string>& values)
      : fields_(fields), place_(std::move(place)), values_(values), seen_(fields.size(), false) {}

  bool null() { return scalar("null", "null", false); }
  bool boolean(bool value) { return scalar(value ? "true" : "false", "a boolean", false); }
  // The lexer calls this only for numbers with a minus sign, so a zero was written "-0".
  bool number_integer(std::int64_t value) {
    return scalar(value == 0 ? "-0" : std::to_string(value), "a number", false);
  }
  bool number_unsigned(std::uint64_t value) { return scalar(std::to_string(value), "a number", false); }
  bool number_float(double, const std::string& written) { return scalar(written, "a number", false); }
  bool string(std::string& value) { return scalar(std::move(value), "a string", true); }
  bool binary(nlohmann::json::binary_t&) { return false; }

  bool start_object(std::size_t) { return open("an object"); }
  bool start_array(std::size_t) {
    if (depth_ == 0) not_an_object("an array");
    if (depth_ == 1 && !wanted_.empty() && takes_arrays()) {
      in_array_ = true;
      ++depth_;
      return true;
    }
    return open("an array");
  }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    if (depth_ != 1) return true;
    wanted_.clear();
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      if (fields_[i].name != name) continue;
      if (seen_[i]) fail<FormatError>(place_ + ", field " + printable(name), "one value", "the field twice");
      seen_[i] = true;
      wanted_.push_back(i);
    }
    if (names_.size() < 40) names_.push_back(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    std::string_view what = error.what();
    // "[json.exception…] parse error at line 1, column 5: what is wrong": the line would be wrong, the column is
    // `position`.
    for (const std::string_view noise : {"] ", ": "})
      if (const auto end = what.find(noise); end != std::string_view::npos) what.remove_prefix(end + noise.size());
    fail<FormatError>(place_ + ", byte " + std::to_string(position), "a JSON object (whole on its line)",
                      printable(what, 300));
  }

  void finish() const {
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      if (seen_[i]) continue;
      std::string got = names_.empty() ? "an object without fields" : "fields ";
      for (std::size_t k = 0; k < names_.size(); ++k) got += (k == 0 ? "" : ", ") + in_quotes(names_[k], 60);
      fail<FormatError>(place_, "a field named " + in_quotes(fields_[i].name), got);
    }
  }

 private:
  // The parser keeps its own stack on the heap; the bound only keeps hostile lines from growing it.
  static constexpr int max_depth = 256;

  [[noreturn]] bool not_an_object(std::string_view got) const {
    fail<FormatError>(place_, "a JSON object (one on every line, nothing around them)", got);
  }

  bool takes_arrays() const {
    return std::all_of(wanted_.begin(), wanted_.end(), [&](std::size_t i) { return fields_[i].arrays; });
  }

  bool open(std::string_view kind) {
    if (depth_ == 1) refuse(kind);
    if (in_array_) refuse(std::string(kind) + " within an array");
    if (++depth_ > max_depth)
      fail<FormatError>(place_, "at most " + std::to_string(max_depth) + " levels of nesting", "more");
    return true;
  }

  bool close() {
    if (--depth_ == 1) in_array_ = false;
    return true;
  }

  void refuse(std::string_view kind) const {
    if (wanted_.empty()) return;
    const JsonlField& field = fields_[wanted_.front()];
    fail<FormatError>(place_ + ", field " + printable(field.name), expected_of(field), kind);
  }

  static std::string expected_of(const JsonlField& field) {
    if (field.strings_only) return "a string";
    return std::string("a string, a number or a boolean") + (field.arrays ? ", or an array of them" : "");
  }

  bool scalar(std::string value, std::string_view kind, bool is_string) {
    if (depth_ == 0) not_an_object(kind);
    if (depth_ > 1 && !in_array_) return true;
    for (const std::size_t i : wanted_) {
      const std::string place = place_ + ", field " + printable(fields_[i].name);
      if (kind == "null" || (fields_[i].strings_only && !is_string))
        fail<FormatError>(place, expected_of(fields_[i]), kind);
      if (value.find('\0') != std::string::npos) fail<FormatError>(place, "text without NUL bytes", "a NUL");
      if (in_array_)
        values_[i].append(value).push_back('\0');
      else
        values_[i] = value;
    }
    return true;
  }

  std::span<const JsonlField> fields_;
  std::string place_;
  std::vector<std::string>& values_;
  std::vector<bool> seen_;
  std::vector<std::size_t> wanted_;  // the fields the last key of the outer object names
  std::vector<std::string> names_;   // what the object has, for the message about what it lacks
  int depth_ = 0;
  bool in_array_ = false;  // of a field that takes one
};

}  // namespace detail

/// Reads JSON Lines: a JSON object (RFC 8259, UTF-8) on every line, lines of nothing but white space passed over.
/// Numbers and booleans come out exactly as written ("1", "1.0", "-0", "true"), arrays as JsonlField says.
///
/// Errors (FormatError: file, line, field): broken JSON, a line that is not an object, a field asked for that is
/// missing, twice there, null or of a wrong type, a NUL.
class JsonlReader {
 public:
  /// `text` must outlive the reader; `file` is its name in messages.
  JsonlReader(std::string_view text, std::string file, std::vector<JsonlField> fields)
      : text_(detail::after_byte_order_mark(text, file)), file_(std::move(file)), fields_(std::move(fields)) {}

  /// Reads the next object: `record.fields[i]` is the value of the field i asked for. False at the end of the file.
  bool next(Record& record) {
    while (!text_.empty()) {
      const auto end = text_.find('\n');
      const std::string_view line = text_.substr(0, end);
      text_.remove_prefix(end == std::string_view::npos ? text_.size() : end + 1);
      record.line = line_++;
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      const std::string place = file_ + ", line " + std::to_string(record.line);
      // To the parser a NUL is the end of the input: it would pass over the rest of the line.
      if (line.find('\0') != std::string_view::npos) fail<FormatError>(place, "text without NUL bytes", "a NUL");
      record.fields.assign(fields_.size(), {});
      detail::JsonlListener listener(fields_, place, record.fields);
      nlohmann::json::sax_parse(line.begin(), line.end(), &listener);
      listener.finish();
      return true;
    }
    return false;
  }

 private:
  std::string_view text_;
  std::string file_;
  std::vector<JsonlField> fields_;
  Index line_ = 1;
};

}  // namespace fedlora
