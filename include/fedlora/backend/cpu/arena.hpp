// SPDX-License-Identifier: Apache-2.0
// The memory of one worker: taken in stack order, kept from step to step, so that a step in the steady state allocates
// nothing.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define FEDLORA_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FEDLORA_ADDRESS_SANITIZER
#endif
#endif
#if defined(__linux__) && !defined(FEDLORA_ADDRESS_SANITIZER)
#define FEDLORA_ARENA_OF_PAGES
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

inline constexpr std::size_t huge_page = std::size_t{1} << 21;

/// Memory for scalars of T, not initialised, that begins where a huge page may. On Linux it is the system's own pages:
/// those that nothing has touched take no memory, and all of them are the system's again when the block ends, whereas
/// malloc would keep some for whoever asks next. AddressSanitizer watches malloc's alone, and has it.
template <class T>
class Block {
 public:
  explicit Block(Index count) : capacity_(count) {
#if defined(FEDLORA_ARENA_OF_PAGES)
    mapped_ = static_cast<std::size_t>(count) * sizeof(T) + huge_page;
    mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    const std::size_t skipped = (huge_page - reinterpret_cast<std::uintptr_t>(mapping_) % huge_page) % huge_page;
    data_ = reinterpret_cast<T*>(static_cast<std::byte*>(mapping_) + skipped);
#else
    data_ = static_cast<T*>(::operator new (static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{huge_page}));
#endif
  }
  Block(Block&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        capacity_(other.capacity_),
        mapping_(other.mapping_),
        mapped_(other.mapped_) {}
  Block& operator=(Block&&) = delete;
  ~Block() {
    if (data_ == nullptr) return;
#if defined(FEDLORA_ARENA_OF_PAGES)
    munmap(mapping_, mapped_);
#else
    ::operator delete (data_, std::align_val_t{huge_page});
#endif
  }

  /// Rows of a matrix lie pages apart: where the system gives pages of 2 MiB to those who ask, it finds them faster.
  void ask_for_huge_pages() const {
#if defined(FEDLORA_ARENA_OF_PAGES) && defined(MADV_HUGEPAGE)
    madvise(data_, static_cast<std::size_t>(capacity_) * sizeof(T), MADV_HUGEPAGE);  // a wish: refusal is no error
#endif
  }

  T* data() const { return data_; }
  Index capacity() const { return capacity_; }

 private:
  T* data_ = nullptr;
  Index capacity_ = 0;
  void* mapping_ = nullptr;
  std::size_t mapped_ = 0;  ///< bytes
};

/// A stack of scalars, 64-byte aligned. Contents are not initialised.
///
/// While it grows, each block is hardly larger than what was asked for, and ends when the stack falls below it: the
/// first step touches no more memory than those that follow, in one block.
template <class T>
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// A height of the stack.
  struct Mark {
    std::size_t blocks = 0;
    Index used = 0;  ///< of the last of them
    Index taken = 0;
  };

  /// Forgets everything taken. When the first block was too small, one takes the place of all, with some room for a
  /// batch that is larger: pages that are never touched cost nothing.
  void reset() {
    if (!blocks_.empty() && most_ > blocks_.front().capacity()) {
      blocks_.clear();
      blocks_.emplace_back(most_ + most_ / 4);
      blocks_.back().ask_for_huge_pages();
    }
    used_ = 0;
    taken_ = 0;
  }

  /// `count` scalars that live until the enclosing scope ends, or until `reset`.
  T* take(Index count) {
    const Index rounded = (std::max<Index>(count, 1) + granule - 1) / granule * granule;
    if (blocks_.empty() || used_ + rounded > blocks_.back().capacity()) {
      blocks_.emplace_back(std::max(rounded, smallest_block));
      used_ = 0;
    }
    T* const result = blocks_.back().data() + used_;
    used_ += rounded;
    taken_ += rounded;
    most_ = std::max(most_, taken_);
    return result;
  }

  MatrixView<T> matrix(Index rows, Index cols) { return {take(rows * cols), rows, cols}; }

  Mark mark() const { return {blocks_.size(), used_, taken_}; }

  /// Gives back what was taken since `mark`. Nothing where the stack is lower already.
  void rewind(const Mark& mark) {
    if (taken_ <= mark.taken) return;
    while (blocks_.size() > std::max<std::size_t>(mark.blocks, 1)) blocks_.pop_back();
    used_ = mark.used;
    taken_ = mark.taken;
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

  /// Scalars held, used or not.
  Index capacity() const {
    Index total = 0;
    for (const Block<T>& block : blocks_) total += block.capacity();
    return total;
  }

 private:
  static constexpr Index granule = 64 / static_cast<Index>(sizeof(T));
  static constexpr Index smallest_block = static_cast<Index>(huge_page / sizeof(T));

  std::vector<Block<T>> blocks_;
  Index used_ = 0;   ///< of the last block
  Index taken_ = 0;  ///< of all
  Index most_ = 0;   ///< the largest that `taken_` has been
};

}  // namespace fedlora::cpu
