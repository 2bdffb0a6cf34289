// SPDX-License-Identifier: Apache-2.0
// Device memory: one pool per backend, buffers that give back what they hold, and copies between host and device.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/runtime.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// The caller's own way to get device memory. Both functions may be called from several threads.
struct DeviceAllocator {
  /// A block on a multiple of 256 bytes, for work that `stream` gets from now on; null if there is no memory.
  std::function<void*(std::size_t bytes, Stream stream)> allocate;
  /// The block's end: work that `stream` holds already may still use it.
  std::function<void(void* block, std::size_t bytes, Stream stream)> release;
};

/// Bytes of a DeviceMemory, rounding included.
struct MemoryUsage {
  std::size_t held = 0;    ///< taken from the device
  std::size_t in_use = 0;  ///< allocated and not released
  std::size_t peak = 0;    ///< the most that ever were in use
};

namespace detail {

/// Blocks of device memory that are kept when they are released.
///
/// Up to 128 KiB a block is cut off a slab of 2 MiB and stays in its size class, at most an eighth above what was asked
/// for; beyond, it is an allocation by itself, in units of 128 KiB, and serves requests from its own size down to four
/// fifths of it. A block goes at once to whoever asks on the stream on which it was released; another stream first
/// waits for what that one held then.
class Pool {
 public:
  Pool(DeviceAllocator own, std::size_t limit) : own_(std::move(own)), limit_(limit) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    for (auto& [key, blocks] : free_)
      for (const Block& block : blocks) end(block);
    for (const auto& [begin, block] : used_) end(block);
    for (std::byte* const slab : slabs_) {
      Watch::blocks().forget(slab, slab_bytes);
      device_release(slab);
    }
  }

  void* allocate(std::size_t bytes, std::string_view what, Stream stream) {
    refuse_in_capture("cuda memory");
    void* block = find(bytes, what, stream);
    if (block == nullptr && make_room()) block = find(bytes, what, stream);
    if (block != nullptr) return block;
    const std::lock_guard lock(mutex_);
    fail<CudaError>("cuda memory", std::to_string(bytes) + " bytes for " + std::string(what),
                    "out of memory: held " + std::to_string(usage_.held) + ", in use " + std::to_string(usage_.in_use) +
                        ", peak " + std::to_string(usage_.peak) +
                        (limit_ == no_limit ? "" : ", limit " + std::to_string(limit_)));
  }

  void on_shortage(std::function<void()> release_some) {
    const std::lock_guard lock(mutex_);
    release_some_ = std::move(release_some);
  }

  /// `keep`: for others; otherwise back to the device, which waits for the stream, where the block is one by itself.
  void release(void* pointer, Stream stream, bool keep) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(static_cast<std::byte*>(pointer));
    if (found == used_.end()) fail<CudaError>("cuda memory", "a block in use", "an address where none begins");
    Block block = std::move(found->second);
    used_.erase(found);
    usage_.in_use -= block.capacity;
    const std::string damage = Watch::blocks().take_back(block.begin);
    if (own_.release) {
      Watch::blocks().forget(block.begin, block.capacity + Watch::guard);
      usage_.held -= block.capacity + Watch::guard;
      own_.release(block.begin, block.capacity + Watch::guard, stream);
    } else {
      block.marked = block.released.record(stream);
      if (!keep && block.alone && block.marked) {
        block.released.wait();
        end(block);
      } else {
        free_[{block.capacity, stream_id(stream)}].push_back(std::move(block));
      }
    }
    Watch::report(damage);
  }

  /// From a destructor: an error waits for the next call of `allocate` or `check`.
  void release_quietly(void* pointer, Stream stream) noexcept {
    try {
      release(pointer, stream, true);
    } catch (const std::exception& error) {
      note(error.what());
    }
  }

  void note(const std::string& damage) noexcept {
    const std::lock_guard lock(mutex_);
    if (damage_.empty()) damage_ = damage;
  }

  void check() {
    const std::lock_guard lock(mutex_);
    Watch::report(std::exchange(damage_, {}));
    for (const auto& [begin, block] : used_) Watch::report(Watch::blocks().damage_behind(begin));
  }

  void trim() {
    refuse_in_capture("cuda memory");
    const std::lock_guard lock(mutex_);
    trim_free();
  }

  MemoryUsage usage() const {
    const std::lock_guard lock(mutex_);
    return usage_;
  }

  static constexpr std::size_t alignment = 256;
  static constexpr std::size_t no_limit = std::numeric_limits<std::size_t>::max();

 private:
  static constexpr std::size_t slab_bytes = std::size_t{1} << 21;
  static constexpr std::size_t largest_small = std::size_t{1} << 17;
  static constexpr std::size_t largest = std::size_t{1} << 60;

  struct Block {
    std::byte* begin = nullptr;
    std::size_t capacity = 0;  ///< without the guard behind it
    bool alone = false;        ///< an allocation of the device, not a part of a slab
    bool marked = false;       ///< `released` says when its last use has run
    Event released;
  };

  /// Size and stream of the last use.
  using Key = std::pair<std::size_t, StreamId>;

  static std::size_t capacity_for(std::size_t bytes) {
    const std::size_t asked = std::max<std::size_t>(bytes, 1);
    return round_up(asked, asked > largest_small ? largest_small : std::max(alignment, std::bit_floor(asked) / 8));
  }

  /// A block for `bytes`; null if there is no memory.
  void* find(std::size_t bytes, std::string_view what, Stream stream) {
    const std::lock_guard lock(mutex_);
    Watch::report(std::exchange(damage_, {}));
    if (bytes > largest) return nullptr;
    Block block;
    block.capacity = capacity_for(bytes);
    if (!reuse(block, stream) && !make(block, stream)) {
      trim_free();
      if (!make(block, stream)) return nullptr;
    }
    usage_.in_use += block.capacity;
    usage_.peak = std::max(usage_.peak, usage_.in_use);
    std::byte* const begin = block.begin;
    const std::size_t whole = block.capacity + Watch::guard;
    used_.emplace(begin, std::move(block));
    Watch::report(Watch::blocks().hand_out(begin, bytes, whole, what));
    return begin;
  }

  /// Whether anybody could be asked to release what is not needed now. They call `release`, so nothing is locked.
  bool make_room() {
    std::function<void()> release_some;
    {
      const std::lock_guard lock(mutex_);
      release_some = release_some_;
    }
    if (release_some) release_some();
    return release_some != nullptr;
  }

  /// A block that fits, of this stream if there is one.
  bool reuse(Block& block, Stream stream) {
    const StreamId id = stream_id(stream);
    const std::size_t most = block.capacity <= largest_small ? block.capacity : block.capacity / 4 * 5;
    auto found = free_.end();
    for (auto at = free_.lower_bound({block.capacity, 0}); at != free_.end() && at->first.first <= most; ++at) {
      const bool same = at->first.second == id && id != no_stream;
      if (same || (found == free_.end() && at->second.front().marked)) found = at;
      if (same) break;
    }
    if (found == free_.end()) return false;
    std::vector<Block>& blocks = found->second;
    if (found->first.second == id && id != no_stream) {
      block = std::move(blocks.back());
      blocks.pop_back();
    } else {
      blocks.front().released.hold_back(stream);
      block = std::move(blocks.front());  // the one that was released first
      blocks.erase(blocks.begin());
    }
    if (blocks.empty()) free_.erase(found);
    return true;
  }

  /// A new block of `block.capacity`; false if the device has no more.
  bool make(Block& block, Stream stream) {
    const std::size_t whole = block.capacity + Watch::guard;
    if (!own_.allocate && block.capacity <= largest_small) {
      if (slab_left_ < whole) {
        auto* const slab = static_cast<std::byte*>(take(slab_bytes, stream));
        if (slab != nullptr) {
          slabs_.push_back(slab);
          slab_ = slab;
          slab_left_ = slab_bytes;
        }
      }
      if (slab_left_ >= whole) {
        block.begin = slab_;
        slab_ += whole;
        slab_left_ -= whole;
        return true;
      }
    }
    block.begin = static_cast<std::byte*>(take(whole, stream));
    block.alone = true;
    return block.begin != nullptr;
  }

  void* take(std::size_t bytes, Stream stream) {
    if (bytes > limit_ || usage_.held > limit_ - bytes) return nullptr;
    void* const memory = own_.allocate ? own_.allocate(bytes, stream) : device_allocate(bytes);
    if (memory == nullptr) return nullptr;
    const std::uintptr_t beside = reinterpret_cast<std::uintptr_t>(memory) % alignment;
    if (own_.allocate && beside != 0) {
      own_.release(memory, bytes, stream);
      fail<CudaError>("cuda memory", "an allocator of blocks on multiples of 256 bytes",
                      std::to_string(beside) + " bytes beside one");
    }
    usage_.held += bytes;
    return memory;
  }

  /// Gives back to the device what is an allocation by itself.
  void end(const Block& block) noexcept {
    if (!block.alone || own_.allocate) return;
    const std::size_t whole = block.capacity + Watch::guard;
    Watch::blocks().forget(block.begin, whole);
    device_release(block.begin);
    usage_.held -= whole;
  }

  void trim_free() {
    for (auto at = free_.begin(); at != free_.end();) {
      std::vector<Block>& blocks = at->second;
      for (const Block& block : blocks)
        if (block.alone && block.marked) block.released.wait();
      const auto kept = std::stable_partition(blocks.begin(), blocks.end(),
                                              [](const Block& block) { return !block.alone || !block.marked; });
      for (auto block = kept; block != blocks.end(); ++block) end(*block);
      blocks.erase(kept, blocks.end());
      at = blocks.empty() ? free_.erase(at) : std::next(at);
    }
  }

  DeviceAllocator own_;
  std::size_t limit_;
  mutable std::mutex mutex_;
  MemoryUsage usage_;
  std::string damage_;
  std::function<void()> release_some_;
  std::unordered_map<std::byte*, Block> used_;
  std::map<Key, std::vector<Block>> free_;  ///< oldest first
  std::vector<std::byte*> slabs_;
  std::byte* slab_ = nullptr;  ///< what is left of the last one
  std::size_t slab_left_ = 0;
};

}  // namespace detail

/// The device memory of a backend. Copies are the same memory, which lives as long as one of them, or a buffer in it,
/// does. Blocks lie on multiples of 256 bytes, and what is released is kept for the next request (`trim`). Any thread
/// may call it at any time, except that a thread that captures a graph may only release.
///
/// A block belongs to a stream: use on another stream has to wait for the one that filled it, and must be over, or
/// waited for, when the block is released. The stream of the release must exist then.
///
/// On the host, contents begin as NaN, and writing behind a block, or into a released one, is a KernelFault of the next
/// call that sees it.
class DeviceMemory {
 public:
  static constexpr std::size_t alignment = detail::Pool::alignment;
  static constexpr std::size_t no_limit = detail::Pool::no_limit;

  /// Takes from the device as much as is needed, `limit` bytes at the most.
  explicit DeviceMemory(std::size_t limit = no_limit) : DeviceMemory(DeviceAllocator{}, limit) {}

  /// Takes every block from `own` and gives it back as soon as it is released. \throws CudaError for half an allocator
  explicit DeviceMemory(DeviceAllocator own, std::size_t limit = no_limit) {
    if (!own.allocate != !own.release)
      fail<CudaError>("cuda memory", "an allocator that allocates and releases", "one that does half of it");
    pool_ = std::make_shared<detail::Pool>(std::move(own), limit);
  }

  /// `bytes` for work in `stream`; 0 is a block too. `what` it is for is said when there is no more memory.
  /// \throws CudaError
  void* allocate(std::size_t bytes, std::string_view what, Stream stream) const {
    return pool_->allocate(bytes, what, stream);
  }

  /// The block's last use is in `stream` already. \throws CudaError for an address that is no block
  void release(void* block, Stream stream) const { pool_->release(block, stream, true); }

  /// As `release`, but not kept if it is large: waits for the stream.
  void discard(void* block, Stream stream) const {
    detail::refuse_in_capture("cuda memory");
    pool_->release(block, stream, false);
  }

  /// Calls `release_some` when a request finds no memory, and then tries once more. It may release, but not allocate.
  void on_shortage(std::function<void()> release_some) const { pool_->on_shortage(std::move(release_some)); }

  /// Gives large blocks that nobody uses back to the device; waits for their last uses.
  void trim() const { pool_->trim(); }

  MemoryUsage usage() const { return pool_->usage(); }

  /// On the host: whether all blocks are as they should be. \throws KernelFault
  void check() const { pool_->check(); }

 private:
  friend class DeviceBuffer;
  friend class Arena;

  std::shared_ptr<detail::Pool> pool_;
};

/// A block that is released at its end.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const DeviceMemory& memory, std::size_t bytes, std::string_view what, Stream stream)
      : pool_(memory.pool_), stream_(stream), size_(bytes) {
    data_ = static_cast<std::byte*>(memory.allocate(bytes, what, stream));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    DeviceBuffer(std::move(other)).swap(*this);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr) pool_->release_quietly(data_, stream_);
  }

  bool empty() const { return data_ == nullptr; }
  std::size_t size() const { return size_; }
  std::byte* data() const { return data_; }
  std::span<std::byte> bytes() const { return {data_, size_}; }
  template <class U>
  U* as() const {
    return reinterpret_cast<U*>(data_);
  }

  /// The stream of its last use, when that is not the one it was made for, or when that one will not live as long.
  void set_stream(Stream stream) { stream_ = stream; }

  /// Ends now; a large block goes back to the device (DeviceMemory::discard). \throws CudaError
  void discard() {
    if (data_ == nullptr) return;
    detail::refuse_in_capture("cuda memory");
    const std::shared_ptr<detail::Pool> pool = std::move(pool_);
    size_ = 0;
    pool->release(std::exchange(data_, nullptr), stream_, false);
  }

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(stream_, other.stream_);
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
  }

  std::shared_ptr<detail::Pool> pool_;
  Stream stream_{};
  std::size_t size_ = 0;
  std::byte* data_ = nullptr;
};

/// Copies to the device after what the stream holds, and waits: `from` may go afterwards. \throws CudaError
template <class U>
void upload(std::type_identity_t<std::span<const U>> from, U* to, Stream stream) {
  static_assert(std::is_trivially_copyable_v<U>);
  detail::refuse_in_capture("cuda::upload");
  detail::copy(detail::Copy::to_device, to, from.data(), from.size_bytes(), stream);
  detail::wait_for(stream);
}

/// Copies to the host after what the stream holds, and waits. \throws CudaError
template <class U>
void download(const U* from, std::type_identity_t<std::span<U>> to, Stream stream) {
  static_assert(std::is_trivially_copyable_v<U>);
  detail::refuse_in_capture("cuda::download");
  detail::copy(detail::Copy::to_host, to.data(), from, to.size_bytes(), stream);
  detail::wait_for(stream);
}

namespace detail {

template <class U>
void copy_matrix(const char* where, Copy direction, MatrixView<const U> from, MatrixView<U> to, Stream stream) {
  static_assert(std::is_trivially_copyable_v<U>);
  if (from.rows != to.rows || from.cols != to.cols)
    fail<ShapeError>(where, shape_text(from.rows, from.cols), shape_text(to.rows, to.cols));
  const auto bytes = [](Index count) { return static_cast<std::size_t>(count) * sizeof(U); };
  if (from.stride == from.cols && to.stride == to.cols)
    copy(direction, to.data, from.data, bytes(from.size()), stream);
  else
    copy_rows(direction, to.data, bytes(to.stride), from.data, bytes(from.stride), bytes(from.cols),
              static_cast<std::size_t>(from.rows), stream);
}

}  // namespace detail

/// Copies a matrix of the host to the device, and waits. \throws ShapeError, CudaError
template <class U>
void upload(std::type_identity_t<MatrixView<const U>> from, MatrixView<U> to, Stream stream) {
  detail::refuse_in_capture("cuda::upload");
  detail::copy_matrix<U>("cuda::upload", detail::Copy::to_device, from, to, stream);
  detail::wait_for(stream);
}

/// Copies a matrix of the device to the host, and waits. \throws ShapeError, CudaError
template <class U>
void download(std::type_identity_t<MatrixView<const U>> from, MatrixView<U> to, Stream stream) {
  detail::refuse_in_capture("cuda::download");
  detail::copy_matrix<U>("cuda::download", detail::Copy::to_host, from, to, stream);
  detail::wait_for(stream);
}

/// to = from, both on the device; queued, and may be captured. They must not overlap. \throws ShapeError, CudaError
template <class U>
void copy(std::type_identity_t<MatrixView<const U>> from, MatrixView<U> to, Stream stream) {
  detail::copy_matrix<U>("cuda::copy", detail::Copy::on_device, from, to, stream);
}

/// Fills with zero bytes; queued, and may be captured. \throws CudaError
template <class U>
void set_zero(U* data, Index count, Stream stream) {
  static_assert(std::is_trivially_copyable_v<U>);
  detail::set_zero(data, static_cast<std::size_t>(count) * sizeof(U), stream);
}

}  // namespace fedlora::cuda

#endif
