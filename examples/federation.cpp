// SPDX-License-Identifier: Apache-2.0
// fedlora-federation: a federation of LoRA adapters over a Hugging Face checkpoint, and the runs it is compared with.
//
//   federation/options.hpp            the command line
//   federation/inputs.hpp             tables and partition
//   federation/output_directory.hpp   --out, never two runs
//   federation/assignment.hpp         options, inputs, output
//   federation/experiment_impl.hpp    sets the runs up, in parallel
//   federation/run.hpp                the loop of one run
//   federation/report.hpp             what is printed
//   federation/plan_export.hpp        for a twin in Python
#include <iostream>
#include <string>
#include <utility>

#include "backend.hpp"
#include "command_line.hpp"
#include "cuda/on_cuda.hpp"
#include "federation/assignment.hpp"
#include "federation/console.hpp"
#include "federation/experiment.hpp"
#include "fedlora/hf/pretrained.hpp"

namespace {

using namespace fedlora::examples;

template <class T>
int run_on_cpu(const Options& options) {
  using B = ProgramBackend<T>;
  Assignment assignment(options);
  if (assignment.done()) return 0;
  const std::string machine =
      options.device.dtype + ", " + chosen_cpu().name + " instructions, matrix products by " + ProgramGemm<T>::name;
  return fedlora::with_pretrained(B(), model_files(options.model), [&]<class Arch>(fedlora::Pretrained<Arch, B> base) {
    return run_experiment(std::move(base), machine, assignment);
  });
}

int run(const Options& options) {
  if (options.device.cuda()) return with_cuda_type(options.device, [&]<class T>(T) { return run_on_cuda<T>(options); });
  return options.device.dtype == "f64" ? run_on_cpu<double>(options) : run_on_cpu<float>(options);
}

/// `argument` as a shell takes it.
std::string shell_quoted(const std::string& argument) {
  if (!argument.empty() && argument.find_first_of(" \t\n'\"\\$`*?[]{}()<>|&;~#!") == std::string::npos) return argument;
  std::string text = "'";
  for (const char c : argument) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Trains LoRA adapters over a frozen Hugging Face checkpoint, federated among clients with skewed data, and the "
      "runs\n"
      "it is compared with: on all data in one place, every client alone, and with nothing trained but the head.\n"
      "Without --model and --train it uses a small model and a data set that are part of the program.",
      "fedlora-federation");
  Options options;
  declare(app, options);
  return run_program(app, argc, argv, [&] {
    take_saved_options(app, argc, argv, options);
    complete(app, options);
    Interrupt::listen();
    options.resume_options = "--resume" + (app.count("--out") > 0 ? " --out " + shell_quoted(options.out) : "");
    options.resume_command = shell_quoted(argv[0]) + " " + options.resume_options;
    return run(options);
  });
}
