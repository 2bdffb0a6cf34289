// SPDX-License-Identifier: Apache-2.0
// The arguments of a backend's operations: values that say what to compute, the same for every backend.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Which normalisation a family has.
enum class NormKind {
  layer_norm,  ///< y = gamma ∘ (x - mean) / sqrt(var + eps) + beta
  rms_norm,    ///< y = gamma ∘ x / sqrt(mean(x²) + eps)
};

/// The functions config.json names in `hidden_act`: those that backends compile loops for, then the rare ones, which
/// share one (rare_activation.hpp).
enum class Activation {
  gelu,       ///< x Φ(x), exact
  gelu_tanh,  ///< x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))
  relu,
  silu,  ///< x / (1 + exp(-x))
  tanh,
  gelu_10,     ///< min(x Φ(x), 10)
  quick_gelu,  ///< x / (1 + exp(-1.702 x))
  hard_swish,  ///< x min(max(x + 3, 0), 6) / 6
  laplace,     ///< (1 + erf((x - 0.707107) / (0.282095 √2))) / 2
  leaky_relu,  ///< x, or x/100 below 0
  linear,
  mish,   ///< x tanh(log(1 + exp(x)))
  relu2,  ///< max(x, 0)²
  relu6,  ///< min(max(x, 0), 6)
  sigmoid,
  sqrt_softplus,  ///< √log(1 + exp(x))
};

constexpr bool is_rare(Activation function) { return function >= Activation::gelu_10; }

/// One sequence as attention sees it: its queries and its keys are runs of rows of their matrices.
struct AttentionSpan {
  Index query_begin = 0;
  Index query_end = 0;
  Index key_begin = 0;
  Index key_end = 0;
  /// On the probabilities; plane = head, row = the query's number, channel = the key's position. Its key is that of the
  /// whole pass; `attention_dropout` makes the layer's.
  Dropout dropout;
};

/// What does not change from sequence to sequence.
struct AttentionShape {
  Index heads = 0;
  Index kv_heads = 0;
  Index head_dim = 0;
  double scale = 1;  ///< 1 / sqrt(head_dim)
  bool causal = false;
  Index layer = 0;  ///< part of the address of dropout
};

/// The dropout of one sequence in one layer.
FEDLORA_HOST_DEVICE constexpr Dropout attention_dropout(const AttentionSpan& span, Index layer) {
  Dropout dropout = span.dropout;
  dropout.key = derive_key(dropout.key, layer, 0);
  return dropout;
}

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

/// A frozen linear layer with the low-rank terms on it, as one of a group that reads the same x. Forward writes y and,
/// for the rows of each term, S = dropout(x) Aᵀ into the first columns of `s`; backward reads dy and s.
template <class T, class Sum = T>
struct LinearPart {
  const FrozenMatrix* weight = nullptr;  ///< (out, in)
  const T* bias = nullptr;               ///< (out); null for none, not read in backward
  MatrixView<T> y;                       ///< (rows, out); forward
  MatrixView<const T> dy;                ///< (rows, out); backward
  MatrixView<T> s;                       ///< (rows, largest rank); empty without terms
  std::span<const LowRankTerm<T, Sum>> terms = {};  ///< over rows that do not overlap
};

/// What a row of logits says about its label.
struct RowLoss {
  double nll = 0;         ///< -log softmax[label], nats
  std::int32_t best = 0;  ///< the column of the largest logit, the first of equals
};

/// The binary cross-entropy of one logit, -t log σ(x) - (1 - t) log σ(-x) for a target t in [0, 1], in nats; finite for
/// every finite logit.
inline double logistic_loss(double logit, double target) {
  return std::max(logit, 0.0) - logit * target + std::log1p(std::exp(-std::abs(logit)));
}

}  // namespace fedlora
