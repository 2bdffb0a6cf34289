// SPDX-License-Identifier: Apache-2.0
// What a CUDA backend keeps from one call to the next: the resources that its runners are made of, and what it has
// counted.
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
  std::int64_t runners_made =
      0;  ///< each with a stream, pinned memory and cuBLAS handles; not those made of kept parts
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
class KeptResources {
 public:
  KeptResources() = default;
  KeptResources(const KeptResources&) = delete;
  KeptResources& operator=(const KeptResources&) = delete;
  virtual ~KeptResources() = default;
};

/// Resources that wait for their next runner. There are never more than runners have been at work at the same time. Any
/// thread may call it at any time.
class IdleResources {
 public:
  /// The one that was kept last, whose memory is warm; null if there is none of this type.
  template <class K>
  std::unique_ptr<K> take() {
    const std::lock_guard lock(mutex_);
    for (auto at = resources_.rbegin(); at != resources_.rend(); ++at) {
      if (dynamic_cast<K*>(at->get()) == nullptr) continue;
      std::unique_ptr<K> taken(static_cast<K*>(at->release()));
      resources_.erase(std::next(at).base());
      return taken;
    }
    return nullptr;
  }

  void keep(std::unique_ptr<KeptResources> resources) {
    const std::lock_guard lock(mutex_);
    resources_.push_back(std::move(resources));
  }

  /// Ends all of them. \pre their device is the current one
  void clear() {
    std::vector<std::unique_ptr<KeptResources>> ending;
    {
      const std::lock_guard lock(mutex_);
      ending.swap(resources_);
    }
  }

  /// Forgets all of them and ends none, for when their device is out of reach.
  void abandon() noexcept {
    const std::lock_guard lock(mutex_);
    for (auto& resources : resources_) static_cast<void>(resources.release());
    resources_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<KeptResources>> resources_;
};

}  // namespace fedlora::cuda

#endif
