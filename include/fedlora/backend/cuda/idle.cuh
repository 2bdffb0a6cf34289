// SPDX-License-Identifier: Apache-2.0
// What a CUDA backend keeps from one call to the next: the kits that its runners are made of, and what it has counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// What has happened on a backend since it was made.
struct Counts {
  std::int64_t runners_made = 0;      ///< each with a stream, pinned memory and cuBLAS handles; others were made before
  std::int64_t trainees_made = 0;     ///< each with a graph and the buffers of a client in training
  std::int64_t graphs_launched = 0;   ///< training steps that ran as graphs
  std::int64_t graphs_made = 0;       ///< of them, those that needed a new executable graph
  std::int64_t captures_refused = 0;  ///< steps that ran without a graph because memory had to grow
  std::int64_t captures_failed = 0;   ///< steps that ran without one because their capture failed
};

/// Counts from any thread.
class Tally {
 public:
  void add(std::int64_t Counts::*what, std::int64_t count = 1) {
    const std::lock_guard lock(mutex_);
    counts_.*what += count;
  }
  Counts counts() const {
    const std::lock_guard lock(mutex_);
    return counts_;
  }

 private:
  mutable std::mutex mutex_;
  Counts counts_;
};

/// What one runner is made of, apart from its type.
class Kit {
 public:
  Kit() = default;
  Kit(const Kit&) = delete;
  Kit& operator=(const Kit&) = delete;
  virtual ~Kit() = default;
};

/// Kits that wait for their next runner. There are never more than runners have been at work at the same time. Any
/// thread may call it at any time.
class IdleKits {
 public:
  /// The one that was kept last, whose memory is warm; null if there is none of this type.
  template <class K>
  std::unique_ptr<K> take() {
    const std::lock_guard lock(mutex_);
    for (auto at = kits_.rbegin(); at != kits_.rend(); ++at) {
      if (dynamic_cast<K*>(at->get()) == nullptr) continue;
      std::unique_ptr<K> taken(static_cast<K*>(at->release()));
      kits_.erase(std::next(at).base());
      return taken;
    }
    return nullptr;
  }

  void keep(std::unique_ptr<Kit> kit) {
    const std::lock_guard lock(mutex_);
    kits_.push_back(std::move(kit));
  }

  /// Ends all of them. \pre their device is the current one
  void clear() {
    std::vector<std::unique_ptr<Kit>> ending;
    {
      const std::lock_guard lock(mutex_);
      ending.swap(kits_);
    }
  }

  /// Forgets all of them and ends none, for when their device is out of reach.
  void abandon() noexcept {
    const std::lock_guard lock(mutex_);
    for (auto& kit : kits_) static_cast<void>(kit.release());
    kits_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Kit>> kits_;
};

}  // namespace fedlora::cuda

#endif
