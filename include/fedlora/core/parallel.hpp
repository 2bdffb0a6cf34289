// SPDX-License-Identifier: Apache-2.0
// Work shared by a few threads that live as long as the call. Results never depend on which worker took an item.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "fedlora/core/standard.hpp"

namespace fedlora {

namespace detail {

/// Threads that are waited for at the end of the scope, whatever ends it. (libc++ has std::jthread since version 20
/// only.)
struct JoinedThreads {
  std::vector<std::thread> threads;
  ~JoinedThreads() {
    for (std::thread& thread : threads) thread.join();
  }
};

}  // namespace detail

/// The number of workers `threads` asks for: itself, or one per hardware thread when it is 0.
inline int worker_count(int threads) {
  if (threads > 0) return threads;
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

/// Calls `work(worker, item)` once for every item in [0, items), on up to `threads` workers (0: one per hardware thread).
/// Items are taken in order; a worker number is used by one thread at a time. When calls throw, no new items are started and
/// the exception of the lowest item is thrown again, so that the error does not depend on timing any more than it must.
template <class Work>
void parallel_for(std::size_t items, int threads, Work&& work) {
  const auto workers = static_cast<int>(std::min<std::size_t>(static_cast<std::size_t>(worker_count(threads)), items));
  if (workers <= 1) {
    for (std::size_t item = 0; item < items; ++item) work(0, item);
    return;
  }
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::exception_ptr error;
  std::size_t error_item = items;
  const auto loop = [&](int worker) {
    while (!stop.load(std::memory_order_relaxed)) {
      const std::size_t item = next.fetch_add(1, std::memory_order_relaxed);
      if (item >= items) return;
      try {
        work(worker, item);
      } catch (...) {
        const std::lock_guard lock(mutex);
        stop.store(true, std::memory_order_relaxed);
        if (item < error_item) {
          error_item = item;
          error = std::current_exception();
        }
      }
    }
  };
  {
    detail::JoinedThreads pool;
    pool.threads.reserve(static_cast<std::size_t>(workers - 1));
    for (int worker = 1; worker < workers; ++worker) pool.threads.emplace_back(loop, worker);
    loop(0);
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace fedlora
