// SPDX-License-Identifier: Apache-2.0
// What nn/ asks of a backend. The concepts name the types; backend/cpu/runner.hpp states each operation's contract.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>

#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/parallel.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// A GEMM policy of a CPU backend: C = alpha · op(A) · op(B) + beta · C, row-major; `beta == 0` never reads C.
template <class G>
concept GemmPolicy = requires(bool flag, Index n, float alpha, const float* in, float* out) {
  typename G::ThreadScope;
  G::template multiply<float>(flag, flag, n, n, n, alpha, in, n, in, n, alpha, out, n);
};

/// A worker of a backend: its memory, a stack of matrices taken until `reset`, the end of a `scope` or a `rewind`, and the
/// operations, which are its other members; cpu::Runner states the contract of each. It belongs to whoever runs (a
/// thread, a stream of a GPU), never to a client.
///
/// What is on the host goes to the operations by `place` (tables), `parameters`, and `open_gradient`; what they made
/// comes back by `close_gradient`, `take_loss`, `row_losses` and `download`. A CPU has one memory, and these do little.
template <class R, class Element, class Scalar>
concept Runner = requires(R& run, Index n, std::span<const std::int32_t> table, std::span<const AttentionSpan> spans,
                          std::span<const Scalar> parameters, std::span<Scalar> gradient, MatrixView<Element> matrix,
                          std::span<const LinearPart<Element, Scalar>> parts, const std::int32_t* placed,
                          const Scalar* targets) {
  typename R::AttentionTable;
  run.expect(n);
  { run.matrix(n, n) } -> std::same_as<MatrixView<Element>>;
  { run.operand(n, n) } -> std::same_as<MatrixView<Element>>;
  { run.statistics(n) } -> std::same_as<MatrixView<Scalar>>;
  run.scope();
  run.rewind(run.mark());
  run.reset();
  { run.place(table) } -> std::same_as<const std::int32_t*>;
  { run.place(parameters) } -> std::same_as<const Scalar*>;
  { run.place(spans, placed, placed) } -> std::same_as<typename R::AttentionTable>;
  run.flush();
  { run.parameters(parameters) } -> std::same_as<std::span<const Element>>;
  { run.open_gradient(gradient) } -> std::same_as<std::span<Scalar>>;
  run.close_gradient(gradient);
  run.linear_forward(matrix, parts);
  run.linear_backward(matrix, parts, matrix, true);
  run.cross_entropy(matrix, placed, 1.0);
  run.mean_squared_error(matrix, targets, 1.0);
  run.binary_cross_entropy(matrix, targets, 1.0);
  { run.take_loss() } -> std::same_as<double>;
};

/// A backend: what its workers share, as a value whose copies are cheap. `Scalar` is the type of adapters and their
/// gradients, `Element` that of activations and weights; a thread that runs holds a `ThreadScope`. `adopt` takes a
/// checkpoint's tensor, `values` gives a frozen matrix back as a range of Scalar on the host.
template <class B>
concept Backend = std::copyable<B> && requires(const B& backend, const FrozenMatrix& matrix) {
  typename B::Scalar;
  typename B::Element;
  typename B::ThreadScope;
  requires Runner<typename B::Runner, typename B::Element, typename B::Scalar>;
  requires std::constructible_from<typename B::Runner, const B&>;
  { backend.values(matrix)[0] } -> std::convertible_to<typename B::Scalar>;
};

/// Of the threads asked for (0: one per hardware thread), how many may have a runner of the backend at the same time:
/// all, unless it has a `most_runners()` that says how many.
template <class B>
int runner_threads(const B& backend, int threads) {
  if constexpr (requires { backend.most_runners(); })
    return std::min(worker_count(threads), backend.most_runners());
  else
    return worker_count(threads);
}

}  // namespace fedlora
