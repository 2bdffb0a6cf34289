// SPDX-License-Identifier: Apache-2.0
// One Transformer block over a frozen base, forward and backward. Backward makes gradients of adapters and of the
// input, and of nothing else.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
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

/// What a block keeps from forward to backward: what would take a product to make again. What norms and activations
/// make is made again from what they read. Views into the worker's arena.
template <class T, class Sum>
struct BlockState {
  MatrixView<Sum> input_statistics;            ///< of the norm of the input, when the block is pre-norm
  MatrixView<T> q, k, v;                       ///< k and v of all rows
  MatrixView<T> context;                       ///< kept only where the output projection is adapted
  MatrixView<T> z1;                            ///< residual sum after attention
  MatrixView<T> gate, up;                      ///< outputs of the first MLP layers, before the activation
  MatrixView<T> z2;                            ///< residual sum after the MLP
  MatrixView<Sum> statistics1, statistics2;    ///< of their norms; the second when the block is post-norm
  std::array<MatrixView<T>, layer_linears> s;  ///< S = dropout(x) Aᵀ of each adapted linear layer
};

/// Runs block `layer`. One object per call: it only gathers what the calls share.
template <Architecture Arch, class B>
class BlockPass {
 public:
  using T = typename B::Element;
  using Sum = typename B::Scalar;
  using Runner = typename B::Runner;
  using State = BlockState<T, Sum>;
  using Term = LowRankTerm<T, Sum>;
  using Part = LinearPart<T, Sum>;

  /// `attention` is the table of the rows that come out: all, or one per sequence.
  BlockPass(const ModelConfig& config, const BlockWeights& weights, Index layer, const BatchTables& tables,
            bool pooled_only, const typename Runner::AttentionTable& attention, const PassOptions<T, Sum>& options,
            Runner& run)
      : config_(config),
        weights_(weights),
        layer_(layer),
        tables_(tables),
        out_rows_(pooled_only ? tables.pooled : tables.all),
        attention_(attention),
        slots_(options.slots),
        training_(options.training),
        dropouts_(options.dropouts),
        run_(run),
        shape_{config.heads,    config.kv_heads,
               config.head_dim, 1.0 / std::sqrt(static_cast<double>(config.head_dim)),
               Arch::causal,    layer} {}

  /// y = block(x). x is (all rows, hidden); y is (rows out, hidden): all rows, or one per sequence. y may be x where
  /// backward will not be given x itself.
  void forward(MatrixView<const T> x, MatrixView<T> y, State& state) {
    const Index rows = tables_.all.count;
    const Index out = out_rows_.count;
    const Index q_width = config_.heads * config_.head_dim;
    const Index kv_width = config_.kv_heads * config_.head_dim;
    if constexpr (pre_norm) state.input_statistics = run_.statistics(rows);
    state.q = run_.matrix(out, q_width);
    state.k = run_.matrix(rows, kv_width);
    state.v = run_.matrix(rows, kv_width);
    state.z1 = run_.matrix(out, x.cols);
    state.statistics1 = run_.statistics(out);
    reserve_s({LayerLinear::query, LayerLinear::output}, out, state);
    reserve_s({LayerLinear::key, LayerLinear::value}, rows, state);
    if (adapted({LayerLinear::output})) state.context = run_.operand(out, q_width);
    attend(x, state);

    state.z2 = pre_norm ? y : run_.matrix(out, x.cols);
    state.up = run_.matrix(out, config_.intermediate_size);
    if constexpr (Arch::gated_mlp) state.gate = run_.matrix(out, config_.intermediate_size);
    if constexpr (!pre_norm) state.statistics2 = run_.statistics(out);
    reserve_s({LayerLinear::gate, LayerLinear::up, LayerLinear::down}, out, state);
    const auto scope = run_.scope();
    const MatrixView<T> h = pre_norm ? run_.operand(out, x.cols) : y;  // y comes last
    norm_forward(pre_norm ? 1 : 0, state.z1, h, state.statistics1);
    if constexpr (Arch::gated_mlp)
      linear(h, out_rows_, state, true, {{LayerLinear::up, state.up}, {LayerLinear::gate, state.gate}});
    else  // the bias is added with the activation
      linear(h, out_rows_, state, false, {{LayerLinear::up, state.up}});
    const MatrixView<T> activated = run_.operand(out, config_.intermediate_size);
    activate(state, activated);
    linear(activated, out_rows_, state, false, {{LayerLinear::down, state.z2}});
    add_residual(LayerLinear::down, state.z2, pre_norm ? MatrixView<const T>(state.z1) : MatrixView<const T>(h));
    if constexpr (!pre_norm) make_output(state, y);
  }

  /// y of a post-norm block, from what it keeps.
  void make_output(const State& state, MatrixView<T> y) { norm_forward(1, state.z2, y, state.statistics2); }

  /// Given in `d` the gradient of the output (rows out, hidden), adds the adapters' gradients and, when `reach.input`,
  /// writes that of the input to dx (all rows, hidden). `d` and z2 are overwritten: where all rows come out, dx is d.
  /// `input()` is x, in memory that it may take; it is called where an adapter needs x, or a norm that x went through.
  template <class Input>
  void backward(const State& state, MatrixView<T> d, const BlockReach& reach, MatrixView<T> dx, Input&& input) {
    const auto scope = run_.scope();
    mlp_backward(state, d, reach);
    if (!reach.attention) return;

    // z1 = dropout(output(context) + bias) + residual; d is its gradient now, and that of the residual.
    const Index rows = tables_.all.count;
    const Index out = out_rows_.count;
    const MatrixView<T> dq = run_.operand(out, state.q.cols);
    const MatrixView<T> dk = run_.operand(rows, state.k.cols);
    const MatrixView<T> dv = run_.operand(rows, state.v.cols);
    {
      const auto inner = run_.scope();
      const MatrixView<T> d_context = run_.matrix(out, state.q.cols);
      linear_backward(state.context, out_rows_, state, d_context, false,
                      {{LayerLinear::output, behind_dropout(LayerLinear::output, d)}});
      run_.attention_backward(shape_, attention_, state.q, state.k, state.v, d_context, dq, dk, dv);
    }
    if constexpr (Arch::positions == Positions::rotary) {
      run_.rotate(dq, config_.heads, config_.head_dim, out_rows_.placed.positions, true);
      run_.rotate(dk, config_.kv_heads, config_.head_dim, tables_.all.placed.positions, true);
    }

    const bool reads_input = adapted({LayerLinear::query, LayerLinear::key, LayerLinear::value});
    MatrixView<const T> x, in, in_selected;
    if (reads_input || (pre_norm && reach.input)) x = input();
    if (reads_input) in = attention_input(x, state);
    in_selected = in;
    if (reads_input && selects()) in_selected = select(in);
    // The gradient of what query, key and value read gathers in dx (post-norm) or in a buffer of its own (pre-norm).
    const MatrixView<T> d_in = !reach.input ? MatrixView<T>{} : pre_norm ? run_.matrix(rows, d.cols) : dx;
    if (!selects()) {
      linear_backward(in, tables_.all, state, d_in, reach.input && !pre_norm,
                      {{LayerLinear::key, dk}, {LayerLinear::value, dv}, {LayerLinear::query, dq}});
    } else {
      const MatrixView<T> d_selected = reach.input ? run_.matrix(out, d.cols) : MatrixView<T>{};
      linear_backward(in, tables_.all, state, d_in, false, {{LayerLinear::key, dk}, {LayerLinear::value, dv}});
      linear_backward(in_selected, out_rows_, state, d_selected, false, {{LayerLinear::query, dq}});
      if (reach.input) {
        if constexpr (!pre_norm) run_.add(d, d_selected);
        run_.scatter_rows_add(d_selected, out_rows_.placed.rows, d_in);
      }
    }
    if (!reach.input) return;
    if constexpr (pre_norm) {
      if (!selects()) {
        norm_backward(0, d_in, x, state.input_statistics, d_in, false);
        run_.add(d_in, dx);
      } else {
        norm_backward(0, d_in, x, state.input_statistics, dx, false);
        run_.scatter_rows_add(d, out_rows_.placed.rows, dx);
      }
    }
  }

 private:
  static constexpr bool pre_norm = Arch::norm_place == NormPlace::pre;

  bool selects() const { return !out_rows_.rows.empty(); }

  std::size_t site(LayerLinear which) const {
    return static_cast<std::size_t>(layer_) * layer_linears + static_cast<std::size_t>(which);
  }

  bool adapted(std::initializer_list<LayerLinear> linears) const {
    for (const SlotTerms<T, Sum>& slot : slots_)
      for (const LayerLinear which : linears)
        if (!slot.layers[site(which)].a.empty()) return true;
    return false;
  }

  /// The first half: q, k, v, and z1 = dropout(output(attention) + bias) + residual.
  void attend(MatrixView<const T> x, State& state) {
    const auto scope = run_.scope();
    const MatrixView<const T> in = attention_input(x, state);
    MatrixView<const T> residual = x;
    if (selects()) {
      const MatrixView<const T> in_selected = select(in);
      residual = pre_norm ? select(x) : in_selected;
      linear(in_selected, out_rows_, state, true, {{LayerLinear::query, state.q}});
      linear(in, tables_.all, state, true, {{LayerLinear::key, state.k}, {LayerLinear::value, state.v}});
    } else {
      linear(in, tables_.all, state, true,
             {{LayerLinear::query, state.q}, {LayerLinear::key, state.k}, {LayerLinear::value, state.v}});
    }
    if constexpr (Arch::positions == Positions::rotary) {
      run_.rotate(state.q, config_.heads, config_.head_dim, out_rows_.placed.positions, false);
      run_.rotate(state.k, config_.kv_heads, config_.head_dim, tables_.all.placed.positions, false);
    }
    const MatrixView<T> context = state.context.empty() ? run_.operand(state.q.rows, state.q.cols) : state.context;
    run_.attention_forward(shape_, attention_, state.q, state.k, state.v, context);
    linear(context, out_rows_, state, false, {{LayerLinear::output, state.z1}});
    add_residual(LayerLinear::output, state.z1, residual);
  }

  /// What query, key and value read of x: x itself when the block is post-norm.
  MatrixView<const T> attention_input(MatrixView<const T> x, const State& state) {
    if constexpr (!pre_norm) return x;
    const MatrixView<T> in = run_.operand(x.rows, x.cols);
    norm_forward(0, x, in, state.input_statistics);
    return in;
  }

  /// Its rows of `query_rows`.
  MatrixView<const T> select(MatrixView<const T> from) {
    const MatrixView<T> selected = run_.operand(out_rows_.count, from.cols);
    run_.gather_rows(from, out_rows_.placed.rows, selected);
    return selected;
  }

  /// The second half, z2 = dropout(down(activated) + bias) + residual: from the gradient of the output in `d` to that
  /// of z1, when `reach.attention`.
  void mlp_backward(const State& state, MatrixView<T> d, const BlockReach& reach) {
    const auto scope = run_.scope();
    const Index out = out_rows_.count;
    if constexpr (!pre_norm) norm_backward(1, d, state.z2, state.statistics2, d, false);
    const MatrixView<T> d_activated = run_.operand(out, config_.intermediate_size);
    {
      const auto inner = run_.scope();
      MatrixView<T> activated;
      if (adapted({LayerLinear::down})) {
        activated = run_.matrix(out, config_.intermediate_size);
        activate(state, activated);
      }
      linear_backward(activated, out_rows_, state, reach.mlp_input ? d_activated : MatrixView<T>{}, false,
                      {{LayerLinear::down, behind_dropout(LayerLinear::down, d)}});
    }
    if (!reach.mlp_input) return;

    const MatrixView<T> dh = reach.attention ? state.z2 : MatrixView<T>{};  // nobody reads z2 again
    MatrixView<T> h;
    if (adapted({LayerLinear::gate, LayerLinear::up})) {
      h = run_.operand(out, d.cols);
      norm_forward(pre_norm ? 1 : 0, state.z1, h, state.statistics1);
    }
    if constexpr (Arch::gated_mlp) {
      const MatrixView<T> d_gate = run_.operand(out, config_.intermediate_size);
      run_.gated_backward(config_.activation, state.gate, state.up, d_activated, d_gate, d_activated);
      linear_backward(h, out_rows_, state, dh, false, {{LayerLinear::gate, d_gate}, {LayerLinear::up, d_activated}});
    } else {
      run_.activation_backward(config_.activation, state.up, weights_[LayerLinear::up].template bias_data<T>(),
                               d_activated);
      linear_backward(h, out_rows_, state, dh, false, {{LayerLinear::up, d_activated}});
    }
    if (!reach.attention) return;
    if constexpr (pre_norm) {
      norm_backward(1, dh, state.z1, state.statistics1, d, true);
    } else {
      run_.add(d, dh);
      norm_backward(0, dh, state.z1, state.statistics1, d, false);
    }
  }

  /// The terms of the segments of `rows` that have one at this linear layer.
  void collect_terms(LayerLinear which, const RowSet& rows, std::vector<Term>& terms) const {
    terms.clear();
    for (const RowSegment& segment : rows.segments) {
      const SlotTerms<T, Sum>& slot = slots_[static_cast<std::size_t>(segment.slot)];
      Term term = slot.layers[site(which)];
      if (term.a.empty()) continue;
      term.begin = segment.begin;
      term.end = segment.end;
      term.row_numbers = rows.placed.numbers;
      if (slot.adapter_dropout > 0) term.dropout = dropout(slot, Purpose::adapter_dropout, slot.adapter_dropout, which);
      terms.push_back(term);
    }
  }

  Dropout dropout(const SlotTerms<T, Sum>& slot, Purpose purpose, double probability, LayerLinear which) const {
    const StepAddress& at = slot.address;
    return Dropout(
        derive_key(at.seed, purpose, at.round, at.client, at.step, at.micro, layer_, static_cast<int>(which)),
        probability);
  }

  /// Memory for S of the linear layers that have some adapter's term.
  void reserve_s(std::initializer_list<LayerLinear> linears, Index rows, State& state) {
    for (const LayerLinear which : linears) {
      Index rank = 0;
      for (const SlotTerms<T, Sum>& slot : slots_) rank = std::max(rank, slot.layers[site(which)].rank());
      if (rank > 0) state.s[static_cast<std::size_t>(which)] = run_.matrix(rows, rank);
    }
  }

  /// A linear layer of a group and its output.
  struct Output {
    LayerLinear which;
    MatrixView<T> y;
  };
  /// The same in backward.
  struct OutputGradient {
    LayerLinear which;
    MatrixView<const T> dy;
  };

  /// y of every layer of a group that reads x.
  void linear(MatrixView<const T> x, const RowSet& rows, const State& state, bool with_bias,
              std::initializer_list<Output> outputs) {
    std::size_t count = 0;
    for (const auto& [which, y] : outputs) {
      Part& part = begin_part(count++, which, rows, state);
      if (with_bias) part.bias = weights_[which].template bias_data<T>();
      part.y = y;
    }
    run_.linear_forward(x, std::span<const Part>(parts_.data(), count));
  }

  /// Given each layer's dy: the adapters' gradients and, unless dx is empty, dx = (or +=) the gradient of the group's
  /// input.
  void linear_backward(MatrixView<const T> x, const RowSet& rows, const State& state, MatrixView<T> dx, bool accumulate,
                       std::initializer_list<OutputGradient> gradients) {
    std::size_t count = 0;
    for (const auto& [which, dy] : gradients) begin_part(count++, which, rows, state).dy = dy;
    run_.linear_backward(x, std::span<const Part>(parts_.data(), count), dx, accumulate);
  }

  /// Part `number` of the group that comes next: its weight and its terms.
  Part& begin_part(std::size_t number, LayerLinear which, const RowSet& rows, const State& state) {
    collect_terms(which, rows, terms_[number]);
    parts_[number] = {};
    parts_[number].weight = &weights_[which].weight;
    parts_[number].s = state.s[static_cast<std::size_t>(which)];
    parts_[number].terms = terms_[number];
    return parts_[number];
  }

  void activate(const State& state, MatrixView<T> activated) {
    if constexpr (Arch::gated_mlp)
      run_.gated_forward(config_.activation, state.gate, state.up, activated);
    else
      run_.activation_forward(config_.activation, state.up, weights_[LayerLinear::up].template bias_data<T>(),
                              activated);
  }

  /// z ← dropout(z + bias) + residual, with the hidden dropout of the checkpoint.
  void add_residual(LayerLinear which, MatrixView<T> z, MatrixView<const T> residual) {
    for (const RowSegment& segment : out_rows_.segments)
      run_.add_residual(z, weights_[which].template bias_data<T>(), residual, hidden_dropout(which, segment),
                        out_rows_.placed.numbers, segment.begin, segment.end);
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
    const MatrixView<T> masked = run_.operand(dz.rows, dz.cols);
    for (const RowSegment& segment : out_rows_.segments)
      run_.dropout(hidden_dropout(which, segment), dz, masked, out_rows_.placed.numbers, segment.begin, segment.end);
    return masked;
  }

  void norm_forward(std::size_t which, MatrixView<const T> x, MatrixView<T> y, MatrixView<Sum> statistics) {
    const FrozenNorm& norm = weights_.norms[which];
    run_.norm_forward(Arch::norm, x, norm.template gamma_data<T>(), norm.template beta_data<T>(), config_.norm_eps, y,
                      statistics);
  }

  void norm_backward(std::size_t which, MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const Sum> statistics,
                     MatrixView<T> dx, bool accumulate) {
    run_.norm_backward(Arch::norm, dy, x, statistics, weights_.norms[which].template gamma_data<T>(), dx, accumulate);
  }

  const ModelConfig& config_;
  const BlockWeights& weights_;
  Index layer_;
  const BatchTables& tables_;
  const RowSet& out_rows_;
  const typename Runner::AttentionTable& attention_;
  std::span<const SlotTerms<T, Sum>> slots_;
  bool training_;
  BaseDropouts dropouts_;
  Runner& run_;
  AttentionShape shape_;
  std::array<std::vector<Term>, 3> terms_;  ///< of a group
  std::array<Part, 3> parts_;
};

}  // namespace fedlora
