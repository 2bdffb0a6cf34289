// SPDX-License-Identifier: Apache-2.0
// The device memory of one runner: taken in stack order, kept from step to step, so that a step in the steady state
// allocates nothing and finds its matrices where they were.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// A stack of device bytes, as cpu::Arena is one of scalars, for work in one stream. What is taken lies on a multiple
/// of 256 bytes; contents are not initialised. On the host they begin as NaN, and writing behind them is a KernelFault
/// of the next call after their end.
class Arena {
 public:
  Arena(DeviceMemory memory, Stream stream, std::string what = "working memory")
      : memory_(std::move(memory)), stream_(stream), what_(std::move(what)) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    give_back(0);
    if (!damage_.empty()) memory_.pool_->note(damage_);
  }

  /// Forgets everything taken. When the last step needed more than one block, they become one; that waits for the
  /// stream, and cannot happen in a capture. \throws CudaError
  void reset() {
    give_back(0);
    report();
    if (blocks_.size() > 1) replace(capacity());
    if (!blocks_.empty()) blocks_.front().used = 0;
    current_ = 0;
  }

  /// Forgets everything taken, and leaves the blocks as they are. False where `reset` would be a KernelFault, which is
  /// still to come then.
  bool forget() noexcept {
    give_back(0);
    for (Block& block : blocks_) block.used = 0;
    current_ = 0;
    return damage_.empty();
  }

  /// As `reset`, and afterwards `bytes` can be taken without an allocation (those of `matrix` and `take`, each rounded
  /// up to a multiple of 256). \throws CudaError
  void reserve(std::size_t bytes) {
    reset();
    const std::size_t units = detail::round_up(bytes, DeviceMemory::alignment) / DeviceMemory::alignment;
    const std::size_t needed = units * (DeviceMemory::alignment + detail::Watch::guard);
    if (needed > capacity()) replace(needed);
  }

  /// `count` bytes that live until the enclosing scope ends, or until `reset`. \throws CudaError
  std::span<std::byte> bytes(std::size_t count) { return {take_bytes(count), count}; }

  /// `count` elements. \throws CudaError
  template <class U>
  U* take(Index count) {
    return reinterpret_cast<U*>(take_bytes(static_cast<std::size_t>(count) * sizeof(U)));
  }

  /// A matrix whose rows begin on multiples of 16 bytes, so that they can be read by vectors, with so many spare
  /// columns at least. \throws CudaError
  template <class U>
  MatrixView<U> matrix(Index rows, Index cols, Index spare_cols = 0) {
    static_assert(16 % sizeof(U) == 0);
    constexpr Index unit = 16 / static_cast<Index>(sizeof(U));
    const Index stride = (cols + spare_cols + unit - 1) / unit * unit;
    MatrixView<U> matrix(take<U>(rows * stride), rows, cols, stride);
    matrix.spare_cols = spare_cols;
    return matrix;
  }

  /// A height of the stack.
  struct Mark {
    std::size_t block = 0;
    std::size_t used = 0;
    std::size_t pieces = 0;
  };

  Mark mark() const { return {current_, current_ < blocks_.size() ? blocks_[current_].used : 0, pieces_.size()}; }

  /// Gives back what was taken since `mark`. Nothing where the stack is lower already.
  void rewind(const Mark& mark) noexcept {
    const bool lower = current_ < mark.block ||
                       (current_ == mark.block && current_ < blocks_.size() && blocks_[current_].used < mark.used);
    if (lower) return;
    give_back(mark.pieces);
    current_ = mark.block;
    if (current_ < blocks_.size()) blocks_[current_].used = mark.used;
  }

  /// Gives back, at its end, what was taken during its life.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() { arena_.rewind(mark_); }

   private:
    Arena& arena_;
    Mark mark_;
  };

  [[nodiscard]] Scope scope() { return Scope(*this); }

  /// Bytes held, used or not.
  std::size_t capacity() const {
    std::size_t total = 0;
    for (const Block& block : blocks_) total += block.buffer.size();
    return total;
  }

  Stream stream() const { return stream_; }

 private:
  static constexpr std::size_t largest_growth = std::size_t{1} << 26;

  struct Block {
    DeviceBuffer buffer;
    std::size_t used = 0;
  };

  std::byte* take_bytes(std::size_t bytes) {
    report();
    const std::size_t whole =
        detail::round_up(std::max<std::size_t>(bytes, 1), DeviceMemory::alignment) + detail::Watch::guard;
    while (current_ < blocks_.size() && blocks_[current_].used + whole > blocks_[current_].buffer.size()) {
      if (++current_ < blocks_.size()) blocks_[current_].used = 0;
    }
    if (current_ == blocks_.size()) add_block(std::max(whole, std::min(capacity(), largest_growth)));
    Block& block = blocks_[current_];
    std::byte* const piece = block.buffer.data() + block.used;
    block.used += whole;
    if constexpr (detail::Watch::guard > 0) {
      pieces_.push_back(piece);
      detail::Watch::report(detail::Watch::pieces().hand_out(piece, bytes, whole, "a piece of " + what_));
    }
    return piece;
  }

  void add_block(std::size_t bytes) { blocks_.push_back({DeviceBuffer(memory_, bytes, what_, stream_), 0}); }

  /// One block in the place of all.
  void replace(std::size_t bytes) {
    for (Block& block : blocks_) block.buffer.discard();
    blocks_.clear();
    current_ = 0;
    add_block(bytes);
  }

  /// Ends the pieces from number `first` on.
  void give_back(std::size_t first) noexcept {
    for (; pieces_.size() > first; pieces_.pop_back()) {
      const std::string damage = detail::Watch::pieces().take_back(pieces_.back());
      if (damage_.empty()) damage_ = damage;
    }
  }

  void report() { detail::Watch::report(std::exchange(damage_, {})); }

  DeviceMemory memory_;
  Stream stream_;
  std::string what_;
  std::vector<Block> blocks_;
  std::size_t current_ = 0;
  std::vector<std::byte*> pieces_;  ///< in the order they were taken; on the host only
  std::string damage_;              ///< found where nothing can be thrown
};

}  // namespace fedlora::cuda

#endif
