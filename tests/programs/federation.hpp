// SPDX-License-Identifier: Apache-2.0
// A small federation for the tests of fedlora-federation, and what came of it.
#pragma once

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/io/json.hpp"
#include "program.hpp"

namespace fedlora::tests {

/// A small federation on texts of two easily told kinds, with the model that is in the program.
struct Federation {
  TemporaryDirectory scratch;
  std::filesystem::path train = scratch.path() / "train.csv", test = scratch.path() / "test.csv";

  Federation() {
    write_text(train, table(48));
    write_text(test, table(12));
  }

  static std::string table(int rows) {
    std::string text = "text,label,who\n";
    for (int i = 0; i < rows; ++i)
      text += (i % 2 == 0 ? "\"The cat, number " : "\"I paid the bank ") + std::to_string(i) + "\"," +
              (i % 2 == 0 ? "animals" : "money") + ",person" + std::to_string(i % 3) + "\n";
    return text;
  }

  std::vector<std::string> arguments(const std::string& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> all = {"--train",
                                    train.string(),
                                    "--test",
                                    test.string(),
                                    "--clients",
                                    "4",
                                    "--rounds",
                                    "5",
                                    "--batch",
                                    "4",
                                    "--seed",
                                    "3",
                                    "--reference-epochs",
                                    "2",
                                    "--partition",
                                    "iid",
                                    "--out",
                                    (scratch.path() / out).string()};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Finished run(const std::string& out, std::vector<std::string> more = {}) const {
    return run_program(scratch.path(), "federation", arguments(out, std::move(more)));
  }
  Json summary(const std::string& out) const { return Json::parse(read_text(scratch.path() / out / "summary.json")); }
  /// Rows of metrics that a run has saved so far.
  int rows(const std::string& out) const {
    std::ifstream file(scratch.path() / out / "metrics.jsonl");
    int count = 0;
    for (std::string line; std::getline(file, line);) ++count;
    return count;
  }
  /// All that must not depend on how a run came about: digests, and the rows without their seconds.
  std::string result(const std::string& out) const {
    std::string text;
    const Json all = summary(out);
    for (const char* mode : {"head", "local", "federated", "centralised"})
      if (all.contains(mode)) text += all[mode]["adapter_sha256"].get<std::string>() + "\n";
    std::istringstream lines(read_text(scratch.path() / out / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      Json row = Json::parse(line);
      row.erase("train_seconds");
      text += row.dump() + "\n";
    }
    return text;
  }
};

}  // namespace fedlora::tests
