// SPDX-License-Identifier: Apache-2.0
// Tables of labelled texts, read from CSV, TSV and JSON Lines files.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/data/csv.hpp"
#include "fedlora/data/jsonl.hpp"
#include "fedlora/data/labels.hpp"
#include "fedlora/io/file.hpp"

namespace fedlora {

/// Which columns of a file are what. A column is a name, or in a CSV or TSV file without a header its number from 1.
struct TableColumns {
  std::vector<std::string> text;  ///< joined by one space
  std::string text_pair = {};     ///< the second text of a pair; empty: none
  std::string label = {};         ///< empty: none
  std::string id = {};            ///< who an example belongs to, for a natural partition; empty: none
};

/// Labelled texts. Every vector that is not empty has one entry per example.
struct Table {
  std::string source;  ///< the file, for messages
  std::vector<std::string> text;
  std::vector<std::string> text_pair;
  std::vector<std::string> label;
  std::vector<std::string> id;
  std::vector<Index> line;  ///< where in the file each example starts, from 1

  Index size() const { return static_cast<Index>(text.size()); }

  /// The distinct labels, sorted: whole numbers by value, before all others, which go by bytes.
  std::vector<std::string> label_names() const {
    const std::set<std::string, LabelOrder> names(label.begin(), label.end());
    return {names.begin(), names.end()};
  }

  /// The number of every example's label in `names` (usually the `label_names()` of the training file).
  /// Throws FormatError for a label that is not there, naming file, line, label and the names; ConfigError for a name
  /// that comes twice, and for a table without labels.
  std::vector<std::int32_t> label_ids(std::span<const std::string> names) const;

  /// Calls every label among `labels` by the name of the row that it was matched with.
  void name_labels(std::span<const std::string> labels, const LabelMatch& match);

  /// The examples named, in the order named.
  Table select(std::span<const Index> examples) const;
};

namespace detail {

inline std::string quoted_list(std::span<const std::string> names, std::size_t limit = 40) {
  std::string list;
  for (std::size_t i = 0; i < names.size() && i < limit; ++i)
    list.append(i == 0 ? "" : ", ").append(in_quotes(names[i], 60));
  if (names.size() > limit) list.append(" and ").append(std::to_string(names.size() - limit)).append(" more");
  return list;
}

/// The column number that `name` spells, or 0.
inline Index column_number(std::string_view name) {
  Index number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  return error == std::errc() && end == name.data() + name.size() && name.front() >= '1' && name.front() <= '9' ? number
                                                                                                                : 0;
}

/// Every column asked for, in the order of the record that `append_row` takes: texts, then pair, label and id where
/// asked.
inline std::vector<std::string> asked_columns(const TableColumns& columns) {
  std::vector<std::string> asked = columns.text;
  for (const auto* one : {&columns.text_pair, &columns.label, &columns.id})
    if (!one->empty()) asked.push_back(*one);
  return asked;
}

/// Appends a row whose field `where[i]` is the asked column i.
inline void append_row(Table& table, const TableColumns& columns, Record& record, std::span<const std::size_t> where) {
  const std::size_t texts = columns.text.size();
  std::string text = record.fields[where[0]];
  for (std::size_t i = 1; i < texts; ++i) text.append(" ").append(record.fields[where[i]]);
  table.text.push_back(std::move(text));
  std::size_t next = texts;
  if (!columns.text_pair.empty()) table.text_pair.push_back(record.fields[where[next++]]);
  if (!columns.label.empty()) table.label.push_back(record.fields[where[next++]]);
  if (!columns.id.empty()) {
    const std::string& id = record.fields[where[next]];
    if (id.empty())
      fail<FormatError>(table.source + ", line " + std::to_string(record.line) + ", column " + printable(columns.id),
                        "whom the example belongs to", "an empty field");
    table.id.push_back(id);
  }
  table.line.push_back(record.line);
}

/// True when the first row of a file names its columns. It does if any column asked for is a name rather than a number.
/// If all are numbers it does only when it is itself a row of distinct whole numbers that holds all of them, as in
/// files whose header is 0, 1, 2…: a row of data holds a text.
inline bool first_row_is_header(std::span<const std::string> asked, std::span<const std::string> first) {
  if (!std::all_of(asked.begin(), asked.end(), [](const auto& name) { return column_number(name) > 0; })) return true;
  const std::set<std::string> names(first.begin(), first.end());
  return names.size() == first.size() &&
         std::all_of(first.begin(), first.end(),
                     [](const auto& name) { return name == "0" || column_number(name) > 0; }) &&
         std::all_of(asked.begin(), asked.end(), [&](const auto& name) { return names.contains(name); });
}

/// Which field of a record each asked column is.
inline std::vector<std::size_t> locate_columns(std::span<const std::string> asked, const Record& first, bool header,
                                               const std::string& file) {
  const std::string place = file + ", line " + std::to_string(first.line);
  std::vector<std::size_t> where;
  for (const std::string& name : asked) {
    if (!header) {
      const Index number = column_number(name);
      if (number > static_cast<Index>(first.fields.size()))
        fail<FormatError>(place, "a column " + name + " (no column is asked for by name, so the file has no header)",
                          std::to_string(first.fields.size()) + " columns");
      where.push_back(static_cast<std::size_t>(number - 1));
      continue;
    }
    const auto found = std::find(first.fields.begin(), first.fields.end(), name);
    if (found == first.fields.end())
      fail<FormatError>(
          place, "a column named " + in_quotes(name) + " in the header (in a file without one, columns go by number)",
          quoted_list(first.fields));
    if (std::find(found + 1, first.fields.end(), name) != first.fields.end())
      fail<FormatError>(place, "one column named " + in_quotes(name), quoted_list(first.fields));
    where.push_back(static_cast<std::size_t>(found - first.fields.begin()));
  }
  return where;
}

template <class Reader>
void read_delimited(Reader reader, const TableColumns& columns, Table& table) {
  const auto asked = asked_columns(columns);
  Record record;
  if (!reader.next(record)) fail<FormatError>(table.source, "rows", "an empty file");
  const std::size_t width = record.fields.size();
  const bool header = first_row_is_header(asked, record.fields);
  const auto where = locate_columns(asked, record, header, table.source);
  if (!header) append_row(table, columns, record, where);
  while (reader.next(record)) {
    if (record.fields.size() != width)
      fail<FormatError>(table.source + ", line " + std::to_string(record.line),
                        std::to_string(width) + " columns, as in the first row", std::to_string(record.fields.size()));
    append_row(table, columns, record, where);
  }
  if (table.text.empty()) fail<FormatError>(table.source, "rows", "a header and nothing below it");
}

inline void read_json_lines(JsonlReader reader, const TableColumns& columns, Table& table) {
  std::vector<std::size_t> where(asked_columns(columns).size());
  for (std::size_t i = 0; i < where.size(); ++i) where[i] = i;
  Record record;
  while (reader.next(record)) append_row(table, columns, record, where);
  if (table.text.empty()) fail<FormatError>(table.source, "rows", "an empty file");
}

}  // namespace detail

inline std::vector<std::int32_t> Table::label_ids(std::span<const std::string> names) const {
  if (label.empty()) fail<ConfigError>(source, "a label column", "a table read without one");
  std::unordered_map<std::string_view, std::int32_t> number;
  for (const std::string& name : names)
    if (!number.emplace(name, static_cast<std::int32_t>(number.size())).second)
      fail<ConfigError>(source + ", label names", "distinct names", detail::in_quotes(name) + " twice");
  std::vector<std::int32_t> ids;
  ids.reserve(label.size());
  for (std::size_t i = 0; i < label.size(); ++i) {
    const auto found = number.find(label[i]);
    if (found == number.end()) {
      const std::string place =
          i < line.size() ? ", line " + std::to_string(line[i]) : ", example " + std::to_string(i);
      fail<FormatError>(source + place + ", label", "one of " + detail::quoted_list(names),
                        detail::in_quotes(label[i]));
    }
    ids.push_back(found->second);
  }
  return ids;
}

inline void Table::name_labels(std::span<const std::string> labels, const LabelMatch& match) {
  std::map<std::string, std::string, std::less<>> names;
  for (std::size_t i = 0; i < labels.size(); ++i)
    names.emplace(labels[i], match.names[static_cast<std::size_t>(match.rows[i])]);
  for (std::string& one : label)
    if (const auto found = names.find(one); found != names.end()) one = found->second;
}

inline Table Table::select(std::span<const Index> examples) const {
  Table chosen;
  chosen.source = source;
  for (const Index example : examples)
    if (example < 0 || example >= size())
      fail<ShapeError>(source, "an example in [0, " + std::to_string(size()) + ")", std::to_string(example));
  const auto copy = [&](const auto& from, auto& to) {
    if (from.empty()) return;
    to.reserve(examples.size());
    for (const Index example : examples) to.push_back(from[static_cast<std::size_t>(example)]);
  };
  copy(text, chosen.text);
  copy(text_pair, chosen.text_pair);
  copy(label, chosen.label);
  copy(id, chosen.id);
  copy(line, chosen.line);
  return chosen;
}

/// Reads a table; the extension of `file.name` says how: .csv (see CsvReader), .tsv (TsvReader) or .jsonl
/// (JsonlReader).
///
/// CSV and TSV: if any column asked for is a name, the first row is the header. If all are numbers from 1 the file has
/// no header, unless its first row is nothing but distinct whole numbers that include all of those asked for: then
/// these are names. JSON Lines: columns are always names; texts are strings, labels and ids strings, numbers or
/// booleans, kept as written.
///
/// Throws FormatError naming file, line and column for anything that breaks the format: a row with more or fewer
/// columns than the first, bad quoting, invalid UTF-8, NUL bytes, a missing column (with those there are), a header
/// name asked for that comes twice, a file without rows, an empty id. ConfigError when no text column is asked for.
inline Table read_table(const Bytes& file, const TableColumns& columns) {
  if (columns.text.empty()) fail<ConfigError>(file.name, "at least one text column", "none");
  for (const std::string& name : columns.text)
    if (name.empty()) fail<ConfigError>(file.name + ", text column", "a name or a number", "an empty name");
  std::string extension = std::filesystem::path(file.name).extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  Table table;
  table.source = file.name;
  if (extension == ".csv") {
    detail::read_delimited(CsvReader(file.text(), file.name), columns, table);
  } else if (extension == ".tsv") {
    detail::read_delimited(TsvReader(file.text(), file.name), columns, table);
  } else if (extension == ".jsonl") {
    std::vector<JsonlField> fields;
    for (const std::string& name : columns.text) fields.push_back({name, true});
    if (!columns.text_pair.empty()) fields.push_back({columns.text_pair, true});
    if (!columns.label.empty()) fields.push_back({columns.label, false});
    if (!columns.id.empty()) fields.push_back({columns.id, false});
    detail::read_json_lines(JsonlReader(file.text(), file.name, std::move(fields)), columns, table);
  } else {
    fail<FormatError>(file.name, "a table named .csv, .tsv or .jsonl",
                      extension.empty() ? "no extension" : detail::printable(extension));
  }
  return table;
}

/// Reads a table from a file. Throws IoError when it cannot be read, and what the other overload throws.
inline Table read_table(const std::filesystem::path& file, const TableColumns& columns) {
  return read_table(map_file(file), columns);
}

}  // namespace fedlora
