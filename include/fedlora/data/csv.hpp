// SPDX-License-Identifier: Apache-2.0
// Records of CSV (RFC 4180) and TSV files. The readers are strict: whatever would make a row mean something else than
// its author meant is an error that names file, line and column, never a guess.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/core/utf8.hpp"

namespace fedlora {

/// One row of a delimited file.
struct Record {
  Index line = 0;  ///< the line, counted from 1, on which the record starts: quoted fields may span several
  std::vector<std::string> fields;
};

namespace detail {

/// A bound on what one record may make the reader allocate. Far more columns than any table of texts has.
inline constexpr std::size_t max_fields_per_record = 65536;

/// The text of a file behind its byte order mark, which says nothing about the first field.
/// \throws FormatError for the mark of UTF-16, in which spreadsheets save "Unicode text".
inline std::string_view after_byte_order_mark(std::string_view text, std::string_view file) {
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF"))
    fail<FormatError>(file, "UTF-8", "UTF-16 (iconv -f UTF-16 -t UTF-8 converts it)");
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  return text;
}

/// What every reader of records needs: the text, the place in it, and errors that name the place.
class RecordCursor {
 public:
  RecordCursor(std::string_view text, std::string file)
      : text_(after_byte_order_mark(text, file)), file_(std::move(file)) {}

 protected:
  bool at_end() const { return position_ >= text_.size(); }
  bool at(char c) const { return position_ < text_.size() && text_[position_] == c; }

  /// Steps over LF, CRLF, or a CR that ends the file.
  bool take_line_end() {
    if (at('\n')) {
      ++position_;
    } else if (at('\r') && (position_ + 1 == text_.size() || text_[position_ + 1] == '\n')) {
      position_ = std::min(position_ + 2, text_.size());
    } else {
      return false;
    }
    ++line_;
    return true;
  }

  std::string where(const Record& record) const {
    return file_ + ", line " + std::to_string(record.line) + ", column " + std::to_string(record.fields.size() + 1);
  }

  [[noreturn]] void broken(const Record& record, std::string_view expected, std::string_view got) const {
    fail<FormatError>(where(record), expected, got);
  }

  /// Steps over empty lines to where a record begins. False at the end of the file.
  bool begin(Record& record) {
    while (take_line_end()) {
    }
    record.fields.clear();
    record.line = line_;
    return !at_end();
  }

  /// Appends a field that passed the checks every field must pass.
  void add(Record& record, std::string field) const {
    if (const auto nul = field.find('\0'); nul != std::string::npos)
      broken(record, "text without NUL bytes", "a NUL after " + in_quotes(std::string_view(field).substr(0, nul)));
    if (const auto good = first_invalid_utf8(field); good != std::string_view::npos)
      broken(record, "valid UTF-8 (iconv converts other encodings)",
             in_quotes(std::string_view(field).substr(good, 4)) + " after " + std::to_string(good) +
                 " bytes of the field");
    if (record.fields.size() >= max_fields_per_record)
      broken(record, "at most " + std::to_string(max_fields_per_record) + " columns", "more");
    record.fields.push_back(std::move(field));
  }

  std::string_view text_;
  std::string file_;
  std::size_t position_ = 0;
  Index line_ = 1;
};

}  // namespace detail

/// Reads CSV as RFC 4180 says: fields apart by commas; a field with commas, quotes or line breaks stands in double
/// quotes, and a quote inside is doubled. Lines end with LF or CRLF, the last one may lack its end, and a UTF-8 byte
/// order mark may come first. Line breaks inside quotes are kept as they are. An empty line is no record (a record of
/// one empty field is `""`).
///
/// Errors (FormatError: file, line where the record starts, column from 1): text after a closing quote, a quote inside
/// an unquoted field, a quote never closed, a CR alone outside quotes, invalid UTF-8, a NUL byte.
class CsvReader : private detail::RecordCursor {
 public:
  /// `text` must outlive the reader; `file` is its name in messages.
  CsvReader(std::string_view text, std::string file) : RecordCursor(text, std::move(file)) {}

  /// Reads the next record into `record`. False at the end of the file.
  bool next(Record& record) {
    if (!begin(record)) return false;
    for (;;) {
      add(record, at('"') ? quoted(record) : unquoted(record));
      if (at_end() || take_line_end()) return true;
      ++position_;  // the comma, the only thing a field stops at besides
    }
  }

 private:
  std::string quoted(const Record& record) {
    std::string field;
    ++position_;
    for (;;) {
      const auto quote = text_.find('"', position_);
      if (quote == std::string_view::npos) broken(record, "a closing quote", "the end of the file");
      const auto part = text_.substr(position_, quote - position_);
      field.append(part);
      line_ += static_cast<Index>(std::count(part.begin(), part.end(), '\n'));
      position_ = quote + 1;
      if (!at('"')) break;
      field.push_back('"');
      ++position_;
    }
    if (at(';') || at('\t'))
      broken(record, "columns apart by commas (or, in a .tsv file, by tabs)", at(';') ? "a semicolon" : "a tab");
    const bool line_end = at('\n') || (at('\r') && (position_ + 1 == text_.size() || text_[position_ + 1] == '\n'));
    if (!at_end() && !at(',') && !line_end)
      broken(record,
             "a comma or the end of the line after the closing quote (a quote inside a quoted field is doubled)",
             detail::in_quotes(text_.substr(position_, 12)));
    return field;
  }

  std::string unquoted(const Record& record) {
    const auto end = std::min(text_.find_first_of(",\n\r\"", position_), text_.size());
    std::string field(text_.substr(position_, end - position_));
    position_ = end;
    if (at('"'))
      broken(record, "an unquoted field without quotes (quote the whole field, and double the quotes inside)",
             detail::in_quotes(field + "\"", 40));
    if (at('\r') && position_ + 1 < text_.size() && text_[position_ + 1] != '\n')
      broken(record, "lines that end with LF or CRLF", "a CR alone after " + detail::in_quotes(field, 40));
    return field;
  }
};

/// Reads TSV: a tab separates, a line end ends, and nothing is quoted: a double quote is a character like any other.
/// Lines end with LF or CRLF; a UTF-8 byte order mark may come first; an empty line is no record.
///
/// Errors (FormatError: file, line, column from 1): invalid UTF-8, a NUL byte.
class TsvReader : private detail::RecordCursor {
 public:
  /// `text` must outlive the reader; `file` is its name in messages.
  TsvReader(std::string_view text, std::string file) : RecordCursor(text, std::move(file)) {}

  /// Reads the next record into `record`. False at the end of the file.
  bool next(Record& record) {
    if (!begin(record)) return false;
    for (;;) {
      const auto end = std::min(text_.find_first_of("\t\n", position_), text_.size());
      std::string_view field = text_.substr(position_, end - position_);
      const bool last = end == text_.size() || text_[end] == '\n';
      if (last && field.ends_with('\r')) field.remove_suffix(1);
      add(record, std::string(field));
      position_ = std::min(end + 1, text_.size());
      if (!last) continue;
      ++line_;
      return true;
    }
  }
};

}  // namespace fedlora
