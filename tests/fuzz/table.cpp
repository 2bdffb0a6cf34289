// SPDX-License-Identifier: Apache-2.0
// Tables: CSV, TSV and JSON Lines under whatever columns are asked for. The input is ">>> table.csv" (.tsv, .jsonl) and
// ">>> columns": lines "text NAME", "pair NAME", "label NAME", "id NAME". What is read reads the same when it is
// written as CSV, and as JSON Lines.
#include "fedlora/data/table.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/data/labels.hpp"
#include "fedlora/io/json.hpp"
#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

inline TableColumns columns_of(std::string_view lines) {
  TableColumns columns;
  while (!lines.empty()) {
    std::string_view line = take_line(lines);
    const std::string_view role = take_word(line);
    if (role == "text") columns.text.emplace_back(line);
    if (role == "pair") columns.text_pair = line;
    if (role == "label") columns.label = line;
    if (role == "id") columns.id = line;
    if (role == "labels") columns.labels.emplace_back(line);
    if (role == "separator") columns.label_separator = line;
    if (role == "target") columns.targets.emplace_back(line);
  }
  if (columns.text.empty()) columns.text = {"text"};
  return columns;
}

/// A row's cells: the joined text, then what was asked for beside it.
inline std::vector<std::string> cells_of(const Table& table, std::size_t row) {
  std::vector<std::string> cells = {table.text[row]};
  for (const auto* const column : {&table.text_pair, &table.label, &table.id})
    cells.push_back(column->empty() ? "" : (*column)[row]);
  return cells;
}

inline std::string as_csv(const Table& table) {
  std::string out = "text,pair,label,id\n";
  for (std::size_t row = 0; row < table.text.size(); ++row) {
    const char* before = "";
    for (const std::string& cell : cells_of(table, row)) {
      out.append(before).append("\"");
      for (const char c : cell) out.append(c == '"' ? 2 : 1, c);
      out.append("\"");
      before = ",";
    }
    out.append("\r\n");
  }
  return out;
}

inline std::string as_json_lines(const Table& table) {
  std::string out;
  for (std::size_t row = 0; row < table.text.size(); ++row) {
    const auto cells = cells_of(table, row);
    out += Json{{"text", cells[0]}, {"pair", cells[1]}, {"label", cells[2]}, {"id", cells[3]}}.dump() + "\n";
  }
  return out;
}

inline void require_same(const Table& table, const std::string& file, const std::string& contents) {
  const TableColumns columns{{"text"}, "pair", table.label.empty() ? "" : "label", table.id.empty() ? "" : "id"};
  const Table back = read_table(bytes_of(contents, file), columns);
  require(back.size() == table.size(), "every row is written: " + file);
  for (std::size_t row = 0; row < table.text.size(); ++row)
    require(cells_of(back, row) == cells_of(table, row), "a row reads as it was written: " + file);
}

/// Labels have numbers, those of a head that is called like them their own rows, and numbers to predict are numbers.
inline void check_answers(const Table& table, const TableColumns& columns) {
  const std::size_t rows = table.text.size();
  require(table.label_sets.size() == (columns.labels.empty() ? 0 : rows) &&
              table.targets.size() == columns.targets.size() * rows,
          "answers that were asked for are there");
  for (const double target : table.targets) require(std::isfinite(target), "a number to predict is finite");
  const auto names = table.label_names();
  const auto is_number_of_a_name = [&](std::int32_t id) {
    return id >= 0 && static_cast<std::size_t>(id) < names.size();
  };
  if (!table.label.empty()) {
    const auto ids = table.label_ids(names);
    for (std::size_t row = 0; row < rows; ++row)
      require(is_number_of_a_name(ids[row]) && names[static_cast<std::size_t>(ids[row])] == table.label[row],
              "a label's number is that of its name");
  }
  if (!table.label_sets.empty()) {
    const auto sets = unless_refused("fuzz/", [&] { return table.label_set_ids(names); });
    if (!sets) return;
    require(sets->offsets.size() == rows + 1 && sets->offsets.back() == static_cast<Index>(sets->labels.size()),
            "every example has a set");
    require(std::ranges::all_of(sets->labels, is_number_of_a_name), "labels of a set have numbers");
  }
  const LabelMatch match = match_labels(names, names);
  if (names.empty()) return;
  require(match.rule == LabelRule::name && match.names == names, "labels find a head that is called like them");
  for (std::size_t i = 0; i < names.size(); ++i) require(match.rows[i] == static_cast<Index>(i), "each its own row");
  const std::vector<std::string> numbered = row_names({}, static_cast<Index>(names.size()));
  if (const LabelMatch other = match_labels(numbered, names))
    require(std::set<Index>(other.rows.begin(), other.rows.end()).size() == names.size(), "no two labels share a row");
}

const Target table_target("table", [](std::string_view input) {
  FileContents files = files_of(input);
  const TableColumns columns = columns_of(take_file(files, "columns"));
  for (const auto& entry : files) {
    const Bytes file = bytes_of(entry.second, "fuzz/" + entry.first);
    const auto table = unless_refused("fuzz/", [&] { return read_table(file, columns); });
    if (!table) continue;
    const auto rows = table->text.size();
    require(rows > 0 && table->line.size() == rows, "a table has rows, and every row a line");
    require(table->text_pair.size() == (columns.text_pair.empty() ? 0 : rows) &&
                table->label.size() == (columns.label.empty() ? 0 : rows) &&
                table->id.size() == (columns.id.empty() ? 0 : rows),
            "what was asked for is there, and nothing else");
    for (std::size_t row = 0; row < rows; ++row) {
      require(table->line[row] > (row == 0 ? 0 : table->line[row - 1]), "lines go up");
      for (const std::string& cell : cells_of(*table, row))
        require(detail::first_invalid_utf8(cell) == cell.npos && cell.find('\0') == cell.npos, "cells are text");
    }
    check_answers(*table, columns);
    std::vector<Index> all(rows);
    std::iota(all.begin(), all.end(), 0);
    const Table same = table->select(all);
    require(same.text == table->text && same.label == table->label && same.label_sets == table->label_sets &&
                same.targets == table->targets && same.line == table->line,
            "all examples are the table");
    require_same(*table, "again.csv", as_csv(*table));
    require_same(*table, "again.jsonl", as_json_lines(*table));
  }
});

}  // namespace fedlora::fuzz
