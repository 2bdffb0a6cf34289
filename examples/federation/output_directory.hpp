// SPDX-License-Identifier: Apache-2.0
// The directory --out: summary.json, metrics.csv, metrics.jsonl, an adapter of every run that has one, and
// state/MODE.safetensors for --resume. It holds one run (of one configuration, in one mode or in all), and another
// never takes its place unasked. Every file is replaced whole, so that a killed run leaves the last good ones.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "fedlora/fed/run_state.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"

namespace fedlora::examples {

/// The order of runs in every file and table.
inline const std::vector<std::string> mode_order = {"head", "local", "federated", "centralised"};

/// What is to become of a run that is there already.
enum class Earlier { refuse, resume, overwrite };

/// What is in a directory of an earlier run.
struct EarlierRun {
  std::map<std::string, SavedRun> states;  ///< by mode
  std::string broken;                      ///< why a state there cannot be read; empty when all can
  std::optional<Json> summary;             ///< of the runs that are finished

  /// Whether all of it is done and summed up.
  bool finished() const;
  /// Whether there is what --resume goes on from, or would if it were whole.
  bool has_state() const { return !states.empty() || !broken.empty(); }
  bool any() const { return has_state() || summary.has_value(); }
};

/// \throws IoError for a file that is there and cannot be opened.
EarlierRun earlier_run(const std::filesystem::path& directory);

class OutputDirectory {
 public:
  /// Writes something to the path that it is given.
  using Write = std::function<void(const std::filesystem::path&)>;

  /// Makes the directory, proves that it can be written, and keeps other processes from writing to it. `config` is that
  /// of the run to come, `measures` are fields of its rows. A run that is to be overwritten stays until this one has
  /// something to put in its place (`write_round`).
  ///
  /// \throws ConfigError for a directory that holds another run, when that is to be neither resumed nor overwritten, or
  ///         files of somebody else's under our names; one whose run began with another configuration, when it is to
  ///         be resumed; and one that another process writes to. FormatError for a state to be resumed that is broken.
  OutputDirectory(std::filesystem::path path, Earlier earlier, const Json& config, std::vector<std::string> measures);
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;
  /// Takes away what it made and left empty.
  ~OutputDirectory();

  /// The summary of this very run, which this program finished earlier; nothing is to be done then.
  const std::optional<Json>& done() const { return done_; }
  /// Whether there is a run that goes on, or goes.
  bool holds_run() const { return holds_run_; }

  /// The state to go on from, if any.
  std::optional<Bytes> saved_state(const std::string& mode) const;
  /// Where the adapter of a run in this mode goes; nowhere for `local`, where every client has its own (in the state).
  std::optional<std::filesystem::path> adapter(const std::string& mode) const;
  const std::filesystem::path& path() const { return path_; }

  /// Whether this run has saved a round.
  bool saved_round() const { return saved_round_; }

  /// The rows that resumed runs have so far; a killed one may have left them out of the files.
  void write_rows(const std::map<std::string, std::vector<Json>>& rows);

  /// Saves what a round left: the state first, then `save_adapter`, then the rows of all runs.
  void write_round(const std::string& mode, const std::vector<Json>& rows, const Write& save_state,
                   const Write& save_adapter);

  /// Adds which program it was.
  void write_summary(Json summary) const;

 private:
  std::filesystem::path state_file(const std::string& mode) const;
  void take_in_possession();
  void judge(const EarlierRun& run, Earlier earlier, const Json& config);
  void prove_writable() const;
  void write_metrics();
  void take_away_earlier_run() const;

  std::filesystem::path path_;
  std::vector<std::string> measures_;
  bool made_ = false, made_state_ = false;  ///< the directory itself, state/
  int lock_ = -1;
  bool replaces_ = false;  ///< an earlier run goes when there is something to put in its place
  bool resumes_ = false;
  bool holds_run_ = false;
  std::optional<Json> done_;
  std::atomic<bool> saved_round_ = false;
  std::mutex mutex_;
  std::map<std::string, std::vector<Json>> rows_;
};

}  // namespace fedlora::examples
