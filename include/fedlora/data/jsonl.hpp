// SPDX-License-Identifier: Apache-2.0
// Records of JSON Lines files: an object on every line, of which the named fields are kept as text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/data/csv.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora {

/// A field asked of every object.
struct JsonlField {
  std::string name;
  bool strings_only = true;  ///< texts are strings; labels and ids may also be numbers or booleans
  /// Labels may also be an array of these: each of its elements with a NUL behind it, which no text holds.
  bool arrays = false;
};

namespace detail {

/// Hears of an object from JsonParser: a number is kept as it was written, and nothing unasked is stored.
class JsonlListener {
 public:
  static constexpr std::string_view kind = "a JSON object, whole on its line", end = "the end of the line";

  JsonlListener(std::span<const JsonlField> fields, std::string_view place, std::vector<std::string>& values)
      : fields_(fields), place_(place), values_(values), seen_(fields.size(), false) {}

  void null() { refuse("null"); }
  void boolean(bool value) { scalar(value ? "true" : "false", "a boolean", false); }
  void number(std::string_view written) {
    if (written.back() >= '0' && written.back() <= '9')
      scalar(written, "a number", false);
    else  // NaN or an infinity, which Python writes where a value is missing
      refuse(written, "a finite number");
  }
  void string(const std::string& value) { scalar(value, "a string", true); }

  void begin_object() {
    if (depth_ > 0) refuse(in_array_ ? "an object within an array" : "an object");
    ++depth_;
  }
  void begin_array() {
    if (depth_ == 1 && !wanted_.empty() && takes_arrays())
      in_array_ = true;
    else
      refuse(in_array_ ? "an array within an array" : "an array");
    ++depth_;
  }
  void end_object() { --depth_; }
  void end_array() {
    if (--depth_ == 1) in_array_ = false;
  }

  void key(std::string name) {
    if (depth_ != 1) return;
    wanted_.clear();
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      if (fields_[i].name != name) continue;
      if (seen_[i]) fail<FormatError>(where(fields_[i]), "one value", "the field twice");
      seen_[i] = true;
      wanted_.push_back(i);
    }
    if (names_.size() < 40) names_.push_back(std::move(name));
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
  bool takes_arrays() const {
    return std::all_of(wanted_.begin(), wanted_.end(), [&](std::size_t i) { return fields_[i].arrays; });
  }

  std::string where(const JsonlField& field) const {
    return std::string(place_).append(", field ").append(printable(field.name));
  }

  static std::string expected_of(const JsonlField& field, std::string_view number = "a number") {
    if (field.strings_only) return "a string";
    return "a string, " + std::string(number) + " or a boolean" + (field.arrays ? ", or an array of them" : "");
  }

  void check_within_object(std::string_view got) const {
    if (depth_ == 0) fail<FormatError>(place_, "a JSON object (one on every line, nothing around them)", got);
  }

  /// A value that no field takes.
  void refuse(std::string_view got, std::string_view number = "a number") const {
    check_within_object(got);
    if (wanted_.empty()) return;
    const JsonlField& field = fields_[wanted_.front()];
    fail<FormatError>(where(field), expected_of(field, number), got);
  }

  void scalar(std::string_view value, std::string_view got, bool is_string) {
    check_within_object(got);
    for (const std::size_t i : wanted_) {
      if (fields_[i].strings_only && !is_string) fail<FormatError>(where(fields_[i]), expected_of(fields_[i]), got);
      if (value.find('\0') != std::string_view::npos)
        fail<FormatError>(where(fields_[i]), "text without NUL bytes", "a NUL");
      values_[i].append(value);
      if (in_array_) values_[i].push_back('\0');
    }
  }

  std::span<const JsonlField> fields_;
  std::string_view place_;
  std::vector<std::string>& values_;
  std::vector<bool> seen_;
  std::vector<std::size_t> wanted_;  // the fields the last key of the outer object names; none within unasked values
  std::vector<std::string> names_;   // what the object has, for the message about what it lacks
  std::size_t depth_ = 0;
  bool in_array_ = false;  // of a field that takes one
};

}  // namespace detail

/// Reads JSON Lines: a JSON object on every line, as `parse_json` reads one but for its keys, of which those that are
/// not asked for may come again; lines of nothing but white space are passed over. Numbers and booleans come out
/// exactly as written ("1", "1.0", "-0", "true"), arrays as JsonlField says.
///
/// Errors (FormatError: file, line, field or byte): broken JSON, a line that is not an object, a field asked for that
/// is missing, twice there, null, NaN, infinite or of a wrong type, a NUL.
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
      if (line.find('\0') != std::string_view::npos) fail<FormatError>(place, "text without NUL bytes", "a NUL");
      record.fields.assign(fields_.size(), {});
      detail::JsonlListener listener(fields_, place, record.fields);
      detail::JsonParser(line, place, listener).whole();
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
