// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "fedlora/report/metrics.hpp"
#include "fedlora/report/text_table.hpp"

namespace fedlora::tests {
namespace {

TEST_CASE("CSV has a column per name, quotes what needs it and leaves missing values empty") {
  const std::vector<std::string> columns = {"mode", "round", "loss"};
  const std::vector<Json> rows = {{{"mode", "a,\"b\""}, {"round", 1}, {"loss", 0.1}},
                                  {{"mode", "c"}, {"loss", nullptr}, {"other", 5}}};
  CHECK(csv_of(columns, rows) == "mode,round,loss\n\"a,\"\"b\"\"\",1,0.1\nc,,\n");
  CHECK(jsonl_of(rows) == rows[0].dump() + "\n" + rows[1].dump() + "\n");
}

TEST_CASE("a text table aligns its columns by what is seen") {
  TextTable table({"", "count"});
  table.add({"été", "1"});
  table.add({"winter", "12345"});
  CHECK(table.text() == "        count\nété         1\nwinter  12345\n");
}

TEST_CASE("numbers for people") {
  CHECK(grouped(0) == "0");
  CHECK(grouped(999) == "999");
  CHECK(grouped(1000) == "1,000");
  CHECK(grouped(-1234567) == "-1,234,567");
  CHECK(decimals(0.12345, 3) == "0.123");
  CHECK(bytes_text(999) == "999 B");
  CHECK(bytes_text(1540) == "1.54 kB");
  CHECK(bytes_text(23600000) == "23.6 MB");
  CHECK(duration_text(8.2) == "8 s");
  CHECK(duration_text(185) == "3:05");
  CHECK(duration_text(3765) == "1:02:45");
}

}  // namespace
}  // namespace fedlora::tests
