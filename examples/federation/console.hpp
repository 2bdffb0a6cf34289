// SPDX-License-Identifier: Apache-2.0
// What a person sees while it runs: results on standard output, progress with the time left on standard error, and
// Ctrl-C as a request that is asked about before every step.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "fedlora/core/shape.hpp"
#include "fedlora/report/text_table.hpp"

namespace fedlora::examples {

/// Turns SIGINT and SIGTERM into a flag. The second one ends the program at once, which loses nothing that is saved.
///
/// A thread of its own waits for them, and all others have them blocked: oneDNN's generated code keeps data below its stack
/// pointer, where the kernel would put the frame of a signal handler.
class Interrupt {
 public:
  /// To be called before any other thread starts: they inherit what is blocked.
  static void listen() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread([signals] {
      int number = 0;
      sigwait(&signals, &number);
      flag() = true;
      sigwait(&signals, &number);
      std::_Exit(130);
    }).detach();
  }
  static bool requested() { return flag(); }

 private:
  static std::atomic<bool>& flag() {
    static std::atomic<bool> requested{false};
    return requested;
  }
};

/// Both streams, from several threads. Progress is one line that changes on a terminal, and a line now and then
/// elsewhere; short work has none.
class Console {
 public:
  /// Prints a whole line or several to standard output.
  void print(const std::string& text) {
    const std::lock_guard lock(mutex_);
    clear();
    std::cout << text << std::flush;
  }

  /// Prints a line to standard error.
  void note(const std::string& text) {
    const std::lock_guard lock(mutex_);
    clear();
    std::cout << std::flush;
    std::cerr << text << '\n';
  }

  /// Begins to measure `steps` of work.
  void expect(Index steps) {
    const std::lock_guard lock(mutex_);
    total_ = steps;
    done_ = 0;
    started_ = shown_ = Clock::now();
  }

  /// Reports that a step is done, and what is being worked at.
  void step(const std::string& doing) {
    const std::lock_guard lock(mutex_);
    ++done_;
    const auto now = Clock::now();
    const double since = seconds(now - shown_);
    const double elapsed = seconds(now - started_);
    if (elapsed < 3 || since < (terminal_ ? 0.5 : 15.0)) return;
    shown_ = now;
    const double left = elapsed / static_cast<double>(done_) * static_cast<double>(std::max<Index>(0, total_ - done_));
    const std::string line = doing + ", " + std::to_string(100 * done_ / std::max<Index>(1, total_)) + "% of all steps, " +
                             duration_text(left) + " left";
    if (terminal_) clear();
    std::cerr << line << (terminal_ ? "" : "\n") << std::flush;
    on_screen_ = terminal_;
  }

  /// Takes the progress line away.
  void finish() {
    const std::lock_guard lock(mutex_);
    clear();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

  void clear() {
    if (std::exchange(on_screen_, false)) std::cerr << "\r\033[K" << std::flush;
  }

  std::mutex mutex_;
  bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  bool on_screen_ = false;
  Index total_ = 0, done_ = 0;
  Clock::time_point started_, shown_;
};

}  // namespace fedlora::examples
