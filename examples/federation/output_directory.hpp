// SPDX-License-Identifier: Apache-2.0
// The directory --out: summary.json, metrics.csv, metrics.jsonl, adapter/, and state/MODE.safetensors for --resume. Every file
// is replaced whole, so that a killed run leaves the last good ones.
#pragma once

#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/report/metrics.hpp"

namespace fedlora::examples {

/// The order of runs in every file and table.
inline const std::vector<std::string> mode_order = {"head", "local", "federated", "centralised"};

class OutputDirectory {
 public:
  /// Makes the directory and proves that it can be written. What an earlier run left is taken away unless `resume`.
  OutputDirectory(std::filesystem::path path, bool resume) : path_(std::move(path)) {
    namespace fs = std::filesystem;
    std::error_code error;
    fs::create_directories(path_ / "state", error);
    if (error) fail<IoError>(path_.string(), "a directory to write to (--out)", error.message());
    write_file_atomically(path_ / "state" / "probe", std::string_view("can this be written?\n"));
    fs::remove(path_ / "state" / "probe", error);
    if (resume) return;
    // State last: whoever is killed in between has a run that can be resumed or nothing.
    for (const char* file : {"summary.json", "metrics.csv", "metrics.jsonl"}) remove(path_ / file);
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors"}) remove(path_ / "adapter" / file);
    fs::remove(path_ / "adapter", error);  // stays when it holds something of somebody else's
    for (const std::string& mode : mode_order) remove(state_file(mode));
  }

  std::filesystem::path state_file(const std::string& mode) const { return path_ / "state" / (mode + ".safetensors"); }
  std::filesystem::path adapter() const { return path_ / "adapter"; }
  const std::filesystem::path& path() const { return path_; }

  /// The state that a run left, if any.
  std::optional<Bytes> saved_state(const std::string& mode) const {
    if (!std::filesystem::exists(state_file(mode))) return std::nullopt;
    return map_file(state_file(mode));
  }

  /// Replaces a run's rows; both files then hold the rows of all runs.
  void write_metrics(const std::string& mode, const std::vector<Json>& rows) {
    const std::lock_guard lock(mutex_);
    rows_[mode] = rows;
    std::vector<Json> all;
    for (const std::string& one : mode_order) all.insert(all.end(), rows_[one].begin(), rows_[one].end());
    static const std::vector<std::string> columns = {"mode",    "round", "clients",  "examples", "train_loss", "accuracy",
                                                     "loss",    "macro_f1", "bytes_up", "bytes_down", "seconds"};
    write_file_atomically(path_ / "metrics.csv", std::string_view(csv_of(columns, all)));
    write_file_atomically(path_ / "metrics.jsonl", std::string_view(jsonl_of(all)));
  }

  void write_summary(const Json& summary) const {
    write_file_atomically(path_ / "summary.json", std::string_view(summary.dump(2) + "\n"));
  }

 private:
  static void remove(const std::filesystem::path& file) {
    std::error_code error;
    std::filesystem::remove(file, error);
    if (error) fail<IoError>(file.string(), "a file of an earlier run that can be replaced", error.message());
  }

  std::filesystem::path path_;
  std::mutex mutex_;
  std::map<std::string, std::vector<Json>> rows_;
};

}  // namespace fedlora::examples
