// SPDX-License-Identifier: Apache-2.0
// One Transformer block over a frozen base, forward and backward. Backward makes gradients of adapters and of the
// input, and of nothing else.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/nn/batch.hpp"
#include "fedlora/nn/concepts.hpp"

namespace fedlora {

/// A frozen linear layer: y = x Wᵀ + bias.
struct FrozenLinear {
  FrozenMatrix weight;  ///< (out, in)
  FrozenMatrix bias;    ///< (1, out), or empty

  Index in() const { return weight.cols; }
  Index out() const { return weight.rows; }

  template <class T>
  const T* bias_data() const {
    return bias.empty() ? nullptr : bias.view<T>().data;
  }
};

/// A frozen normalisation.
struct FrozenNorm {
  FrozenMatrix gamma;  ///< (1, hidden)
  FrozenMatrix beta;   ///< (1, hidden), or empty for RMSNorm

  template <class T>
  const T* gamma_data() const {
    return gamma.view<T>().data;
  }
  template <class T>
  const T* beta_data() const {
    return beta.empty() ? nullptr : beta.view<T>().data;
  }
};

/// A block's weights.
struct BlockWeights {
  std::array<FrozenLinear, layer_linears> linears;
  std::array<FrozenNorm, 2> norms;

  const FrozenLinear& operator[](LayerLinear which) const { return linears[static_cast<std::size_t>(which)]; }
};

/// How far down a block's backward pass has to go.
struct BlockReach {
  bool input = true;      ///< the gradient of the block's input is wanted
  bool attention = true;  ///< something in the attention half is adapted, or `input`
  bool mlp_input = true;  ///< something at or below the first MLP layers is adapted, or `attention`
};

/// What a block keeps from forward to backward. Views into the worker's arena.
template <class T>
struct BlockState {
  MatrixView<const T> x;       ///< block input, all rows
  MatrixView<T> attention_in;  ///< what query, key and value read; empty when the block is post-norm: they read x
  MatrixView<T> selected_in;   ///< its rows of `query_rows`, where those are not all
  MatrixView<T> input_statistics;
  MatrixView<T> q, k, v;
  MatrixView<T> context;                       ///< kept only where the output projection is adapted
  MatrixView<T> z1, statistics1;               ///< residual sum after attention, its norm's statistics
  MatrixView<T> h;                             ///< what the MLP reads; kept only where its first layers are adapted
  MatrixView<T> gate, up;                      ///< outputs of the first MLP layers, before the activation
  MatrixView<T> z2, statistics2;               ///< residual sum after the MLP; statistics when the block is post-norm
  std::array<MatrixView<T>, layer_linears> s;  ///< S = dropout(x) Aᵀ of each adapted linear layer
};

/// Runs block `layer`. One object per call: it only gathers what the calls share.
template <Architecture Arch, class B>
class BlockPass {
 public:
  using T = typename B::Scalar;
  using Arena = typename B::Arena;

  BlockPass(const ModelConfig& config, const BlockWeights& weights, Index layer, const BatchTables& tables,
            bool pooled_only, const PassOptions<T>& options, MatrixView<const T> cosines, MatrixView<const T> sines,
            Arena& arena)
      : config_(config),
        weights_(weights),
        layer_(layer),
        tables_(tables),
        out_rows_(pooled_only ? tables.pooled : tables.all),
        slots_(options.slots),
        training_(options.training),
        dropouts_(options.dropouts),
        cosines_(cosines),
        sines_(sines),
        arena_(arena),
        shape_{config.heads, config.kv_heads, config.head_dim, 1.0 / std::sqrt(static_cast<double>(config.head_dim)),
               Arch::causal} {}

  /// y = block(x). x is (all rows, hidden); y is (rows out, hidden): all rows, or one per sequence.
  void forward(MatrixView<const T> x, MatrixView<T> y, BlockState<T>& state) {
    const Index rows = tables_.all.count;
    const Index out = out_rows_.count;
    const Index q_width = config_.heads * config_.head_dim;
    const Index kv_width = config_.kv_heads * config_.head_dim;
    state.x = x;
    MatrixView<const T> in = x;
    if constexpr (pre_norm) {
      state.attention_in = arena_.matrix(rows, x.cols);
      state.input_statistics = arena_.matrix(rows, 2);
      norm_forward(0, x, state.attention_in, state.input_statistics);
      in = state.attention_in;
    }
    MatrixView<const T> in_selected = in;
    MatrixView<const T> residual = x;
    if (selects()) {
      state.selected_in = arena_.matrix(out, x.cols);
      B::gather_rows(in, out_rows_.rows, state.selected_in);
      in_selected = state.selected_in;
      if constexpr (pre_norm) {
        const MatrixView<T> rows_of_x = arena_.matrix(out, x.cols);
        B::gather_rows(x, out_rows_.rows, rows_of_x);
        residual = rows_of_x;
      } else {
        residual = in_selected;
      }
    }
    state.q = arena_.matrix(out, q_width);
    state.k = arena_.matrix(rows, kv_width);
    state.v = arena_.matrix(rows, kv_width);
    linear(LayerLinear::query, in_selected, out_rows_, state.q, state, true);
    linear(LayerLinear::key, in, tables_.all, state.k, state, true);
    linear(LayerLinear::value, in, tables_.all, state.v, state, true);
    if constexpr (Arch::positions == Positions::rotary) {
      B::rotate(state.q, config_.heads, config_.head_dim, out_rows_.positions.data(), cosines_, sines_, false);
      B::rotate(state.k, config_.kv_heads, config_.head_dim, tables_.all.positions.data(), cosines_, sines_, false);
    }
    state.z1 = arena_.matrix(out, x.cols);
    state.statistics1 = arena_.matrix(out, 2);
    reserve_s(LayerLinear::output, out, state);
    if (adapted(LayerLinear::output)) state.context = arena_.matrix(out, q_width);
    {
      const auto scope = arena_.scope();
      const MatrixView<T> context = state.context.empty() ? arena_.matrix(out, q_width) : state.context;
      B::attention_forward(shape_, spans(), state.q, state.k, state.v, query_positions(), out_rows_.numbers.data(),
                           context, arena_);
      linear(LayerLinear::output, context, out_rows_, state.z1, state, false);
    }
    add_residual(LayerLinear::output, state.z1, residual);

    state.z2 = pre_norm ? y : arena_.matrix(out, x.cols);
    state.up = arena_.matrix(out, config_.intermediate_size);
    if constexpr (Arch::gated_mlp) state.gate = arena_.matrix(out, config_.intermediate_size);
    if constexpr (!pre_norm) state.statistics2 = arena_.matrix(out, 2);
    for (const LayerLinear which : {LayerLinear::gate, LayerLinear::up, LayerLinear::down})
      reserve_s(which, out, state);
    if (adapted(LayerLinear::gate) || adapted(LayerLinear::up)) state.h = arena_.matrix(out, x.cols);
    {
      const auto scope = arena_.scope();
      const MatrixView<T> h = state.h.empty() ? arena_.matrix(out, x.cols) : state.h;
      norm_forward(pre_norm ? 1 : 0, state.z1, h, state.statistics1);
      linear(LayerLinear::up, h, out_rows_, state.up, state, Arch::gated_mlp);
      if constexpr (Arch::gated_mlp) linear(LayerLinear::gate, h, out_rows_, state.gate, state, true);
      const MatrixView<T> activated = arena_.matrix(out, config_.intermediate_size);
      activate(state, activated);
      linear(LayerLinear::down, activated, out_rows_, state.z2, state, false);
      add_residual(LayerLinear::down, state.z2, pre_norm ? MatrixView<const T>(state.z1) : MatrixView<const T>(h));
      if constexpr (!pre_norm) norm_forward(1, state.z2, y, state.statistics2);
    }
  }

  /// Given dy (rows out, hidden), adds the adapters' gradients and, when `reach.input`, writes dx (all rows, hidden).
  void backward(const BlockState<T>& state, MatrixView<const T> dy, const BlockReach& reach, MatrixView<T> dx) {
    const auto scope = arena_.scope();
    const Index rows = tables_.all.count;
    const Index out = out_rows_.count;
    const Index width = dy.cols;

    // Second half: z2 = dropout(down(a) + bias) + residual.
    MatrixView<const T> dz2 = dy;
    if constexpr (!pre_norm) {
      const MatrixView<T> through_norm = arena_.matrix(out, width);
      norm_backward(1, dy, state.z2, state.statistics2, through_norm, false);
      dz2 = through_norm;
    }
    const MatrixView<T> d_activated = arena_.matrix(out, config_.intermediate_size);
    const MatrixView<const T> d_down = behind_dropout(LayerLinear::down, dz2);
    {
      const auto inner = arena_.scope();
      MatrixView<T> activated;
      if (adapted(LayerLinear::down)) {
        activated = arena_.matrix(out, config_.intermediate_size);
        activate(state, activated);
      }
      linear_backward(LayerLinear::down, d_down, activated, out_rows_, state,
                      reach.mlp_input ? d_activated : MatrixView<T>{}, false);
    }
    if (!reach.mlp_input) return;

    const MatrixView<T> dh = reach.attention ? arena_.matrix(out, width) : MatrixView<T>{};
    if constexpr (Arch::gated_mlp) {
      const MatrixView<T> d_gate = arena_.matrix(out, config_.intermediate_size);
      B::gated_backward(config_.activation, state.gate, state.up, d_activated, d_gate, d_activated);
      linear_backward(LayerLinear::gate, d_gate, state.h, out_rows_, state, dh, false);
      linear_backward(LayerLinear::up, d_activated, state.h, out_rows_, state, dh, true);
    } else {
      B::activation_backward(config_.activation, state.up, weights_[LayerLinear::up].template bias_data<T>(),
                             d_activated);
      linear_backward(LayerLinear::up, d_activated, state.h, out_rows_, state, dh, false);
    }
    if (!reach.attention) return;

    // First half: z1 = dropout(output(context) + bias) + residual.
    const MatrixView<T> dz1 = arena_.matrix(out, width);
    if constexpr (pre_norm) {
      B::copy(dz2, dz1);
      norm_backward(1, dh, state.z1, state.statistics1, dz1, true);
    } else {
      B::add(dz2, dh);
      norm_backward(0, dh, state.z1, state.statistics1, dz1, false);
    }
    const MatrixView<T> d_context = arena_.matrix(out, state.q.cols);
    linear_backward(LayerLinear::output, behind_dropout(LayerLinear::output, dz1), state.context, out_rows_, state,
                    d_context, false);

    const MatrixView<T> dq = arena_.matrix(out, state.q.cols);
    const MatrixView<T> dk = arena_.matrix(rows, state.k.cols);
    const MatrixView<T> dv = arena_.matrix(rows, state.v.cols);
    B::attention_backward(shape_, spans(), state.q, state.k, state.v, query_positions(), out_rows_.numbers.data(),
                          d_context, dq, dk, dv, arena_);
    if constexpr (Arch::positions == Positions::rotary) {
      B::rotate(dq, config_.heads, config_.head_dim, out_rows_.positions.data(), cosines_, sines_, true);
      B::rotate(dk, config_.kv_heads, config_.head_dim, tables_.all.positions.data(), cosines_, sines_, true);
    }

    const MatrixView<const T> in = pre_norm ? MatrixView<const T>(state.attention_in) : state.x;
    const MatrixView<const T> in_selected = selects() ? MatrixView<const T>(state.selected_in) : in;
    const MatrixView<T> nothing;
    if (!reach.input) {
      linear_backward(LayerLinear::query, dq, in_selected, out_rows_, state, nothing, false);
      linear_backward(LayerLinear::key, dk, in, tables_.all, state, nothing, false);
      linear_backward(LayerLinear::value, dv, in, tables_.all, state, nothing, false);
      return;
    }
    // The gradient of attention_in gathers in dx (post-norm) or in a buffer of its own (pre-norm).
    const MatrixView<T> d_in = pre_norm ? arena_.matrix(rows, width) : dx;
    if (!pre_norm && !selects()) {
      B::copy(dz1, d_in);
      linear_backward(LayerLinear::key, dk, in, tables_.all, state, d_in, true);
    } else {
      linear_backward(LayerLinear::key, dk, in, tables_.all, state, d_in, false);
    }
    linear_backward(LayerLinear::value, dv, in, tables_.all, state, d_in, true);
    if (selects()) {
      const MatrixView<T> d_selected = arena_.matrix(out, width);
      linear_backward(LayerLinear::query, dq, in_selected, out_rows_, state, d_selected, false);
      if constexpr (!pre_norm) B::add(dz1, d_selected);
      B::scatter_rows_add(d_selected, out_rows_.rows, d_in);
    } else {
      linear_backward(LayerLinear::query, dq, in_selected, out_rows_, state, d_in, true);
    }
    if constexpr (pre_norm) {
      norm_backward(0, d_in, state.x, state.input_statistics, dx, false);
      if (selects())
        B::scatter_rows_add(dz1, out_rows_.rows, dx);
      else
        B::add(dz1, dx);
    }
  }

 private:
  static constexpr bool pre_norm = Arch::norm_place == NormPlace::pre;

  bool selects() const { return !out_rows_.rows.empty(); }

  /// Without positions attention takes query i for the i-th row of its sequence.
  const std::int32_t* query_positions() const { return selects() ? out_rows_.positions.data() : nullptr; }

  std::size_t site(LayerLinear which) const {
    return static_cast<std::size_t>(layer_) * layer_linears + static_cast<std::size_t>(which);
  }

  bool adapted(LayerLinear which) const {
    for (const SlotTerms<T>& slot : slots_)
      if (!slot.layers[site(which)].a.empty()) return true;
    return false;
  }

  /// Calls `body` with the term of each segment of `rows` that has one at this linear layer.
  template <class Body>
  void for_terms(LayerLinear which, const RowSet& rows, Body&& body) {
    for (const RowSegment& segment : rows.segments) {
      const SlotTerms<T>& slot = slots_[static_cast<std::size_t>(segment.slot)];
      LowRankTerm<T> term = slot.layers[site(which)];
      if (term.a.empty()) continue;
      term.begin = segment.begin;
      term.end = segment.end;
      term.row_numbers = rows.numbers.data();
      if (slot.adapter_dropout > 0) term.dropout = dropout(slot, Purpose::adapter_dropout, slot.adapter_dropout, which);
      body(term);
    }
  }

  Dropout dropout(const SlotTerms<T>& slot, Purpose purpose, double probability, LayerLinear which) const {
    const StepAddress& at = slot.address;
    return Dropout(
        derive_key(at.seed, purpose, at.round, at.client, at.step, at.micro, layer_, static_cast<int>(which)),
        probability);
  }

  /// Memory for S of a linear layer. Called before a scope opens around `linear`, so that S outlives the scope.
  void reserve_s(LayerLinear which, Index rows, BlockState<T>& state) {
    Index rank = 0;
    for (const SlotTerms<T>& slot : slots_) rank = std::max(rank, slot.layers[site(which)].rank());
    MatrixView<T>& s = state.s[static_cast<std::size_t>(which)];
    if (rank > 0 && s.empty()) s = arena_.matrix(rows, rank);
  }

  void linear(LayerLinear which, MatrixView<const T> x, const RowSet& rows, MatrixView<T> y, BlockState<T>& state,
              bool with_bias) {
    const FrozenLinear& layer = weights_[which];
    B::linear_forward(x, layer.weight, with_bias ? layer.template bias_data<T>() : nullptr, y);
    reserve_s(which, rows.count, state);
    for_terms(which, rows, [&](const LowRankTerm<T>& term) {
      B::low_rank_forward(x, term, columns(state.s[static_cast<std::size_t>(which)], term.rank()), y, arena_);
    });
  }

  /// Adapter gradients of one linear layer and, unless dx is empty, dx = (or +=) its input's gradient.
  void linear_backward(LayerLinear which, MatrixView<const T> dy, MatrixView<const T> x, const RowSet& rows,
                       const BlockState<T>& state, MatrixView<T> dx, bool accumulate) {
    if (!dx.empty()) B::linear_backward(dy, weights_[which].weight, dx, accumulate);
    for_terms(which, rows, [&](const LowRankTerm<T>& term) {
      B::low_rank_backward(dy, x, columns(state.s[static_cast<std::size_t>(which)], term.rank()), term, dx, arena_);
    });
  }

  static MatrixView<T> columns(MatrixView<T> s, Index count) { return {s.data, s.rows, count, s.stride}; }

  void activate(const BlockState<T>& state, MatrixView<T> activated) {
    if constexpr (Arch::gated_mlp)
      B::gated_forward(config_.activation, state.gate, state.up, activated);
    else
      B::activation_forward(config_.activation, state.up, weights_[LayerLinear::up].template bias_data<T>(), activated);
  }

  /// z ← dropout(z + bias) + residual, with the hidden dropout of the checkpoint.
  void add_residual(LayerLinear which, MatrixView<T> z, MatrixView<const T> residual) {
    for (const RowSegment& segment : out_rows_.segments)
      B::add_residual(z, weights_[which].template bias_data<T>(), residual, hidden_dropout(which, segment),
                      out_rows_.numbers.data(), segment.begin, segment.end);
  }

  bool drops_after(LayerLinear which) const {
    return training_ && dropouts_.hidden > 0 && (which != LayerLinear::output || Arch::attention_output_dropout);
  }

  Dropout hidden_dropout(LayerLinear which, const RowSegment& segment) const {
    if (!drops_after(which)) return {};
    return dropout(slots_[static_cast<std::size_t>(segment.slot)], Purpose::hidden_dropout, dropouts_.hidden, which);
  }

  /// dz with the hidden dropout's mask applied; dz itself when there is none.
  MatrixView<const T> behind_dropout(LayerLinear which, MatrixView<const T> dz) {
    if (!drops_after(which)) return dz;
    const MatrixView<T> masked = arena_.matrix(dz.rows, dz.cols);
    for (const RowSegment& segment : out_rows_.segments)
      B::dropout(hidden_dropout(which, segment), dz, masked, out_rows_.numbers.data(), segment.begin, segment.end);
    return masked;
  }

  /// The spans of the rows out, with this layer's attention dropout.
  std::span<const AttentionSpan> spans() {
    if (!training_ || dropouts_.attention <= 0) return out_rows_.spans;
    spans_ = out_rows_.spans;
    for (AttentionSpan& span : spans_)
      for (const RowSegment& segment : out_rows_.segments)
        if (span.query_begin >= segment.begin && span.query_begin < segment.end)
          span.dropout = dropout(slots_[static_cast<std::size_t>(segment.slot)], Purpose::attention_dropout,
                                 dropouts_.attention, LayerLinear::query);
    return spans_;
  }

  void norm_forward(std::size_t which, MatrixView<const T> x, MatrixView<T> y, MatrixView<T> statistics) {
    const FrozenNorm& norm = weights_.norms[which];
    B::norm_forward(Arch::norm, x, norm.template gamma_data<T>(), norm.template beta_data<T>(), config_.norm_eps, y,
                    statistics);
  }

  void norm_backward(std::size_t which, MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> statistics,
                     MatrixView<T> dx, bool accumulate) {
    B::norm_backward(Arch::norm, dy, x, statistics, weights_.norms[which].template gamma_data<T>(), dx, accumulate);
  }

  const ModelConfig& config_;
  const BlockWeights& weights_;
  Index layer_;
  const BatchTables& tables_;
  const RowSet& out_rows_;
  std::span<const SlotTerms<T>> slots_;
  bool training_;
  BaseDropouts dropouts_;
  MatrixView<const T> cosines_;
  MatrixView<const T> sines_;
  Arena& arena_;
  AttentionShape shape_;
  std::vector<AttentionSpan> spans_;
};

}  // namespace fedlora
