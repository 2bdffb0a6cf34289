// SPDX-License-Identifier: Apache-2.0
// Runs one of our programs as a person would: arguments in, exit status and both streams out; signals and limits on
// demand.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support.hpp"

namespace fedlora::tests {

/// The model that the programs carry.
inline const std::string stories = std::string(FEDLORA_TEST_DIR) + "/../examples/data/stories260K";

struct Finished {
  int status = 0;  ///< exit status, or 128 + signal
  std::string out, err;
};

/// What a program may use; whoever goes beyond is refused it, or ended by a signal (processor time).
struct Limits {
  rlim_t file = RLIM_INFINITY;           ///< bytes of the largest file: writing beyond fails, as on a full disk
  rlim_t address_space = RLIM_INFINITY;  ///< bytes
  rlim_t processor_seconds = RLIM_INFINITY;
};

/// A program that is running, in `scratch`; its streams go to files there.
class Program {
 public:
  Program(const std::filesystem::path& scratch, const std::string& name, std::vector<std::string> arguments,
          const std::string& input = "", const Limits& limits = {})
      : out_(scratch / "stdout"), err_(scratch / "stderr") {
    write_text(scratch / "stdin", input);
    write_text(out_, "");  // what an earlier program wrote is not this one's
    write_text(err_, "");
    const std::string path = std::string(FEDLORA_PROGRAM_DIR) + "/fedlora-" + name;
    arguments.insert(arguments.begin(), path);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    child_ = ::fork();
    if (child_ < 0) throw std::runtime_error("fork failed");
    if (child_ == 0) {
      if (::chdir(scratch.c_str()) != 0) ::_exit(126);
      const auto redirect = [](const std::filesystem::path& file, int flags, int to) {
        const int from = ::open(file.c_str(), flags, 0666);
        if (from < 0 || ::dup2(from, to) < 0) ::_exit(126);
      };
      redirect(scratch / "stdin", O_RDONLY, STDIN_FILENO);
      redirect(out_, O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
      redirect(err_, O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
      ::signal(SIGXFSZ, SIG_IGN);
      for (const auto& [what, most] : {std::pair(RLIMIT_FSIZE, limits.file), std::pair(RLIMIT_AS, limits.address_space),
                                       std::pair(RLIMIT_CPU, limits.processor_seconds)}) {
        const rlimit limit{most, most};
        if (most != RLIM_INFINITY && ::setrlimit(what, &limit) != 0) ::_exit(126);
      }
      ::execv(path.c_str(), argv.data());
      ::_exit(127);
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
  }

  void signal(int number) const { ::kill(child_, number); }

  /// What standard output holds so far.
  std::string out() const { return read_text(out_); }

  Finished wait() {
    int status = 0;
    ::waitpid(std::exchange(child_, -1), &status, 0);
    return {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), read_text(out_), read_text(err_)};
  }

 private:
  std::filesystem::path out_, err_;
  pid_t child_ = -1;
};

inline Finished run_program(const std::filesystem::path& scratch, const std::string& name,
                            std::vector<std::string> arguments, const std::string& input = "",
                            const Limits& limits = {}) {
  return Program(scratch, name, std::move(arguments), input, limits).wait();
}

}  // namespace fedlora::tests
