// SPDX-License-Identifier: Apache-2.0
// What nn/ asks of a backend. The concepts name the types; backend/cpu.hpp states each operation's contract.
#pragma once

#include <concepts>
#include <cstdint>

#include "fedlora/core/shape.hpp"

namespace fedlora {

/// A GEMM policy of a CPU backend: C = alpha · op(A) · op(B) + beta · C, row-major; `beta == 0` never reads C.
template <class G>
concept GemmPolicy = requires(bool flag, Index n, float alpha, const float* in, float* out) {
  typename G::ThreadScope;
  G::template multiply<float>(flag, flag, n, n, n, alpha, in, n, in, n, alpha, out, n);
};

/// A backend: a scalar, working memory for one worker, and the scope a worker thread holds.
template <class B>
concept Backend = std::copyable<B> && requires(typename B::Arena& arena, Index n) {
  typename B::Scalar;
  typename B::ThreadScope;
  { arena.matrix(n, n) } -> std::same_as<MatrixView<typename B::Scalar>>;
  arena.reset();
};

}  // namespace fedlora
