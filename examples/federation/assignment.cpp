// SPDX-License-Identifier: Apache-2.0
#include "federation/assignment.hpp"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <set>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "federation/report.hpp"

namespace fedlora::examples {

namespace fs = std::filesystem;

namespace {

/// Options of one call, not of the run.
const std::set<std::string> of_the_call = {"--help", "--version", "--out", "--resume", "--overwrite"};

/// Options that a run may go on with, whatever it is.
const std::set<std::string> of_the_end = {"--rounds", "--reference-epochs", "--threads", "--eval-every",
                                          "--metric", "--positive-label",   "--device",  "--dtype",
                                          "--cpu",    "--export-plan"};

/// Whether an option was given that says what the run is.
bool says_what_run_it_is(const CLI::App& app) {
  const auto options = app.get_options();
  return std::any_of(options.begin(), options.end(), [](const CLI::Option* option) {
    const std::string name = option->get_name();
    return option->count() > 0 && !of_the_call.contains(name) && !of_the_end.contains(name);
  });
}

/// What was given, as it can be given again from any directory.
std::vector<std::string> given_arguments(const CLI::App& app) {
  static const std::set<std::string> paths = {"--train", "--test", "--adapter", "--export-plan"};
  std::vector<std::string> arguments;
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_name();
    if (option->count() == 0 || of_the_call.contains(name)) continue;
    std::string value = option->results().back();
    std::error_code error;
    if (paths.contains(name) || (name == "--model" && fs::is_directory(value, error)))
      value = fs::absolute(value).string();
    arguments.push_back(name);
    if (option->get_items_expected_max() > 0) arguments.push_back(std::move(value));
  }
  return arguments;
}

/// The arguments that some state of the run in `directory` was saved with.
std::vector<std::string> saved_arguments(const EarlierRun& run, const fs::path& directory) {
  for (const auto& [mode, state] : run.states)
    if (state.extra.contains("arguments"))
      return json_get<std::vector<std::string>>(state.extra, "arguments", directory.string() + ", state of " + mode);
  return {};
}

Earlier earlier_of(const Options& options) {
  return options.overwrite ? Earlier::overwrite : options.resume ? Earlier::resume : Earlier::refuse;
}

/// Whether these options ask for a round or an epoch that the run does not have yet.
bool goes_on(const EarlierRun& run, const Options& options) {
  return std::any_of(mode_order.begin(), mode_order.end(), [&](const std::string& mode) {
    const auto state = run.states.find(mode);
    const Index wanted = mode == "federated" ? options.rounds : options.reference_epochs;
    return options.runs(mode) && (state == run.states.end() || state->second.round < wanted);
  });
}

/// Another level of CPU instructions gives other bits: a run goes on under it only when it is asked for, and says so
/// from then on ("avx512 then avx2").
Inputs with_history_of_cpu(Inputs inputs, const Options& options) {
  const Json now = inputs.config["cpu"];
  if (!options.resume || !now.is_string()) return inputs;
  const EarlierRun earlier = earlier_run(options.out);
  std::string history;
  for (const auto& [mode, state] : earlier.states)
    if (const Json saved = state.config.value("cpu", Json());
        saved.is_string() && saved.get<std::string>().size() > history.size())
      history = saved.get<std::string>();
  const std::string level = now.get<std::string>(), separator = " then ";
  const auto last = history.rfind(separator);
  const std::string before = last == std::string::npos ? history : history.substr(last + separator.size());
  if (history.empty()) return inputs;
  if (before == level || !goes_on(earlier, options)) {
    inputs.config["cpu"] = history;
    return inputs;
  }
  if (!options.other_cpu)
    fail<ConfigError>("resume, field cpu",
                      before + ", as the saved run has it; --cpu " + level + " goes on with this one all the same",
                      level);
  std::cerr << "note: the run so far was computed with " << history << ", and goes on with " << level
            << ": its result will be that of no run on one processor\n";
  inputs.config["cpu"] = history + separator + level;
  return inputs;
}

}  // namespace

Assignment::Assignment(const Options& given)
    : options(given),
      inputs(with_history_of_cpu(read_inputs(given), given)),
      out(given.out, earlier_of(given), inputs.config, inputs.measures.fields()) {
  if (!options.export_plan.empty() && earlier_of(given) == Earlier::refuse &&
      fs::exists(fs::path(options.export_plan) / "plan.json"))
    fail<ConfigError>(options.export_plan,
                      "a directory without a plan (--export-plan); --overwrite replaces the one there",
                      "the plan of an earlier run");
  if (out.done() && !options.export_plan.empty())
    fail<ConfigError>(options.out,
                      "a directory without this run (--out), or --overwrite, to run it again for --export-plan",
                      "this run, finished");
  if (!options.taken_note.empty()) std::cerr << "note: " << options.taken_note << '\n';
}

bool Assignment::done() const {
  if (!out.done()) return false;
  std::cout << "This run was done before: " << (out.path() / "summary.json").string()
            << " holds what these options gave, and would give again.\n\n"
            << result_table(*out.done(), inputs.measures) << "\nTo run it again: --overwrite. To go on "
            << (options.runs("federated") ? "with more rounds: " + options.resume_options + " --rounds N"
                                          : "for more epochs: " + options.resume_options + " --reference-epochs N")
            << ". Another run: --out DIR.\n";
  return true;
}

void take_saved_options(CLI::App& app, int argc, char** argv, Options& options) {
  const EarlierRun earlier = options.resume ? earlier_run(options.out) : EarlierRun();
  const std::vector<std::string> saved = saved_arguments(earlier, options.out);
  options.other_cpu = app.count("--cpu") > 0;
  if (options.resume && !earlier.has_state() && !says_what_run_it_is(app))
    fail<ConfigError>(options.out, "a directory with a run to go on with (--out)",
                      earlier.any()
                          ? "one whose state/ is gone: the run there is finished, or cannot go on; --overwrite "
                            "starts anew"
                          : "none: nothing is saved there; a new run is started without --resume");
  if (!saved.empty()) {
    std::vector<std::string> alone(saved.rbegin(), saved.rend());
    try {
      app.parse(alone);
    } catch (const CLI::ParseError& error) {
      fail<FormatError>(options.out + "/state, field arguments", "options of this program (--overwrite starts anew)",
                        detail::printable(error.what(), 200));
    }
    std::vector<std::string> all = saved;
    all.insert(all.end(), argv + 1, argv + argc);  // of two values of an option, the last counts
    std::reverse(all.begin(), all.end());          // CLI11 wants them so
    app.parse(all);
  }
  options.arguments = given_arguments(app);
  if (saved.empty()) return;
  options.taken_note = "goes on with the options of the run in " + options.out + ":";
  for (const std::string& argument : options.arguments) options.taken_note += " " + detail::printable(argument);
}

}  // namespace fedlora::examples
