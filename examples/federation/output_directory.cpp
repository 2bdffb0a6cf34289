// SPDX-License-Identifier: Apache-2.0
#include "federation/output_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>
#include <string_view>
#include <utility>

#include "federation/options.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/report/metrics.hpp"
#include "fedlora/version.hpp"
#include "sha256.hpp"

namespace fedlora::examples {

namespace fs = std::filesystem;

namespace {

constexpr std::array plain_files = {"summary.json", "metrics.csv", "metrics.jsonl"};
constexpr std::array adapter_files = {"adapter_config.json", "adapter_model.safetensors"};

/// adapter/ is what a person looks for: the federated one. The others are for comparison.
std::string adapter_name(const std::string& mode) {
  return mode == "federated" ? "adapter" : mode == "local" ? "" : "adapter-" + mode;
}

/// The names in `directory` that a run would write to.
std::vector<std::string> taken_names(const fs::path& directory) {
  std::vector<std::string> names;
  const auto look = [&](const std::string& name) {
    if (fs::symlink_status(directory / name).type() != fs::file_type::not_found) names.push_back(name);
  };
  for (const char* file : plain_files) look(file);
  for (const std::string& mode : mode_order)
    if (const std::string name = adapter_name(mode); !name.empty()) look(name);
  std::error_code error;
  if (fs::exists(directory / "state", error) && !fs::is_directory(directory / "state", error)) names.push_back("state");
  return names;
}

/// Whether `name` is of a file or directory that was being written when a run of ours was killed.
bool is_leftover(std::string_view name) {
  const auto of = [&](const std::string& whole) { return name.starts_with("." + whole + ".tmp-"); };
  return std::any_of(plain_files.begin(), plain_files.end(), of) || of(".probe") ||
         std::any_of(mode_order.begin(), mode_order.end(), [&](const std::string& mode) {
           return of(mode + ".safetensors") || (mode != "local" && of(adapter_name(mode)));
         });
}

void remove_leftovers(const fs::path& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (is_leftover(entry.path().filename().string())) fs::remove_all(entry.path(), error);
}

void remove_file(const fs::path& file) {
  std::error_code error;
  fs::remove(file, error);
  if (error) fail<IoError>(file.string(), "a file of an earlier run that can be replaced", error.message());
}

/// Which program computes: equal options give equal bits only in one build of it. Without /proc its version has to do.
Json program_record() {
  Json record = {{"version", version}, {"sha256", nullptr}};
  try {
    record["sha256"] = Sha256().add(map_file("/proc/self/exe").data).hex();
  } catch (const IoError&) {
  }
  return record;
}

/// summary.json, if it is of a run of this program.
std::optional<Json> summary_in(const fs::path& directory) {
  const fs::path file = directory / "summary.json";
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return std::nullopt;
  try {
    Json summary = parse_json(map_file(file));
    const bool ours = summary.is_object() && summary.contains("config") && summary["config"].is_object() &&
                      summary["config"].contains("model_sha256") && summary["config"].contains("train_sha256");
    if (ours) return summary;
  } catch (const FormatError&) {
  }
  return std::nullopt;
}

/// The rounds or epochs that a saved run was to have.
Json rounds_of(const std::string& mode, const SavedRun& state) {
  return state.config.value(mode == "federated" ? "rounds" : "reference_epochs", Json());
}

/// "an unfinished run (federated, 3 of 5 rounds)"
std::string description(const EarlierRun& run) {
  std::string parts;
  for (const auto& [mode, state] : run.states)
    parts += (parts.empty() ? " (" : "; ") + mode + ", " + std::to_string(state.round) + " of " +
             rounds_of(mode, state).dump() + (mode == "federated" ? " rounds" : " epochs");
  return (run.finished() ? "a finished run" : "an unfinished run") + parts + (parts.empty() ? "" : ")");
}

/// The differences but for those in `passed_over`; first that in the mode, from which others follow.
std::vector<ConfigDifference> compared(const Json& saved, const Json& now, const std::set<std::string>& passed_over) {
  std::vector<ConfigDifference> found = config_differences(saved, now, passed_over);
  std::stable_partition(found.begin(), found.end(), [](const auto& difference) { return difference.field == "mode"; });
  return found;
}

/// In what the run there differs from the one to come. Files may be called by other names, as digests of what they hold
/// are compared.
std::vector<ConfigDifference> differences(const EarlierRun& run, const Json& config) {
  static const std::set<std::string> passed_over = {"threads", "model", "adapter", "train", "test"};
  for (const auto& [mode, state] : run.states)
    if (auto found = compared(state.config, config, passed_over); !found.empty()) return found;
  if (run.states.empty() && run.summary) return compared((*run.summary)["config"], config, passed_over);
  return {};
}

/// Whether a field of the configuration says what is in a file.
bool is_digest(const std::string& field) { return field.find("_sha256") != std::string::npos; }

/// "/home/me/train.csv, whose content differs from that run's", of a digest that differs from that of the run to come.
std::string other_content(const ConfigDifference& difference, const Json& config) {
  const auto at = [&](const char* name) {
    const Json path = config.value(name, Json());
    return path.is_string() ? detail::printable(path.get<std::string>(), 400) : std::string("no ") + name;
  };
  constexpr std::string_view of_model = "model_files_sha256";
  std::string file = difference.field;
  if (file.starts_with(std::string(of_model) + ".")) {
    file = file.substr(of_model.size() + 1);
    file = at("model") + "/" + file + (file == "config.json" ? "" : ", a file of the tokenizer");
  } else if (file == of_model) {
    file = "config.json and the files of the tokenizer of " + at("model");
  } else {
    file = file == "train_sha256"            ? at("train")
           : file == "test_sha256"           ? at("test")
           : file == "model_sha256"          ? "the weights of " + at("model")
           : file == "adapter_sha256"        ? at("adapter") + "/adapter_model.safetensors"
           : file == "adapter_config_sha256" ? at("adapter") + "/adapter_config.json"
                                             : file;
  }
  return file + (difference.saved == "nothing" ? ", of which that run says nothing"
                 : difference.now == "nothing" ? ", which that run had, and which is not there now"
                                               : ", whose content differs from that run's");
}

/// "seed (1 there, 4 here), rounds (5 there, 8 here), train_sha256 (train.csv, whose content differs from that run's)"
std::string in_words(const std::vector<ConfigDifference>& differences, const Json& config) {
  constexpr std::size_t at_most = 4;
  std::string text;
  for (std::size_t i = 0; i < differences.size() && i < at_most; ++i) {
    const auto& [field, saved, now] = differences[i];
    text += (i == 0 ? "" : ", ") + field + " (" +
            (is_digest(field) ? other_content(differences[i], config)
                              : detail::printable(saved, 40) + " there, " + detail::printable(now, 40) + " here") +
            ")";
  }
  if (differences.size() > at_most) text += " and " + std::to_string(differences.size() - at_most) + " more";
  return text;
}

/// \throws ConfigError naming what is another than in the run that is to go on
void check_goes_on(const Json& saved, const Json& now) {
  for (const ConfigDifference& difference : compared(saved, now, may_differ())) {
    const std::string where = "resume, field " + difference.field;
    if (is_digest(difference.field))
      fail<ConfigError>(where, "the files that the saved run began with", other_content(difference, now));
    fail<ConfigError>(where, difference.saved + ", as the saved run has it", difference.now);
  }
  // Another measure than before is one more column; F1 of another label would stand in the same one.
  const Json before = saved.value("positive_label", Json()), after = now.value("positive_label", Json());
  if (before.is_string() && after.is_string() && before != after)
    fail<ConfigError>("resume, field positive_label",
                      json_text(before) + ", which f1 in the rows there is of (--positive-label)", json_text(after));
}

}  // namespace

bool EarlierRun::finished() const {
  return summary && broken.empty() && std::all_of(states.begin(), states.end(), [](const auto& entry) {
           return rounds_of(entry.first, entry.second) == Json(entry.second.round);
         });
}

EarlierRun earlier_run(const fs::path& directory) {
  EarlierRun run;
  for (const std::string& mode : mode_order) {
    const fs::path file = directory / "state" / (mode + ".safetensors");
    std::error_code error;
    if (!fs::exists(file, error)) continue;
    try {
      run.states.emplace(mode, read_saved_run(map_file(file)));
    } catch (const FormatError& broken) {
      run.broken = broken.what();
    }
  }
  run.summary = summary_in(directory);
  return run;
}

OutputDirectory::OutputDirectory(fs::path path, Earlier earlier, const Json& config, std::vector<std::string> measures)
    : path_(std::move(path)), measures_(std::move(measures)) {
  std::error_code error;
  made_ = fs::create_directories(path_, error);
  if (error || !fs::is_directory(path_))
    fail<IoError>(path_.string(), "a directory to write to (--out)", error ? error.message() : "a file");
  take_in_possession();
  judge(earlier_run(path_), earlier, config);
  if (done_) return;
  made_state_ = fs::create_directories(path_ / "state", error);
  if (error) fail<IoError>((path_ / "state").string(), "a directory to write to (--out)", error.message());
  prove_writable();
  remove_leftovers(path_);
  remove_leftovers(path_ / "state");
}

OutputDirectory::~OutputDirectory() {
  std::error_code ignored;  // a directory with something in it stays
  if (made_state_) fs::remove(path_ / "state", ignored);
  if (made_) fs::remove(path_, ignored);
  if (lock_ >= 0) ::close(lock_);
}

/// The lock ends with the process, however that ends. A file system without locks has none, which is no reason not to
/// run.
void OutputDirectory::take_in_possession() {
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ >= 0 && ::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(std::exchange(lock_, -1));
    made_ = false;
    fail<ConfigError>(path_.string(), "a directory that no other run is writing to (--out)",
                      "one in which another fedlora-federation is at work");
  }
}

void OutputDirectory::judge(const EarlierRun& run, Earlier earlier, const Json& config) {
  holds_run_ = run.any();
  resumes_ = earlier == Earlier::resume && run.has_state();
  replaces_ = earlier == Earlier::overwrite;
  if (!holds_run_) {
    std::string names;
    for (const std::string& name : taken_names(path_)) names += (names.empty() ? "" : ", ") + name;
    if (!names.empty())
      fail<ConfigError>(path_.string(), "a directory in which the names of our files are free (another --out)",
                        names + ", which no run of this program left there");
    return;
  }
  if (replaces_) return;
  if (resumes_) {
    if (!run.broken.empty())
      throw FormatError(
          run.broken + "\nThe run in " + path_.string() +
          " cannot go on from this file. Nothing was changed; to start anew: --overwrite, or another --out.");
    for (const auto& [mode, state] : run.states) check_goes_on(state.config, config);
    return;
  }
  const std::string choices =
      run.has_state()
          ? "a directory without a run (--out); --resume goes on with the one there, --overwrite replaces it"
          : "a directory without a run (--out); --overwrite replaces the one there, which cannot go on, as "
            "its state/ is gone";
  if (!run.broken.empty())
    fail<ConfigError>(path_.string(), choices, "a run with a state that cannot be read: " + run.broken);
  if (const auto found = differences(run, config); !found.empty())
    fail<ConfigError>(path_.string(), choices, description(run) + " that differs in " + in_words(found, config));
  if (!run.finished()) fail<ConfigError>(path_.string(), choices, description(run) + " with the same options");
  if (run.summary->value("program", Json()) != program_record())
    fail<ConfigError>(path_.string(), choices,
                      description(run) + " with the same options by another build of this program");
  done_ = run.summary;
}

/// Writes a file to every directory that will be written to.
void OutputDirectory::prove_writable() const {
  std::vector<fs::path> directories = {path_ / "state", path_};
  for (const std::string& mode : mode_order)
    if (const auto one = adapter(mode); one && fs::exists(*one)) directories.push_back(*one);
  for (const fs::path& directory : directories) {
    std::error_code error;
    write_file_atomically(directory / ".probe", std::string_view("can this be written?\n"));
    fs::remove(directory / ".probe", error);
  }
}

fs::path OutputDirectory::state_file(const std::string& mode) const {
  return path_ / "state" / (mode + ".safetensors");
}

std::optional<fs::path> OutputDirectory::adapter(const std::string& mode) const {
  if (const std::string name = adapter_name(mode); !name.empty()) return path_ / name;
  return std::nullopt;
}

std::optional<Bytes> OutputDirectory::saved_state(const std::string& mode) const {
  if (!resumes_ || !fs::exists(state_file(mode))) return std::nullopt;
  return map_file(state_file(mode));
}

void OutputDirectory::write_rows(const std::map<std::string, std::vector<Json>>& rows) {
  const std::lock_guard lock(mutex_);
  rows_ = rows;
  write_metrics();
}

void OutputDirectory::write_round(const std::string& mode, const std::vector<Json>& rows, const Write& save_state,
                                  const Write& save_adapter) {
  const std::lock_guard lock(mutex_);
  if (std::exchange(replaces_, false)) {
    const fs::path fresh = path_ / "state" / ("." + mode + ".safetensors.tmp-new");
    try {
      save_state(fresh);
    } catch (...) {
      replaces_ = true;
      throw;
    }
    take_away_earlier_run();
    fs::rename(fresh, state_file(mode));
  } else {
    save_state(state_file(mode));
  }
  saved_round_ = true;
  if (const auto directory = adapter(mode)) save_adapter(*directory);
  rows_[mode] = rows;
  write_metrics();
}

void OutputDirectory::write_summary(Json summary) const {
  summary["program"] = program_record();
  write_file_atomically(path_ / "summary.json", std::string_view(summary.dump(2) + "\n"));
}

void OutputDirectory::write_metrics() {
  std::vector<Json> all;
  for (const std::string& one : mode_order) all.insert(all.end(), rows_[one].begin(), rows_[one].end());
  std::vector<std::string> columns = {"mode", "round", "clients", "examples", "train_loss"};
  columns.insert(columns.end(), measures_.begin(), measures_.end());
  columns.insert(columns.end(), {"bytes_up", "bytes_down", "train_seconds"});
  write_file_atomically(path_ / "metrics.csv", std::string_view(csv_of(columns, all)));
  write_file_atomically(path_ / "metrics.jsonl", std::string_view(jsonl_of(all)));
}

/// State last: whoever is killed in between has a run that can be resumed or nothing.
void OutputDirectory::take_away_earlier_run() const {
  for (const char* file : plain_files) remove_file(path_ / file);
  for (const std::string& mode : mode_order)
    if (const auto directory = adapter(mode)) {
      for (const char* file : adapter_files) remove_file(*directory / file);
      std::error_code error;
      fs::remove(*directory, error);  // stays when it holds something of somebody else's
    }
  for (const std::string& mode : mode_order) remove_file(state_file(mode));
}

}  // namespace fedlora::examples
