// SPDX-License-Identifier: Apache-2.0
// What a run is of, and where it goes: all that is known, and may be refused, before the model is loaded.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "federation/inputs.hpp"
#include "federation/options.hpp"
#include "federation/output_directory.hpp"

namespace fedlora::examples {

struct Assignment {
  const Options& options;
  Inputs inputs;
  OutputDirectory out;

  /// \throws what `read_inputs` and OutputDirectory throw
  explicit Assignment(const Options& given);

  /// Whether this very run was finished earlier; prints what it gave then.
  bool done() const;
};

/// With --resume, options that were not given become those of the run in --out. Without, and in any case,
/// `options.arguments` are what decides the run afterwards. \throws ConfigError where --resume finds nothing to go on
/// with, and no option says what run else there would be
void take_saved_options(CLI::App& app, int argc, char** argv, Options& options);

}  // namespace fedlora::examples
