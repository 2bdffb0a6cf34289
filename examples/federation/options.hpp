// SPDX-License-Identifier: Apache-2.0
// The command line of fedlora-federation.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "device.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/io/json.hpp"
#include "problem_type.hpp"

namespace fedlora::examples {

struct Options {
  std::string model, adapter, train, test;
  std::string text_column, text_pair_column, label_column;
  ProblemOptions problem;
  std::string header = "auto";
  Index clients = 20;
  std::string partition = "dirichlet";
  double dirichlet = 0.3;
  double cohort = 0.5;
  Index rounds = 12;
  Index local_epochs = 1;
  Index local_steps = 0;
  Index reference_epochs = 0;
  Index batch = 16;
  double lr = 1e-3;
  double head_lr = 1e-2;
  std::string lr_schedule = "constant";
  double weight_decay = 0.01;
  Index rank = 8;
  double alpha = 16;
  std::optional<double> dropout, base_dropout;
  std::string targets = "all-linear";
  std::string pooling;              ///< empty: the adapter's, else the family's
  std::optional<Index> max_tokens;  ///< absent: the adapter's, else the model's own limit
  std::string method = "fedavg";
  double mu = 0;
  std::uint64_t seed = 1;
  Device device;
  bool other_cpu = false;  ///< --cpu was given for this call, whatever the saved run had
  int threads = 0;
  Index eval_every = 1;
  std::string out = "./fedlora-out";
  bool resume = false, overwrite = false;
  std::vector<std::string> arguments;  ///< what was given, as --resume gives it again
  std::string export_plan;
  std::string mode = "all";
  std::string taken_note;      ///< what --resume took over; empty: nothing
  std::string resume_options;  ///< what a person adds to go on with this run
  std::string resume_command;  ///< what a person types to go on after an interrupt

  bool runs(const std::string& one) const { return mode == "all" || mode == one; }
  /// The column of a natural partition; empty for the others.
  std::string natural_column() const;
  std::vector<std::string> text_columns() const;
};

/// Declares the options on `app`; they are in `options` once it has parsed.
void declare(CLI::App& app, Options& options);

/// Fills in what depends on other options. \throws UsageError when options contradict each other.
void complete(const CLI::App& app, Options& options);

/// The configuration as it is saved: all that decides the results, and how it was run.
Json config_of(const Options& options);

/// The fields of the configuration that may differ between a run and its resumption, or are looked at apart.
const std::set<std::string>& may_differ();

}  // namespace fedlora::examples
