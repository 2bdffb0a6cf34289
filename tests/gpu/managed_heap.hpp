// SPDX-License-Identifier: Apache-2.0
// The kernels' own tests give kernels pointers into std::vector, as the host allows. This makes a GPU reach them: from
// `open` on, operator new takes from memory that CUDA manages. For a test's main alone; it defines the program's
// operators.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>

namespace fedlora::tests {

/// Blocks of a power of two, each behind a header that says which; what is given back is taken again.
class ManagedHeap {
 public:
  /// False if there is no such memory.
  bool open(std::size_t bytes) {
    void* memory = nullptr;
    if (cudaMallocManaged(&memory, bytes) != cudaSuccess) return false;
    const std::lock_guard lock(mutex_);
    begin_ = static_cast<std::byte*>(memory);
    end_ = begin_ + bytes;
    unused_ = begin_;
    return true;
  }

  /// Null if it is closed or full.
  void* take(std::size_t bytes) {
    std::size_t kind = 7;
    while ((std::size_t{1} << kind) < bytes + header) ++kind;
    const std::lock_guard lock(mutex_);
    if (begin_ == nullptr || kind >= kinds) return nullptr;
    std::byte* block = free_[kind];
    if (block != nullptr) {
      free_[kind] = *reinterpret_cast<std::byte**>(block + header);
    } else {
      const std::size_t whole = std::size_t{1} << kind;
      if (static_cast<std::size_t>(end_ - unused_) < whole) return nullptr;
      block = unused_;
      unused_ += whole;
    }
    *reinterpret_cast<std::size_t*>(block) = kind;
    return block + header;
  }

  bool holds(const void* memory) const { return memory >= begin_ && memory < end_; }

  void give_back(void* memory) {
    std::byte* const block = static_cast<std::byte*>(memory) - header;
    const std::lock_guard lock(mutex_);
    std::byte*& first = free_[*reinterpret_cast<std::size_t*>(block)];
    *static_cast<std::byte**>(memory) = first;
    first = block;
  }

 private:
  static constexpr std::size_t header = 64;  ///< so that what is behind it lies on a multiple of 64 bytes
  static constexpr std::size_t kinds = 28;

  std::mutex mutex_;
  std::byte* begin_ = nullptr;
  std::byte* end_ = nullptr;
  std::byte* unused_ = nullptr;
  std::byte* free_[kinds] = {};
};

inline ManagedHeap& managed_heap() {
  alignas(ManagedHeap) static std::byte memory[sizeof(ManagedHeap)];
  static ManagedHeap& heap = *new (memory) ManagedHeap;
  return heap;
}

}  // namespace fedlora::tests

void* operator new(std::size_t bytes) {
  void* memory = fedlora::tests::managed_heap().take(bytes);
  if (memory == nullptr) memory = std::malloc(bytes > 0 ? bytes : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto unit = static_cast<std::size_t>(alignment);
  void* memory = unit <= 64 ? fedlora::tests::managed_heap().take(bytes) : nullptr;
  if (memory == nullptr) memory = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void* operator new[](std::size_t bytes, std::align_val_t alignment) { return operator new(bytes, alignment); }

void operator delete(void* memory) noexcept {
  if (fedlora::tests::managed_heap().holds(memory))
    fedlora::tests::managed_heap().give_back(memory);
  else
    std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { operator delete(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { operator delete(memory); }
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { operator delete(memory); }
