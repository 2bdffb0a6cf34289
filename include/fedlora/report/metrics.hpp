// SPDX-License-Identifier: Apache-2.0
// Rows of measurements as text: CSV and JSON Lines. A row is a JSON object; all rows of a file have the same columns.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "fedlora/io/json.hpp"

namespace fedlora {

/// RFC 4180: a header and a line per row. A field that a row lacks, or that is null, is empty; texts are quoted where they
/// must be; numbers are the shortest text that reads back as the same number.
inline std::string csv_of(std::span<const std::string> columns, std::span<const Json> rows) {
  const auto quoted = [](const std::string& text) {
    if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
    std::string out = "\"";
    for (const char c : text) out.append(c == '"' ? 2 : 1, c);
    return out + '"';
  };
  std::string csv;
  for (std::size_t i = 0; i < columns.size(); ++i) csv.append(i == 0 ? "" : ",").append(quoted(columns[i]));
  csv += '\n';
  for (const Json& row : rows) {
    for (std::size_t i = 0; i < columns.size(); ++i) {
      if (i > 0) csv += ',';
      const auto field = row.find(columns[i]);
      if (field == row.end() || field->is_null()) continue;
      csv += field->is_string() ? quoted(field->get<std::string>()) : quoted(field->dump());
    }
    csv += '\n';
  }
  return csv;
}

/// One object per line.
inline std::string jsonl_of(std::span<const Json> rows) {
  std::string lines;
  for (const Json& row : rows) lines.append(row.dump()).append("\n");
  return lines;
}

}  // namespace fedlora
