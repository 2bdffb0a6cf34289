// SPDX-License-Identifier: Apache-2.0
// The arguments of a backend's operations: values that say what to compute, the same for every backend.
#pragma once

#include <cstdint>

#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Which normalisation a family has.
enum class NormKind {
  layer_norm,  ///< y = gamma ∘ (x - mean) / sqrt(var + eps) + beta
  rms_norm,    ///< y = gamma ∘ x / sqrt(mean(x²) + eps)
};

/// The functions config.json names in `hidden_act`.
enum class Activation {
  gelu,       ///< x Φ(x), exact
  gelu_tanh,  ///< x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))
  relu,
  silu,  ///< x / (1 + exp(-x))
  tanh,
};

/// One sequence as attention sees it: its queries and its keys are runs of rows of their matrices.
struct AttentionSpan {
  Index query_begin = 0;
  Index query_end = 0;
  Index key_begin = 0;
  Index key_end = 0;
  Dropout dropout;  ///< on the probabilities; plane = head, row = the query's number, channel = the key's position
};

/// What does not change from sequence to sequence.
struct AttentionShape {
  Index heads = 0;
  Index kv_heads = 0;
  Index head_dim = 0;
  double scale = 1;  ///< 1 / sqrt(head_dim)
  bool causal = false;
};

/// The low-rank term of one site for the rows [begin, end) of a batch: y += scale · B (A dropout(x)).
/// `grad_a` and `grad_b` receive sums in backward; empty where nothing is trained (evaluation). `Sum` is the type that
/// gradients are added in: T, or float where T has 16 bits.
template <class T, class Sum = T>
struct LowRankTerm {
  Index begin = 0;
  Index end = 0;
  MatrixView<const T> a;  ///< (rank, in)
  MatrixView<const T> b;  ///< (out, rank)
  Sum scale = Sum(1);
  MatrixView<Sum> grad_a;                     ///< (rank, in), added to
  MatrixView<Sum> grad_b;                     ///< (out, rank), added to
  Dropout dropout;                            ///< on the input of A; none in evaluation
  const std::int32_t* row_numbers = nullptr;  ///< the client's own number of each row of the batch, for `dropout`

  Index rank() const { return a.rows; }
};

}  // namespace fedlora
