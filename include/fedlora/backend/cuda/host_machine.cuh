// SPDX-License-Identifier: Apache-2.0
// Runs one block of a kernel on the host: a fibre for every thread, one of them at a time. A warp runs as far as it can
// before the next one does, in an order drawn anew after each barrier, so that whatever a missing barrier allows to
// happen does happen. Collective operations of a warp wait for all its lanes and are then computed at once.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && defined(FEDLORA_CUDA_ON_HOST)

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/host_context.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"

namespace fedlora::cuda {

/// A mistake of a kernel, found by running it on the host; `where` names the block and the thread.
class KernelFault : public Error {
 public:
  using Error::Error;
};

namespace host {

/// A line of a kernel.
struct Place {
  const char* file = "";
  int line = 0;
  friend bool operator==(const Place& a, const Place& b) {
    return a.line == b.line && std::strcmp(a.file, b.file) == 0;
  }
};

class Machine;

/// One thread of a block.
struct Fibre {
  enum class State { ready, at_barrier, in_warp, finished };
  struct Copy {
    std::byte* to;
    const void* from;
    int bytes;
  };

  Machine* machine = nullptr;
  int thread = 0;
  std::unique_ptr<std::byte[]> stack;
  Context context;
  void* fake_stack = nullptr;
  State state = State::ready;
  Place place;                              ///< where it waits
  const char* operation = "";               ///< what for
  void* operand = nullptr;                  ///< what it brings to its warp's operation
  void (*perform)(Fibre* lanes) = nullptr;  ///< computes the operation for the 32 lanes
  std::vector<Copy> begun;                  ///< asynchronous copies that no group holds yet
  std::vector<std::vector<Copy>> groups;    ///< oldest first
};

class Machine {
 public:
  Machine(int threads, int shared_bytes, std::uint64_t seed)
      : shared_bytes_(static_cast<std::size_t>(shared_bytes)),
        shared_(static_cast<std::byte*>(::operator new (shared_bytes_ + 1, std::align_val_t{128}))),
        draws_(derive_key(seed, Purpose::user, threads)),
        fibres_(spare_fibres()) {
    if (threads < 1 || threads > 1024 || threads % 32 != 0)
      fail<KernelFault>("launch", "1 to 32 warps of 32 threads", std::to_string(threads) + " threads");
    while (static_cast<int>(fibres_.size()) < threads) {
      fibres_.emplace_back();
      fibres_.back().stack.reset(new std::byte[StackNotices::stack_bytes]);  // touched only as far as it is used
    }
    threads_ = threads;
    for (int warp = 0; warp < threads / 32; ++warp) warps_.push_back(warp);
    for (int lane = 0; lane < 32; ++lane) lanes_.push_back(lane);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() { ::operator delete (shared_, std::align_val_t{128}); }

  /// Runs block (x, y); `body(kernel, fibre)` is what one thread does. \throws KernelFault
  void run(std::int64_t x, std::int64_t y, const void* kernel, void (*body)(const void*, Fibre&)) {
    x_ = x;
    y_ = y;
    kernel_ = kernel;
    body_ = body;
    std::memset(shared_, 0xff, shared_bytes_);  // not a number, in every type
    for (int thread = 0; thread < threads_; ++thread) prepare(thread);
    for (;;) {
      draws_.shuffle(warps_);
      draws_.shuffle(lanes_);
      for (const int warp : warps_) run_warp(warp);
      if (!release_barrier()) return;
    }
  }

  std::int64_t x() const { return x_; }
  std::int64_t y() const { return y_; }
  int threads() const { return threads_; }

  /// `bytes` of shared memory from `offset`.
  std::byte* shared(const Fibre& fibre, std::size_t offset, std::size_t bytes) const {
    if (offset + bytes > shared_bytes_)
      fault(fibre, "at most " + std::to_string(shared_bytes_) + " bytes of shared memory",
            std::to_string(offset + bytes));
    return shared_ + offset;
  }

  /// Waits until the scheduler goes on with this fibre.
  void pause(Fibre& fibre, Fibre::State state, const char* operation, Place place) {
    fibre.state = state;
    fibre.operation = operation;
    fibre.place = place;
    StackNotices::leave(&fibre.fake_stack, main_bottom_, main_size_);
    switch_context(fibre.context, main_);
    StackNotices::arrive(fibre.fake_stack, nullptr, nullptr);
  }

  [[noreturn]] void fault(const Fibre& fibre, const std::string& expected, const std::string& got) const {
    fail<KernelFault>(
        "block (" + std::to_string(x_) + ", " + std::to_string(y_) + "), thread " + std::to_string(fibre.thread),
        expected, got);
  }

 private:
  /// Stacks are kept from launch to launch.
  static std::vector<Fibre>& spare_fibres() {
    thread_local std::vector<Fibre> fibres;
    return fibres;
  }

  /// A fibre begins with a function without arguments.
  static Machine*& current() {
    thread_local Machine* machine = nullptr;
    return machine;
  }

  void prepare(int thread) {
    Fibre& fibre = fibres_[static_cast<std::size_t>(thread)];
    fibre.machine = this;
    fibre.thread = thread;
    fibre.state = Fibre::State::ready;
    fibre.fake_stack = nullptr;
    fibre.begun.clear();
    fibre.groups.clear();
    StackNotices::reuse(fibre.stack.get(), StackNotices::stack_bytes);
    fibre.context.begin(fibre.stack.get(), StackNotices::stack_bytes, &Machine::enter);
  }

  static void enter() {
    Machine& machine = *current();
    StackNotices::arrive(nullptr, &machine.main_bottom_, &machine.main_size_);
    Fibre& fibre = *machine.running_;
    try {
      machine.body_(machine.kernel_, fibre);
    } catch (...) {
      machine.thrown_ = std::current_exception();
    }
    fibre.state = Fibre::State::finished;
    StackNotices::leave(nullptr, machine.main_bottom_, machine.main_size_);
    switch_context(fibre.context, machine.main_);
  }

  void resume(Fibre& fibre) {
    current() = this;
    running_ = &fibre;
    void* kept = nullptr;
    StackNotices::leave(&kept, fibre.stack.get(), StackNotices::stack_bytes);
    switch_context(main_, fibre.context);
    StackNotices::arrive(kept, nullptr, nullptr);
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
  }

  /// Until every lane is at a barrier or has finished.
  void run_warp(int warp) {
    Fibre* const lanes = &fibres_[static_cast<std::size_t>(warp) * 32];
    for (;;) {
      for (const int lane : lanes_)
        if (lanes[lane].state == Fibre::State::ready) resume(lanes[lane]);
      const Fibre* waiting = nullptr;
      for (int lane = 0; lane < 32 && waiting == nullptr; ++lane)
        if (lanes[lane].state == Fibre::State::in_warp) waiting = &lanes[lane];
      if (waiting == nullptr) return;
      for (int lane = 0; lane < 32; ++lane)
        if (lanes[lane].state != Fibre::State::in_warp || lanes[lane].perform != waiting->perform ||
            !(lanes[lane].place == waiting->place))
          fault(*waiting, "all of its warp " + where(*waiting),
                "thread " + std::to_string(lanes[lane].thread) + " " + where(lanes[lane]));
      if (waiting->perform != nullptr) waiting->perform(lanes);
      for (int lane = 0; lane < 32; ++lane) lanes[lane].state = Fibre::State::ready;
    }
  }

  /// Lets everybody through the barrier; false when all have finished.
  bool release_barrier() {
    const Fibre* waiting = nullptr;
    for (int thread = 0; thread < threads_ && waiting == nullptr; ++thread)
      if (fibres_[static_cast<std::size_t>(thread)].state == Fibre::State::at_barrier)
        waiting = &fibres_[static_cast<std::size_t>(thread)];
    if (waiting == nullptr) return false;
    for (int thread = 0; thread < threads_; ++thread) {
      const Fibre& other = fibres_[static_cast<std::size_t>(thread)];
      if (other.state != Fibre::State::at_barrier || !(other.place == waiting->place))
        fault(*waiting, "all of its block " + where(*waiting), "thread " + std::to_string(thread) + " " + where(other));
    }
    for (int thread = 0; thread < threads_; ++thread)
      fibres_[static_cast<std::size_t>(thread)].state = Fibre::State::ready;
    return true;
  }

  static std::string where(const Fibre& fibre) {
    if (fibre.state == Fibre::State::finished) return "at its end";
    const std::string file = fibre.place.file;
    return std::string("at ") + fibre.operation + " (" + file.substr(file.rfind('/') + 1) + ":" +
           std::to_string(fibre.place.line) + ")";
  }

  std::size_t shared_bytes_;
  std::byte* shared_;
  RandomSequence draws_;
  std::vector<Fibre>& fibres_;
  int threads_ = 0;
  std::vector<int> warps_, lanes_;  ///< in the order of their turns
  std::int64_t x_ = 0, y_ = 0;
  const void* kernel_ = nullptr;
  void (*body_)(const void*, Fibre&) = nullptr;
  Fibre* running_ = nullptr;
  std::exception_ptr thrown_;
  Context main_;
  const void* main_bottom_ = nullptr;
  std::size_t main_size_ = 0;
};

}  // namespace host
}  // namespace fedlora::cuda

#endif
