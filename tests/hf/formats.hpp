// SPDX-License-Identifier: Apache-2.0
// The tables of examples/formats.md, for the tests that hold them to what is read.
#pragma once

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/io/json.hpp"
#include "support.hpp"

namespace fedlora::tests {

/// One row: | `field`, `field` | `where`, `where` | outcome | how |.
struct FormatRow {
  std::vector<std::string> fields;
  std::vector<std::string> where;  ///< families, tokenizer classes, or parts of tokenizer.json; empty: everywhere
  std::string outcome;             ///< "read", "no effect" or "refused"
  std::vector<Json> examples;      ///< values that the row shows: refused ones, or such as change what is read

  /// A part of tokenizer.json whose type is not said ("model", in old files) may be any of that part; a row may be of a
  /// part whatever its type. The whole of tokenizer.json is the place "".
  bool of(const std::string& place) const {
    return where.empty() || std::any_of(where.begin(), where.end(), [&](const std::string& name) {
             return name == place || (!place.empty() && name.starts_with(place + ".")) ||
                    (!name.empty() && place.starts_with(name + "."));
           });
  }
};

/// What stands between backticks in a cell.
inline std::vector<std::string> code_in(std::string_view cell) {
  std::vector<std::string> out;
  for (std::size_t at = 0; (at = cell.find('`', at)) != cell.npos;) {
    const std::size_t end = cell.find('`', at + 1);
    if (end == cell.npos) throw std::runtime_error("a backtick without its other in: " + std::string(cell));
    out.emplace_back(cell.substr(at + 1, end - at - 1));
    at = end + 1;
  }
  return out;
}

/// The rows of all tables under "## `file`" of examples/formats.md.
inline std::vector<FormatRow> format_rows(const std::string& file) {
  std::istringstream page(read_text(std::filesystem::path(FEDLORA_TEST_DIR) / "../examples/formats.md"));
  std::vector<FormatRow> rows;
  bool here = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("## ")) here = line == "## `" + file + "`";
    if (!here || !line.starts_with("| `")) continue;
    std::vector<std::string> cells;
    std::istringstream in(line.substr(1));
    for (std::string cell; std::getline(in, cell, '|');) cells.push_back(cell);
    if (cells.size() < 4) throw std::runtime_error("a row without four cells: " + line);
    FormatRow& row = rows.emplace_back();
    row.fields = code_in(cells[0]);
    row.where = code_in(cells[1]);
    if (row.where.empty() && file == "tokenizer.json") row.where = {""};
    for (const char* outcome : {"read", "no effect", "refused"})
      if (cells[2].find(outcome) == 1) row.outcome = outcome;
    if (row.outcome.empty()) throw std::runtime_error("an outcome that is none in: " + line);
    for (const std::string& example : code_in(cells[2])) row.examples.push_back(Json::parse(example));
  }
  if (rows.empty()) throw std::runtime_error("no table for " + file);
  return rows;
}

/// The row of a field of one place, or of any ("any place"); or null.
inline const FormatRow* find_row(const std::vector<FormatRow>& rows, const std::string& place,
                                 const std::string& field) {
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const FormatRow& row) {
    return (place == "any place" || row.of(place)) &&
           std::find(row.fields.begin(), row.fields.end(), field) != row.fields.end();
  });
  return found == rows.end() ? nullptr : &*found;
}

}  // namespace fedlora::tests
