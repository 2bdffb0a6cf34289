// SPDX-License-Identifier: Apache-2.0
// The directory --out: summary.json, metrics.csv, metrics.jsonl, adapter/, and state/MODE.safetensors for --resume. Every file
// is replaced whole, so that a killed run leaves the last good ones.
#pragma once

#include <atomic>
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
  /// Makes the directory and proves that it can be written. Unless `resume`, what an earlier run left will be replaced, but
  /// only once this one has something to put in its place (`write_round`). `measures` are fields of its rows.
  OutputDirectory(std::filesystem::path path, bool resume, std::vector<std::string> measures)
      : path_(std::move(path)), measures_(std::move(measures)), resume_(resume) {
    namespace fs = std::filesystem;
    std::error_code error;
    fs::create_directories(path_ / "state", error);
    if (error) fail<IoError>(path_.string(), "a directory to write to (--out)", error.message());
    for (const fs::path& directory : {path_ / "state", path_, adapter()}) {
      if (directory == adapter() && !fs::exists(directory)) continue;
      write_file_atomically(directory / ".probe", std::string_view("can this be written?\n"));
      fs::remove(directory / ".probe", error);
    }
    for (const fs::path& directory : {path_, path_ / "state"})  // what a killed run was writing
      for (const auto& entry : fs::directory_iterator(directory, error))
        if (const std::string name = entry.path().filename().string();
            name.starts_with(".") && name.find(".tmp-") != std::string::npos)
          fs::remove_all(entry.path(), error);
    for (const std::string& mode : mode_order) holds_run_ = holds_run_ || fs::exists(state_file(mode));
    if (!holds_run_ && fs::exists(adapter() / "adapter_config.json") && !fs::exists(path_ / "summary.json"))
      fail<ConfigError>(adapter().string(), "nothing, or the adapter of an earlier run (--out)", "somebody else's adapter");
  }

  /// Whether there is a run that can be resumed.
  bool holds_run() const { return holds_run_; }

  std::filesystem::path state_file(const std::string& mode) const { return path_ / "state" / (mode + ".safetensors"); }
  std::filesystem::path adapter() const { return path_ / "adapter"; }
  const std::filesystem::path& path() const { return path_; }

  /// The state that a run left, if any.
  std::optional<Bytes> saved_state(const std::string& mode) const {
    if (!std::filesystem::exists(state_file(mode))) return std::nullopt;
    return map_file(state_file(mode));
  }

  /// Whether this run has saved a round.
  bool saved_round() const { return saved_round_; }

  /// The rows that resumed runs have so far; a killed one may have left them out of the files.
  void write_rows(const std::map<std::string, std::vector<Json>>& rows) {
    const std::lock_guard lock(mutex_);
    rows_ = rows;
    write_metrics();
  }

  /// Saves what a round left: `save_state` first, then the rows of all runs.
  template <class SaveState>
  void write_round(const std::string& mode, const std::vector<Json>& rows, SaveState&& save_state) {
    const std::lock_guard lock(mutex_);
    if (resume_) {
      save_state(state_file(mode));
    } else {  // the earlier run goes when there is something to put in its place
      const std::filesystem::path fresh = path_ / "state" / ("." + mode + ".safetensors.tmp-new");
      save_state(fresh);
      take_away_earlier_run();
      std::filesystem::rename(fresh, state_file(mode));
      resume_ = true;
    }
    saved_round_ = true;
    rows_[mode] = rows;
    write_metrics();
  }

  void write_summary(const Json& summary) const {
    write_file_atomically(path_ / "summary.json", std::string_view(summary.dump(2) + "\n"));
  }

 private:
  void write_metrics() {
    std::vector<Json> all;
    for (const std::string& one : mode_order) all.insert(all.end(), rows_[one].begin(), rows_[one].end());
    std::vector<std::string> columns = {"mode", "round", "clients", "examples", "train_loss"};
    columns.insert(columns.end(), measures_.begin(), measures_.end());
    columns.insert(columns.end(), {"bytes_up", "bytes_down", "train_seconds"});
    write_file_atomically(path_ / "metrics.csv", std::string_view(csv_of(columns, all)));
    write_file_atomically(path_ / "metrics.jsonl", std::string_view(jsonl_of(all)));
  }

  /// State last: whoever is killed in between has a run that can be resumed or nothing.
  void take_away_earlier_run() const {
    for (const char* file : {"summary.json", "metrics.csv", "metrics.jsonl"}) remove(path_ / file);
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors"}) remove(path_ / "adapter" / file);
    std::error_code error;
    std::filesystem::remove(path_ / "adapter", error);  // stays when it holds something of somebody else's
    for (const std::string& mode : mode_order) remove(state_file(mode));
  }

  static void remove(const std::filesystem::path& file) {
    std::error_code error;
    std::filesystem::remove(file, error);
    if (error) fail<IoError>(file.string(), "a file of an earlier run that can be replaced", error.message());
  }

  std::filesystem::path path_;
  std::vector<std::string> measures_;  ///< fields of a row
  bool resume_ = false;  ///< what is there stays
  bool holds_run_ = false;
  std::atomic<bool> saved_round_ = false;
  std::mutex mutex_;
  std::map<std::string, std::vector<Json>> rows_;
};

}  // namespace fedlora::examples
