// SPDX-License-Identifier: Apache-2.0
// The memory of one worker: taken in stack order, kept from step to step, so that a step in the steady state allocates
// nothing.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

inline constexpr std::size_t huge_page = std::size_t{1} << 21;

/// Rows of a matrix lie pages apart: where the system gives pages of 2 MiB to those who ask, it finds them faster.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes >= huge_page) madvise(data, bytes, MADV_HUGEPAGE);  // a wish: that it is refused is no error
#endif
}

/// A stack of scalars, 64-byte aligned. Contents are not initialised.
template <class T>
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  /// Forgets everything taken. When the last step needed more than one block, they become one.
  void reset() {
    if (blocks_.size() > 1) {
      Index total = 0;
      for (const Block& block : blocks_) total += block.capacity;
      release();
      add_block(total);
    }
    if (!blocks_.empty()) blocks_.front().used = 0;
    current_ = 0;
  }

  /// `count` scalars that live until the enclosing scope ends, or until `reset`.
  T* take(Index count) {
    const Index rounded = (std::max<Index>(count, 1) + granule - 1) / granule * granule;
    while (current_ < blocks_.size() && blocks_[current_].used + rounded > blocks_[current_].capacity) {
      if (++current_ < blocks_.size()) blocks_[current_].used = 0;
    }
    if (current_ == blocks_.size()) {
      add_block(std::max(rounded, std::min(capacity(), largest_growth)));
      current_ = blocks_.size() - 1;
    }
    T* result = blocks_[current_].data + blocks_[current_].used;
    blocks_[current_].used += rounded;
    return result;
  }

  MatrixView<T> matrix(Index rows, Index cols) { return {take(rows * cols), rows, cols}; }

  /// Gives back, at its end, what was taken during its life.
  class Scope {
   public:
    explicit Scope(Arena& arena)
        : arena_(arena),
          block_(arena.current_),
          used_(arena.current_ < arena.blocks_.size() ? arena.blocks_[arena.current_].used : 0) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() {
      arena_.current_ = block_;
      if (block_ < arena_.blocks_.size()) arena_.blocks_[block_].used = used_;
    }

   private:
    Arena& arena_;
    std::size_t block_;
    Index used_;
  };

  [[nodiscard]] Scope scope() { return Scope(*this); }

  /// Scalars held, used or not.
  Index capacity() const {
    Index total = 0;
    for (const Block& block : blocks_) total += block.capacity;
    return total;
  }

 private:
  static constexpr Index granule = 64 / static_cast<Index>(sizeof(T));
  static constexpr Index largest_growth = Index{1} << 22;

  /// Large blocks begin where a huge page may.
  static constexpr std::align_val_t alignment(Index count) {
    return std::align_val_t{static_cast<std::size_t>(count) * sizeof(T) < huge_page ? 64 : huge_page};
  }

  struct Block {
    T* data;
    Index capacity;
    Index used;
  };

  void add_block(Index count) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    void* const data = ::operator new (bytes, alignment(count));
    ask_for_huge_pages(data, bytes);
    blocks_.push_back({static_cast<T*>(data), count, 0});
  }

  void release() {
    for (const Block& block : blocks_) ::operator delete (block.data, alignment(block.capacity));
    blocks_.clear();
    current_ = 0;
  }

  std::vector<Block> blocks_;
  std::size_t current_ = 0;
};

}  // namespace fedlora::cpu
