// SPDX-License-Identifier: Apache-2.0
// The head of a sequence classifier: a few linear layers on one row per sequence, each frozen, adapted or trained
// whole.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "fedlora/backend/concepts.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/nn/batch.hpp"
#include "fedlora/nn/block.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

/// The layers of a head over backend B. Frozen weights are the checkpoint's; the rest comes from the slots.
template <Backend B>
class ClassificationHead {
 public:
  using T = typename B::Element;
  using Sum = typename B::Scalar;
  using Runner = typename B::Runner;
  using Options = PassOptions<T, Sum>;
  using Slot = SlotTerms<T, Sum>;

  /// What forward leaves for backward, by layer.
  struct State {
    MatrixView<T> x;  ///< input after dropout
    MatrixView<T> y;  ///< output before the activation
    MatrixView<T> s;  ///< S of the low-rank term
  };

  ClassificationHead() = default;
  ClassificationHead(std::vector<HeadLayer> layers, std::vector<FrozenLinear> frozen)
      : layers_(std::move(layers)), frozen_(std::move(frozen)) {}

  const std::vector<HeadLayer>& layers() const { return layers_; }

  /// logits (sequences, labels) of pooled rows x (sequences, hidden), in the runner's memory.
  /// `numbers` is the client's own number of each sequence, placed.
  MatrixView<T> forward(MatrixView<const T> x, std::span<const Segment> segments, const std::int32_t* numbers,
                        const Options& options, std::vector<State>& states, Runner& run) const {
    states.assign(layers_.size(), {});
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const HeadLayer& layer = layers_[i];
      State& state = states[i];
      state.x = run.operand(x.rows, layer.in);
      state.y = run.matrix(x.rows, layer.out);
      Index rank = 0;
      for (const Slot& slot : options.slots) rank = std::max(rank, slot.head[i].rank());
      if (rank > 0) state.s = run.matrix(x.rows, rank);
      run.copy(x, state.x);
      for (const Segment& segment : segments) {
        const Slot& slot = options.slots[static_cast<std::size_t>(segment.slot)];
        if (drops(layer, options))
          run.dropout(dropout(slot, Purpose::head_dropout, options.dropouts.classifier, i), state.x, state.x,
                     numbers, segment.first_sequence, segment.last_sequence);
        const MatrixView<const T> in = state.x.rows_between(segment.first_sequence, segment.last_sequence);
        const MatrixView<T> out = state.y.rows_between(segment.first_sequence, segment.last_sequence);
        if (slot.dense[i].weight.empty())
          with_part(slot, i, segment, state, numbers, [&](LinearPart<T, Sum>& part) {
            part.bias = frozen_[i].template bias_data<T>();
            part.y = out;
            run.linear_forward(in, {&part, 1});
          });
        else
          run.dense_forward(in, slot.dense[i].weight, slot.dense[i].bias, out);
      }
      if (layer.activated) {
        const MatrixView<T> activated = run.matrix(x.rows, layer.out);
        run.activation_forward(layer.activation, state.y, nullptr, activated);
        x = activated;
      } else {
        x = state.y;
      }
    }
    return states.back().y;
  }

  /// Given the gradient of the logits (overwritten), adds the slots' gradients; writes dx (sequences, hidden) unless
  /// empty.
  void backward(MatrixView<T> dy, std::span<const Segment> segments, const std::int32_t* numbers,
                const Options& options, std::span<const State> states, MatrixView<T> dx, Runner& run) const {
    for (std::size_t i = layers_.size(); i-- > 0;) {
      const HeadLayer& layer = layers_[i];
      const State& state = states[i];
      if (layer.activated) run.activation_backward(layer.activation, state.y, nullptr, dy);
      const MatrixView<T> d_in = i > 0 ? run.matrix(dy.rows, layer.in) : dx;
      for (const Segment& segment : segments) {
        const Slot& slot = options.slots[static_cast<std::size_t>(segment.slot)];
        const DenseTerm<T, Sum>& dense = slot.dense[i];
        const MatrixView<const T> d_out = dy.rows_between(segment.first_sequence, segment.last_sequence);
        const MatrixView<T> d_segment =
            d_in.empty() ? d_in : d_in.rows_between(segment.first_sequence, segment.last_sequence);
        const MatrixView<const T> in = state.x.rows_between(segment.first_sequence, segment.last_sequence);
        if (dense.weight.empty())
          with_part(slot, i, segment, state, numbers, [&](LinearPart<T, Sum>& part) {
            part.dy = d_out;
            run.linear_backward(in, {&part, 1}, d_segment, false);
          });
        else
          run.dense_backward(d_out, in, dense.weight, dense.grad_weight, dense.grad_bias, d_segment);
        if (drops(layer, options) && !d_in.empty())
          run.dropout(dropout(slot, Purpose::head_dropout, options.dropouts.classifier, i), d_in, d_in, numbers,
                     segment.first_sequence, segment.last_sequence);
      }
      dy = d_in;
    }
  }

 private:
  static bool drops(const HeadLayer& layer, const Options& options) {
    return layer.dropout_before && options.training && options.dropouts.classifier > 0;
  }

  static Dropout dropout(const Slot& slot, Purpose purpose, double probability, std::size_t layer) {
    const StepAddress& at = slot.address;
    // Head layers are numbered past any block's, so that their masks are their own.
    return Dropout(derive_key(at.seed, purpose, at.round, at.client, at.step, at.micro, Index{1} << 20, layer),
                   probability);
  }

  /// Calls `body` with a frozen layer and, where the slot has one, its low-rank term, over the segment's own rows.
  template <class Body>
  void with_part(const Slot& slot, std::size_t layer, const Segment& segment, const State& state,
                 const std::int32_t* numbers, Body&& body) const {
    LinearPart<T, Sum> part;
    part.weight = &frozen_[layer].weight;
    LowRankTerm<T, Sum> term = slot.head[layer];
    if (!term.a.empty()) {
      term.end = segment.last_sequence - segment.first_sequence;
      term.row_numbers = numbers + segment.first_sequence;
      if (slot.adapter_dropout > 0) term.dropout = dropout(slot, Purpose::adapter_dropout, slot.adapter_dropout, layer);
      part.terms = {&term, 1};
      part.s = state.s.rows_between(segment.first_sequence, segment.last_sequence);
    }
    body(part);
  }

  std::vector<HeadLayer> layers_;
  std::vector<FrozenLinear> frozen_;
};

}  // namespace fedlora
