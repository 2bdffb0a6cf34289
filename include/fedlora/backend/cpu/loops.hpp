// SPDX-License-Identifier: Apache-2.0
// The loops of the CPU backend as a table. Its type is the same at every level, so that a program may hold the tables
// of several and choose one where it runs; what includes this header alone has the one level of its own flags.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fedlora/backend/cpu/activation.hpp"
#include "fedlora/backend/cpu/attention.hpp"
#include "fedlora/backend/cpu/dropout.hpp"
#include "fedlora/backend/cpu/elements.hpp"
#include "fedlora/backend/cpu/level.hpp"
#include "fedlora/backend/cpu/loss.hpp"
#include "fedlora/backend/cpu/norm.hpp"
#include "fedlora/backend/cpu/optimizer.hpp"
#include "fedlora/backend/cpu/thin.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// One level's loops over T (float or double). The headers above state what each does, under the same name.
template <class T>
struct Loops {
  using In = const MatrixView<const T>&;
  using Out = const MatrixView<T>&;
  using Spans = std::span<const AttentionSpan>;
  using Int = std::int32_t;

  Index lanes;  ///< columns that thin products want at least

  // --- low-rank terms
  void (*thin_shrink)(In x, const T* mask, In a, T scale, Out s, In prefetched);
  void (*thin_expand)(In s, T scale, In a, const T* mask, Out y);
  void (*thin_gather)(In s, In x, const T* mask, Out gradient);

  // --- elements
  void (*add_row)(const T* from, Index size, T* to);
  void (*multiply_row)(const T* a, const T* b, Index size, T* result);
  void (*residual_row)(T* x, Index size, const T* bias, const T* residual, const Dropout&, Int row_number);
  void (*dropout_mask)(const Dropout&, std::uint32_t row, std::uint32_t plane, Index size, T* mask);
  void (*dropout_row)(const Dropout&, std::uint32_t row, std::uint32_t plane, Index size, const T* from, T* to);

  // --- norms, activations
  void (*norm_forward)(NormKind, In x, const T* gamma, const T* beta, T eps, Out y, Out statistics);
  void (*norm_backward)(NormKind, In dy, In x, In statistics, const T* gamma, Out dx, bool accumulate);
  void (*activation_forward)(Activation, In x, const T* bias, Out y);
  void (*activation_backward)(Activation, In x, const T* bias, Out dy);
  void (*gated_forward)(Activation, In gate, In up, Out y);
  void (*gated_backward)(Activation, In gate, In up, In dy, Out dgate, Out dup);

  // --- attention
  Index (*attention_scratch)(const AttentionShape&, Index queries, Index keys, bool backward);
  void (*attention_forward)(const AttentionShape&, Spans, In q, In k, In v, const Int* positions,
                            const Int* row_numbers, Out out, T* scratch);
  void (*attention_backward)(const AttentionShape&, Spans, In q, In k, In v, const Int* positions,
                             const Int* row_numbers, In d_out, Out dq, Out dk, Out dv, T* scratch);
  void (*rotate)(Out x, Index heads, Index head_dim, const Int* positions, In cosines, In sines, bool inverse);

  // --- losses
  double (*cross_entropy)(Out logits, const Int* labels, T weight);
  double (*cross_entropy_loss)(In logits, const Int* labels);
  double (*mean_squared_error)(Out outputs, const T* targets, T weight);
  double (*binary_cross_entropy)(Out logits, const T* targets, T weight);

  // --- optimizers
  void (*adamw_step)(const AdamWFactors<T>&, std::size_t size, T* w, const T* g, T* m, T* v);
  void (*sgd_step)(const SgdFactors<T>&, std::size_t size, T* w, const T* g, T* u);
};

/// Where a backend or an optimizer finds its loops.
template <class L>
concept LoopLevel = requires {
  { L::template loops<float>() } -> std::same_as<const Loops<float>&>;
  { L::template loops<double>() } -> std::same_as<const Loops<double>&>;
};

inline namespace FEDLORA_CPU_LEVEL {

/// This unit's.
template <class T>
inline constexpr Loops<T> own_loops = {
    .lanes = lane_count<T>,
    .thin_shrink = thin_shrink<T>,
    .thin_expand = thin_expand<T>,
    .thin_gather = thin_gather<T>,
    .add_row = add_row<T>,
    .multiply_row = multiply_row<T>,
    .residual_row = residual_row<T>,
    .dropout_mask = dropout_mask<T>,
    .dropout_row = dropout_row<T>,
    .norm_forward = norm_forward<T>,
    .norm_backward = norm_backward<T>,
    .activation_forward = activation_forward<T>,
    .activation_backward = activation_backward<T>,
    .gated_forward = gated_forward<T>,
    .gated_backward = gated_backward<T>,
    .attention_scratch = attention_scratch<T>,
    .attention_forward = attention_forward<T>,
    .attention_backward = attention_backward<T>,
    .rotate = rotate<T>,
    .cross_entropy = cross_entropy<T>,
    .cross_entropy_loss = cross_entropy_loss<T>,
    .mean_squared_error = mean_squared_error<T>,
    .binary_cross_entropy = binary_cross_entropy<T>,
    .adamw_step = adamw_step<T>,
    .sgd_step = sgd_step<T>,
};

/// The level of this unit's flags.
struct OwnLevel {
  template <class T>
  static constexpr const Loops<T>& loops() {
    return own_loops<T>;
  }
};

}  // namespace FEDLORA_CPU_LEVEL
}  // namespace fedlora::cpu
