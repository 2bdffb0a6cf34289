// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime as the host plays it: everything happens at once, and memory is watched. What is handed out is full
// of 0xff, a NaN in every type; what lies behind it must not change; what was given back must be left alone.
#pragma once

#include "fedlora/backend/cuda/transfer.cuh"

#if defined(FEDLORA_DEVICE) && defined(FEDLORA_CUDA_ON_HOST)

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>

#include "fedlora/backend/cuda/host_block.cuh"
#include "fedlora/backend/cuda/host_capture.cuh"

namespace fedlora::cuda {

using StreamId = std::uint64_t;
inline constexpr StreamId no_stream = ~StreamId{0};

/// Streams of one seed are one stream.
inline StreamId stream_id(Stream stream) noexcept { return stream.seed; }

/// On the host a stream is the seed of the order in which threads take turns.
class OwnedStream {
 public:
  explicit OwnedStream(std::uint64_t seed = 0) : stream_{seed} { ++host::made().streams; }
  OwnedStream(OwnedStream&&) noexcept = default;
  OwnedStream& operator=(OwnedStream&&) noexcept = default;

  Stream get() const { return stream_; }

 private:
  Stream stream_;
};

namespace detail {

inline bool can_capture(Stream) { return true; }

inline void wait_for(Stream) {}

class Event {
 public:
  bool record(Stream) noexcept { return capture_of_thread() == nullptr; }
  void hold_back(Stream) const {}
  void wait() const {}
};

class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(std::size_t bytes) : memory_(new std::byte[bytes]) { ++host::made().pinned_blocks; }
  std::byte* data() const { return memory_.get(); }

 private:
  std::unique_ptr<std::byte[]> memory_;
};

inline void* device_allocate(std::size_t bytes) { return ::operator new (bytes, std::align_val_t{256}, std::nothrow); }

inline void device_release(void* block) noexcept { ::operator delete (block, std::align_val_t{256}); }

/// Who may touch which bytes: whole blocks of a DeviceMemory, and the pieces that an Arena takes of them.
class Watch {
 public:
  /// Bytes behind what is handed out that must not change.
  static constexpr std::size_t guard = 256;

  static Watch& blocks() {
    static Watch& watch = *new Watch;  // outlives every pool
    return watch;
  }
  static Watch& pieces() {
    static Watch& watch = *new Watch;  // outlives every pool
    return watch;
  }

  /// The `bytes` from `begin` are for `what`; the rest of the `whole` is guard. Returns what is wrong with them, empty
  /// if nothing is.
  std::string hand_out(std::byte* begin, std::size_t bytes, std::size_t whole, std::string_view what) {
    if (this == &blocks()) pieces().forget(begin, whole);
    const std::lock_guard lock(mutex_);
    std::string damage;
    const auto before = entries_.find(begin);
    if (before != entries_.end() && before->second.watched && before->second.whole == whole) {
      const auto* const changed = std::find_if(begin, begin + whole, [](std::byte b) { return b != spoilt; });
      if (changed != begin + whole)
        damage = text("memory left alone after its end as " + before->second.what,
                      "byte " + std::to_string(changed - begin) + " changed");
    }
    drop(begin, whole);
    entries_[begin] = {bytes, whole, std::string(what), true, false};
    std::memset(begin, static_cast<int>(spoilt), bytes);
    std::memset(begin + bytes, static_cast<int>(fence), whole - bytes);
    return damage;
  }

  /// Nobody may touch them any more. Returns what is wrong with their guard, empty if nothing is.
  std::string take_back(std::byte* begin) {
    std::string damage = damage_behind(begin);
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_.at(begin);
    entry.live = false;
    entry.watched = this == &blocks();
    std::memset(begin, static_cast<int>(spoilt), entry.whole);
    return damage;
  }

  /// What is wrong with the guard; empty if nothing is.
  std::string damage_behind(std::byte* begin) const {
    const std::lock_guard lock(mutex_);
    const Entry& entry = entries_.at(begin);
    const auto* const end = begin + entry.whole;
    const auto* const changed =
        std::find_if(begin + entry.bytes, begin + entry.whole, [](std::byte b) { return b != fence; });
    if (changed == end) return {};
    return text("the memory behind " + std::to_string(entry.bytes) + " bytes for " + entry.what + " unchanged",
                "byte " + std::to_string(changed - begin) + " changed");
  }

  /// Whatever lies in these bytes is no longer ours, nor are pieces of it.
  void forget(std::byte* begin, std::size_t bytes) {
    if (this == &blocks()) pieces().forget(begin, bytes);
    const std::lock_guard lock(mutex_);
    drop(begin, bytes);
  }

  /// What is wrong with an access to these bytes; empty if nothing is, or if nobody here handed them out.
  std::string fault_of(const void* pointer, std::size_t bytes) const {
    const std::lock_guard lock(mutex_);
    auto* const first = static_cast<std::byte*>(const_cast<void*>(pointer));
    auto entry = entries_.upper_bound(first);
    if (bytes == 0 || entry == entries_.begin()) return {};
    --entry;
    const auto& [begin, about] = *entry;
    if (first >= begin + about.whole) return {};
    const auto offset = static_cast<std::size_t>(first - begin);
    if (!about.live) return "memory that is not in use, last " + about.what;
    if (offset + bytes > about.bytes)
      return "bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes) + " of " +
             std::to_string(about.bytes) + " for " + about.what;
    return {};
  }

  /// \throws KernelFault if there is something to report
  static void report(const std::string& damage) {
    if (!damage.empty()) throw KernelFault(damage);
  }

  /// Makes the contents useless.
  static void spoil(std::byte* begin, std::size_t bytes) { std::memset(begin, static_cast<int>(spoilt), bytes); }

 private:
  static constexpr std::byte spoilt{0xff};
  static constexpr std::byte fence{0xa5};

  struct Entry {
    std::size_t bytes;
    std::size_t whole;
    std::string what;
    bool live;
    bool watched;  ///< nobody has had these bytes since, so they are still spoilt
  };

  static std::string text(const std::string& expected, const std::string& got) {
    return "[cuda memory] expected " + expected + ", got " + got;
  }

  void drop(std::byte* begin, std::size_t bytes) {
    auto entry = entries_.lower_bound(begin);
    if (entry != entries_.begin()) {
      const auto before = std::prev(entry);
      if (!before->second.live && before->first + before->second.whole > begin) entries_.erase(before);
    }
    while (entry != entries_.end() && entry->first < begin + bytes) entry = entries_.erase(entry);
  }

  mutable std::mutex mutex_;
  std::map<std::byte*, Entry> entries_;
};

/// \throws KernelFault if the bytes are not in use, or end behind what was asked for. Memory from elsewhere is trusted.
inline void check_range(const char* where, const void* pointer, std::size_t bytes) {
  for (const Watch* watch : {&Watch::pieces(), &Watch::blocks()}) {
    const std::string fault = watch->fault_of(pointer, bytes);
    if (!fault.empty()) fail<KernelFault>(where, "device memory in use", fault);
  }
}

inline void copy_rows(Copy direction, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                      std::size_t bytes, std::size_t rows, Stream) {
  if (bytes == 0 || rows == 0) return;
  if (direction != Copy::to_host) check_range("copy, to", to, (rows - 1) * to_pitch + bytes);
  if (direction != Copy::to_device) check_range("copy, from", from, (rows - 1) * from_pitch + bytes);
  if (!host::runs_at_once()) return;
  for (std::size_t row = 0; row < rows; ++row)
    std::memcpy(static_cast<std::byte*>(to) + row * to_pitch, static_cast<const std::byte*>(from) + row * from_pitch,
                bytes);
}

inline void copy(Copy direction, void* to, const void* from, std::size_t bytes, Stream stream) {
  copy_rows(direction, to, bytes, from, bytes, bytes, 1, stream);
}

inline void set_zero(void* to, std::size_t bytes, Stream) {
  check_range("set_zero", to, bytes);
  if (bytes > 0 && host::runs_at_once()) std::memset(to, 0, bytes);
}

}  // namespace detail
}  // namespace fedlora::cuda

#endif
