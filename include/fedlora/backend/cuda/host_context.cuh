// SPDX-License-Identifier: Apache-2.0
// Going from one stack to another. Kernels on the host do so for every barrier and every product of fragments, so on
// x86-64 it is a few instructions; ucontext, which serves everywhere else, asks the system for each change, and
// AddressSanitizer sweeps the whole stack at each.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && defined(FEDLORA_CUDA_ON_HOST)

#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define FEDLORA_STACK_NOTICES
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FEDLORA_STACK_NOTICES
#endif
#endif
#if defined(FEDLORA_STACK_NOTICES)
#undef FEDLORA_STACK_NOTICES
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

namespace fedlora::cuda::host {
/// AddressSanitizer has to know on which stack the program runs; without it these do nothing.
struct StackNotices {
  static constexpr std::size_t stack_bytes = std::size_t{1} << 18;
  static void leave(void** kept, const void* bottom, std::size_t size) {
    __sanitizer_start_switch_fiber(kept, bottom, size);
  }
  static void arrive(void* kept, const void** bottom, std::size_t* size) {
    __sanitizer_finish_switch_fiber(kept, bottom, size);
  }
  static void reuse(void* bottom, std::size_t size) { __asan_unpoison_memory_region(bottom, size); }
};
}  // namespace fedlora::cuda::host
#else
namespace fedlora::cuda::host {
/// AddressSanitizer would have to know on which stack the program runs.
struct StackNotices {
  static constexpr std::size_t stack_bytes = std::size_t{1} << 17;
  static void leave(void**, const void*, std::size_t) {}
  static void arrive(void*, const void**, std::size_t*) {}
  static void reuse(void*, std::size_t) {}
};
}  // namespace fedlora::cuda::host
#endif

namespace fedlora::cuda::host {

#if defined(__x86_64__)

/// Where a stack was left: the registers that a call must keep lie on it (System V ABI, x86-64).
struct Context {
  void* stack_pointer = nullptr;

  /// On the next switch to this context, `entry` runs on the stack; it must not return.
  void begin(std::byte* stack, std::size_t bytes, void (*entry)()) {
    auto** const top = reinterpret_cast<void**>(stack + bytes / 16 * 16);
    top[-1] = nullptr;  // where a caller's address would be
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
    stack_pointer = top - 8;
  }
};

/// Stores this stack's pointer and continues on another.
[[gnu::naked, gnu::noinline]] inline void exchange_stacks(void**, void*) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

inline void switch_context(Context& from, Context& to) { exchange_stacks(&from.stack_pointer, to.stack_pointer); }

#else

struct Context {
  ucontext_t context{};

  void begin(std::byte* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
};

inline void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace fedlora::cuda::host

#endif
