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
#include "fedlora/data/targets.hpp"
#include "fedlora/io/file.hpp"

namespace fedlora {

/// Whether the first row of a CSV or TSV file names its columns.
enum class TableHeader {
  detect,  ///< it does if any column asked for is a name; if all are numbers it is data (see `read_table`)
  yes,     ///< columns go by name or, where no column is called that, by number from 1
  no       ///< columns go by number from 1
};

/// Which columns of a file are what. A column is a name, or in a CSV or TSV file without a header its number from 1.
/// What is to be predicted is `label`, `labels` or `targets`, or nothing.
struct TableColumns {
  std::vector<std::string> text;  ///< joined by one space
  std::string text_pair = {};     ///< the second text of a pair; empty: none
  std::string label = {};         ///< one label per example; empty: none
  std::string id = {};            ///< who an example belongs to, for a natural partition; empty: none
  /// Any number of labels per example: one column that names them (in JSON Lines an array, else with `label_separator`
  /// between), or those, one or several, that are called like the labels and hold 0 or 1. One column without a
  /// separator is what its first field says.
  std::vector<std::string> labels = {};
  std::string label_separator = {};
  std::vector<std::string> targets = {};  ///< numbers to predict
  TableHeader header = TableHeader::detect;
};

/// Labelled texts. Every vector that is not empty has one entry per example, unless it says otherwise.
struct Table {
  std::string source;  ///< the file, for messages
  std::vector<std::string> text;
  std::vector<std::string> text_pair;
  std::vector<std::string> label;
  std::vector<std::string> id;
  std::vector<Index> line;  ///< where in the file each example starts, from 1
  std::vector<std::vector<std::string>> label_sets;
  std::vector<std::string> label_columns;  ///< the columns of 0 and 1 that `label_sets` was read from; empty: others
  std::vector<double> targets;             ///< as many numbers for every example, one example after another

  Index size() const { return static_cast<Index>(text.size()); }

  /// The distinct labels, sorted: whole numbers by value, before all others, which go by bytes. With a column for each
  /// label, these columns, in their order.
  std::vector<std::string> label_names() const {
    if (!label_columns.empty()) return label_columns;
    std::set<std::string, LabelOrder> names(label.begin(), label.end());
    for (const auto& labels : label_sets) names.insert(labels.begin(), labels.end());
    return {names.begin(), names.end()};
  }

  /// The number of every example's label in `names` (usually the `label_names()` of the training file).
  /// Throws FormatError for a label that is not there, naming file, line, label and the names; ConfigError for a name
  /// that comes twice, and for a table without labels.
  std::vector<std::int32_t> label_ids(std::span<const std::string> names) const;

  /// The numbers of the labels of every example, ascending, as a Dataset has them.
  struct LabelSets {
    std::vector<std::int32_t> labels;
    std::vector<Index> offsets = {0};  ///< example i has labels[offsets[i] … offsets[i + 1])
  };
  /// Throws as `label_ids`, and FormatError where there are columns for labels but none for one of `names`.
  LabelSets label_set_ids(std::span<const std::string> names) const;

  /// Calls every label among `labels` by the name of the row that it was matched with.
  void name_labels(std::span<const std::string> labels, const LabelMatch& match);

  /// Puts the numbers of every example into the places that `rows` gives them.
  void place_targets(std::span<const Index> rows);

  /// The examples named, in the order named.
  Table select(std::span<const Index> examples) const;
};

namespace detail {

/// The column number that `name` spells, or 0.
inline Index column_number(std::string_view name) {
  Index number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  return error == std::errc() && end == name.data() + name.size() && name.front() >= '1' && name.front() <= '9' ? number
                                                                                                                : 0;
}

/// Every column asked for, in the order of the record that `append_row` takes: texts, then pair, label and id where
/// asked, labels and targets.
inline std::vector<std::string> asked_columns(const TableColumns& columns) {
  std::vector<std::string> asked = columns.text;
  for (const auto* one : {&columns.text_pair, &columns.label, &columns.id})
    if (!one->empty()) asked.push_back(*one);
  for (const auto* several : {&columns.labels, &columns.targets})
    asked.insert(asked.end(), several->begin(), several->end());
  return asked;
}

inline bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == std::string_view::npos; }

/// Appends what a row says is to be predicted: fields `where[next]` on of the record.
inline void append_targets(Table& table, const TableColumns& columns, const Record& record,
                           std::span<const std::size_t> where, std::size_t next) {
  const auto place = [&](const std::string& column) {
    return table.source + ", line " + std::to_string(record.line) + ", column " + printable(column);
  };
  const bool alone = columns.labels.size() == 1;
  if (alone && columns.label_separator.empty() && table.label_sets.empty() && flag_of(record.fields[where[next]]))
    table.label_columns = columns.labels;
  if (alone && table.label_columns.empty()) {
    table.label_sets.push_back(
        labels_in_field(record.fields[where[next++]], columns.label_separator, place(columns.labels[0])));
  } else if (!columns.labels.empty()) {
    const char* more = alone ? ", as in the first row (labels by name need a label separator, or arrays)" : "";
    auto& labels = table.label_sets.emplace_back();
    for (const std::string& column : columns.labels)
      if (flag_in_field(record.fields[where[next++]], place(column), more)) labels.push_back(column);
  }
  for (const std::string& column : columns.targets)
    table.targets.push_back(number_in_field(record.fields[where[next++]], place(column)));
}

/// Appends a row whose field `where[i]` is the asked column i.
inline void append_row(Table& table, const TableColumns& columns, Record& record, std::span<const std::size_t> where) {
  const std::size_t texts = columns.text.size();
  std::string text = record.fields[where[0]];
  for (std::size_t i = 1; i < texts; ++i) text.append(" ").append(record.fields[where[i]]);
  table.text.push_back(std::move(text));
  std::size_t next = texts;
  if (!columns.text_pair.empty()) table.text_pair.push_back(record.fields[where[next++]]);
  if (!columns.label.empty()) {
    const std::string& label = record.fields[where[next++]];
    if (is_blank(label))
      fail<FormatError>(table.source + ", line " + std::to_string(record.line) + ", column " + printable(columns.label),
                        "a label", "an empty field");
    table.label.push_back(label);
  }
  if (!columns.id.empty()) {
    const std::string& id = record.fields[where[next++]];
    if (id.empty())
      fail<FormatError>(table.source + ", line " + std::to_string(record.line) + ", column " + printable(columns.id),
                        "whom the example belongs to", "an empty field");
    table.id.push_back(id);
  }
  append_targets(table, columns, record, where, next);
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

/// Whether a text is short and one word, as names of columns are.
inline bool is_column_name(std::string_view text) {
  return !text.empty() && text.size() <= 40 && text.find_first_of(" \t\n\r.,;:!?\"") == std::string_view::npos &&
         text.find_first_not_of("0123456789+-") != std::string_view::npos;
}

/// Whether the first row of a table that was read as data is rather the header of the others: all that is taken of it
/// looks like names of columns, its label is nobody else's, and either a name is one that headers have, or the other
/// labels are numbers, or they all come again and again over texts of several words.
inline bool first_row_was_header(const Table& table, std::span<const std::string> taken) {
  static const std::set<std::string, std::less<>> texts = {
      "text",    "texts",   "sentence", "sentence1", "sentence2", "premise", "hypothesis",  "question",  "question1",
      "content", "comment", "review",   "tweet",     "message",   "title",   "description", "utterance", "document"};
  static const std::set<std::string, std::less<>> labels = {
      "label", "labels",    "class",  "classes", "category",   "category_id", "label_id", "target",
      "topic", "sentiment", "intent", "domain",  "gold_label", "stars",       "rating"};
  if (!std::all_of(taken.begin(), taken.end(), is_column_name)) return false;
  const auto named = [&](const auto& names) {
    return std::any_of(taken.begin(), taken.end(),
                       [&](const auto& cell) { return names.contains(folded_label(cell)); });
  };
  if (table.label.empty())
    return named(texts) && std::count(table.text.begin(), table.text.end(), table.text.front()) == 1;
  std::map<std::string_view, Index> times;
  for (const std::string& one : table.label) ++times[one];
  if (times[table.label.front()] > 1) return false;
  if (named(texts) || named(labels)) return true;
  times.erase(table.label.front());
  if (times.empty()) return false;
  const auto several_words = std::count_if(table.text.begin(), table.text.end(),
                                           [](const auto& text) { return text.find(' ') != std::string::npos; });
  return std::all_of(times.begin(), times.end(), [](const auto& one) { return whole_number(one.first).has_value(); }) ||
         (std::all_of(times.begin(), times.end(), [](const auto& one) { return one.second > 2; }) &&
          2 * several_words > table.size());
}

/// What a row of a single column may be in truth; empty when nothing suggests it.
inline std::string separator_hint(const Record& first, const std::string& file) {
  if (first.fields.size() != 1) return {};
  const std::string& row = first.fields[0];
  const bool tabs = file.ends_with("tsv") || file.ends_with("TSV");
  if (!tabs && row.find('\t') != std::string::npos) return "; it holds tabs: is it a .tsv file?";
  if (tabs && row.find(',') != std::string::npos) return "; it holds commas: is it a .csv file?";
  if (row.find(';') != std::string::npos)
    return "; it holds semicolons: columns are apart by commas, or tabs in a .tsv file";
  return {};
}

/// Which field of a record each asked column is.
inline std::vector<std::size_t> locate_columns(std::span<const std::string> asked, const Record& first, bool header,
                                               TableHeader given, const std::string& file) {
  const std::string place = file + ", line " + std::to_string(first.line);
  std::vector<std::size_t> where;
  for (const std::string& name : asked) {
    const Index number = column_number(name);
    const auto found = header ? std::find(first.fields.begin(), first.fields.end(), name) : first.fields.end();
    if (number == 0 && !header)
      fail<ConfigError>(file + ", column " + name, "a number from 1, as the file is said to have no header", "a name");
    if (number > 0 && found == first.fields.end() && (!header || given == TableHeader::yes)) {
      if (number > static_cast<Index>(first.fields.size()))
        fail<FormatError>(
            place,
            "a column " + name +
                (given == TableHeader::detect ? " (no column is asked for by name, so the file has no header)" : ""),
            std::to_string(first.fields.size()) + (first.fields.size() == 1 ? " column" : " columns") +
                separator_hint(first, file));
      where.push_back(static_cast<std::size_t>(number - 1));
      continue;
    }
    if (found == first.fields.end())
      fail<FormatError>(
          place, "a column named " + in_quotes(name) + " in the header (in a file without one, columns go by number)",
          quoted_list(first.fields) + separator_hint(first, file));
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
  const bool header = columns.header == TableHeader::detect ? first_row_is_header(asked, record.fields)
                                                            : columns.header == TableHeader::yes;
  const auto where = locate_columns(asked, record, header, columns.header, table.source);
  std::vector<std::string> taken;  // of a first row that is read as data
  if (!header) {
    for (const std::size_t field : where) taken.push_back(record.fields[field]);
    append_row(table, columns, record, where);
  }
  while (reader.next(record)) {
    if (record.fields.size() != width)
      fail<FormatError>(table.source + ", line " + std::to_string(record.line),
                        std::to_string(width) + " columns, as in the first row", std::to_string(record.fields.size()));
    append_row(table, columns, record, where);
  }
  if (table.text.empty()) fail<FormatError>(table.source, "rows", "a header and nothing below it");
  if (columns.header == TableHeader::detect && !header && first_row_was_header(table, taken))
    fail<FormatError>(
        table.source + ", line " + std::to_string(table.line.front()), "a row of data, as columns go by number",
        "what looks like a header, " + quoted_list(taken) + " (TableColumns::header, --header, says which it is)");
}

inline void read_json_lines(JsonlReader reader, const TableColumns& columns, Table& table) {
  std::vector<std::size_t> where(asked_columns(columns).size());
  for (std::size_t i = 0; i < where.size(); ++i) where[i] = i;
  Record record;
  while (reader.next(record)) append_row(table, columns, record, where);
  if (table.text.empty()) fail<FormatError>(table.source, "rows", "an empty file");
}

/// The numbers of label names.
class LabelNumbers {
 public:
  LabelNumbers(const Table& table, std::span<const std::string> names) : table_(table), names_(names) {
    for (const std::string& name : names)
      if (!number_.emplace(name, static_cast<std::int32_t>(number_.size())).second)
        fail<ConfigError>(table.source + ", label names", "distinct names", in_quotes(name) + " twice");
  }

  /// Of a label of example i.
  std::int32_t of(const std::string& label, std::size_t i) const {
    const auto found = number_.find(label);
    if (found != number_.end()) return found->second;
    const std::string place =
        i < table_.line.size() ? ", line " + std::to_string(table_.line[i]) : ", example " + std::to_string(i);
    const auto meant = std::find_if(names_.begin(), names_.end(), [&](const std::string& name) {
      return folded_label(name) == folded_label(label) ||
             (whole_number(name) && whole_number(name) == whole_number(label));
    });
    fail<FormatError>(
        table_.source + place + ", label", "one of " + quoted_list(names_),
        in_quotes(label) + (meant == names_.end() ? "" : ", which is written otherwise than " + in_quotes(*meant)));
  }

 private:
  const Table& table_;
  std::span<const std::string> names_;
  std::unordered_map<std::string_view, std::int32_t> number_;
};

}  // namespace detail

inline std::vector<std::int32_t> Table::label_ids(std::span<const std::string> names) const {
  if (label.empty())
    fail<ConfigError>(source, "a label column",
                      !label_sets.empty() ? "sets of labels (rarest_labels makes one of each)"
                      : !targets.empty()  ? "numbers (quantile_groups makes labels of them)"
                                          : "a table read without one");
  const detail::LabelNumbers numbers(*this, names);
  std::vector<std::int32_t> ids;
  ids.reserve(label.size());
  for (std::size_t i = 0; i < label.size(); ++i) ids.push_back(numbers.of(label[i], i));
  return ids;
}

inline Table::LabelSets Table::label_set_ids(std::span<const std::string> names) const {
  if (label_sets.empty()) fail<ConfigError>(source, "sets of labels", "a table read without them");
  const detail::LabelNumbers numbers(*this, names);
  if (!label_columns.empty())
    for (const std::string& name : names)
      if (std::find(label_columns.begin(), label_columns.end(), name) == label_columns.end())
        fail<FormatError>(source, "a column for the label " + detail::in_quotes(name),
                          detail::quoted_list(label_columns));
  LabelSets sets;
  for (std::size_t i = 0; i < label_sets.size(); ++i) {
    for (const std::string& one : label_sets[i]) sets.labels.push_back(numbers.of(one, i));
    std::sort(sets.labels.begin() + sets.offsets.back(), sets.labels.end());
    sets.offsets.push_back(static_cast<Index>(sets.labels.size()));
  }
  return sets;
}

inline void Table::name_labels(std::span<const std::string> labels, const LabelMatch& match) {
  std::map<std::string, std::string, std::less<>> names;
  for (std::size_t i = 0; i < labels.size(); ++i)
    names.emplace(labels[i], match.names[static_cast<std::size_t>(match.rows[i])]);
  const auto rename = [&](std::vector<std::string>& some) {
    for (std::string& one : some)
      if (const auto found = names.find(one); found != names.end()) one = found->second;
  };
  rename(label);
  rename(label_columns);
  for (auto& some : label_sets) rename(some);
}

inline void Table::place_targets(std::span<const Index> rows) {
  std::vector<double> placed(targets.size());
  for (std::size_t first = 0; first < targets.size(); first += rows.size())
    for (std::size_t i = 0; i < rows.size(); ++i)
      placed[first + static_cast<std::size_t>(rows[i])] = targets[first + i];
  targets = std::move(placed);
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
  copy(label_sets, chosen.label_sets);
  chosen.label_columns = label_columns;
  const Index outputs = size() > 0 ? static_cast<Index>(targets.size()) / size() : 0;
  for (const Index example : examples)
    chosen.targets.insert(chosen.targets.end(), targets.begin() + example * outputs,
                          targets.begin() + (example + 1) * outputs);
  return chosen;
}

/// Reads a table; the extension of `file.name` says how: .csv (see CsvReader), .tsv (TsvReader) or .jsonl
/// (JsonlReader).
///
/// CSV and TSV: if any column asked for is a name, the first row is the header. If all are numbers from 1 the file has
/// no header, unless its first row is nothing but distinct whole numbers that include all of those asked for: then
/// these are names. A first row that would be data and can hardly be anything but a header is an error:
/// `columns.header` says which it is. JSON Lines: columns are always names; texts are strings, labels and ids strings,
/// numbers or booleans, kept as written.
///
/// A target is a finite number, a flag of a label 0 or 1 (or true, false), a set of labels may be empty.
///
/// Throws FormatError naming file, line and column for anything that breaks the format: a row with more or fewer
/// columns than the first, bad quoting, invalid UTF-8, NUL bytes, a missing column (with those there are), a header
/// name asked for that comes twice, a file without rows, an empty label or id, a target or flag that is none, a label
/// twice in a set. ConfigError when no text column is asked for, or answers of several kinds.
inline Table read_table(const Bytes& file, const TableColumns& columns) {
  if (columns.text.empty()) fail<ConfigError>(file.name, "at least one text column", "none");
  for (const std::string& name : columns.text)
    if (name.empty()) fail<ConfigError>(file.name + ", text column", "a name or a number", "an empty name");
  if ((columns.label.empty() ? 0 : 1) + (columns.labels.empty() ? 0 : 1) + (columns.targets.empty() ? 0 : 1) > 1)
    fail<ConfigError>(file.name, "one kind of answer: a label, labels or targets", "several");
  for (const auto* several : {&columns.labels, &columns.targets})
    for (std::size_t i = 0; i < several->size(); ++i)
      if ((*several)[i].empty() || std::count(several->begin(), several->end(), (*several)[i]) > 1)
        fail<ConfigError>(file.name + ", label columns", "distinct names or numbers",
                          detail::in_quotes((*several)[i]) + ((*several)[i].empty() ? "" : " twice"));
  std::string extension = std::filesystem::path(file.name).extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  Table table;
  table.source = file.name;
  if (columns.labels.size() > 1) table.label_columns = columns.labels;
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
    for (const std::string& name : columns.labels) fields.push_back({name, false, columns.labels.size() == 1});
    for (const std::string& name : columns.targets) fields.push_back({name, false});
    detail::read_json_lines(JsonlReader(file.text(), file.name, std::move(fields)), columns, table);
  } else {
    fail<FormatError>(file.name, "a table named .csv, .tsv or .jsonl (an object on every line)",
                      extension.empty() ? "no extension" : detail::printable(extension));
  }
  return table;
}

/// Reads a table from a file. Throws IoError when it cannot be read, FormatError when something else stands in its
/// place (`map_downloaded_file`), and what the other overload throws.
inline Table read_table(const std::filesystem::path& file, const TableColumns& columns) {
  return read_table(map_downloaded_file(file), columns);
}

}  // namespace fedlora
