// SPDX-License-Identifier: Apache-2.0
// Small tables of a batch on their way to the device: collected in pinned memory, they go up in one copy while the host
// prepares what comes next.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/core/error.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Copies of tables in device memory, for work in one stream.
///
///   staging.reset();                              // a new batch
///   const auto* ids = staging.upload(host_ids);   // as many tables as there are
///   staging.flush();                              // one copy
///   ...                                           // kernels in the same stream read them
///
/// The host fills one of two pinned blocks while the copy of the other may still be under way; `reset` waits for the
/// copy of the batch before the last. As long as batches do not grow, tables of the same sizes have the same addresses.
/// Nothing of this can happen in a capture: a graph would copy what the host has written by the time it runs.
class Staging {
 public:
  explicit Staging(DeviceMemory memory, Stream stream, std::size_t bytes = std::size_t{1} << 16)
      : memory_(std::move(memory)), stream_(stream) {
    add_chunk(bytes);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    for (Chunk& chunk : chunks_)
      for (const Half& half : chunk.halves) wait_quietly(half);  // pinned memory must outlive the copies that read it
  }

  /// Where the values will be for kernels that are launched after `flush`, until `reset`; on a multiple of 16 bytes.
  /// They are copied before this returns. Empty tables have an address too. \throws CudaError
  template <class U>
  const U* upload(std::span<const U> values) {
    static_assert(std::is_trivially_copyable_v<U> && alignof(U) <= alignment);
    detail::refuse_in_capture("cuda::Staging");
    const std::size_t bytes = values.size_bytes();
    const std::size_t whole = detail::round_up(std::max<std::size_t>(bytes, 1), alignment);
    while (current_ < chunks_.size() && chunks_[current_].used + whole > chunks_[current_].device.size()) ++current_;
    if (current_ == chunks_.size()) add_chunk(std::max(whole, capacity()));
    Chunk& chunk = chunks_[current_];
    const std::size_t offset = chunk.used;
    chunk.used += whole;
    if (bytes > 0) std::memcpy(chunk.halves[turn_].host.data() + offset, values.data(), bytes);
    return reinterpret_cast<const U*>(chunk.device.data() + offset);
  }
  template <class U>
  const U* upload(const std::vector<U>& values) {
    return upload(std::span<const U>(values));
  }

  /// Queues the copy of what was uploaded since the last flush: one, unless this batch is the largest so far.
  /// \throws CudaError
  void flush() {
    detail::refuse_in_capture("cuda::Staging");
    for (Chunk& chunk : chunks_) {
      if (chunk.used == chunk.flushed) continue;
      Half& half = chunk.halves[turn_];
      detail::copy(detail::Copy::to_device, chunk.device.data() + chunk.flushed, half.host.data() + chunk.flushed,
                   chunk.used - chunk.flushed, stream_);
      if (!half.copied.record(stream_))
        fail<CudaError>("cuda::Staging", "a stream whose copies can be waited for",
                        "one that is gone or being captured");
      chunk.flushed = chunk.used;
    }
  }

  /// Begins a new batch: the tables of the last one may be overwritten by the next `flush`. Waits for the copy of the
  /// batch before, whose pinned memory is taken again. \throws CudaError
  void reset() {
    detail::refuse_in_capture("cuda::Staging");
    if (chunks_.size() > 1) merge();
    turn_ = 1 - turn_;
    for (Chunk& chunk : chunks_) {
      chunk.halves[turn_].copied.wait();
      detail::Watch::spoil(chunk.device.data(), chunk.used);
      chunk.used = chunk.flushed = 0;
    }
    current_ = 0;
  }

  /// Bytes of tables that one batch can have without an allocation.
  std::size_t capacity() const {
    std::size_t total = 0;
    for (const Chunk& chunk : chunks_) total += chunk.device.size();
    return total;
  }

  Stream stream() const { return stream_; }

 private:
  static constexpr std::size_t alignment = 16;

  /// What the host writes for one batch.
  struct Half {
    detail::PinnedMemory host;
    detail::Event copied;
  };

  struct Chunk {
    DeviceBuffer device;
    Half halves[2];
    std::size_t used = 0;
    std::size_t flushed = 0;
  };

  void add_chunk(std::size_t bytes) {
    const std::size_t whole = detail::round_up(bytes, DeviceMemory::alignment);
    Chunk chunk{DeviceBuffer(memory_, whole, "tables of a batch", stream_), {}, 0, 0};
    for (Half& half : chunk.halves) half.host = detail::PinnedMemory(whole);
    chunks_.push_back(std::move(chunk));
  }

  /// One chunk in the place of all.
  void merge() {
    const std::size_t total = capacity();
    for (Chunk& chunk : chunks_)
      for (const Half& half : chunk.halves) half.copied.wait();
    chunks_.clear();
    add_chunk(total);
  }

  static void wait_quietly(const Half& half) noexcept {
    try {
      half.copied.wait();
    } catch (const CudaError&) {  // then nothing is under way any more
    }
  }

  DeviceMemory memory_;
  Stream stream_;
  std::vector<Chunk> chunks_;
  std::size_t current_ = 0;
  std::size_t turn_ = 0;  ///< which half the host fills
};

}  // namespace fedlora::cuda

#endif
