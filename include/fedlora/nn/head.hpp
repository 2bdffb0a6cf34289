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
  using T = typename B::Scalar;
  using Arena = typename B::Arena;

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

  /// logits (sequences, labels) of pooled rows x (sequences, hidden), in the arena.
  MatrixView<T> forward(MatrixView<const T> x, std::span<const Segment> segments, const PassOptions<T>& options,
                        std::vector<State>& states, Arena& arena) const {
    states.assign(layers_.size(), {});
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const HeadLayer& layer = layers_[i];
      State& state = states[i];
      state.x = arena.matrix(x.rows, layer.in);
      state.y = arena.matrix(x.rows, layer.out);
      Index rank = 0;
      for (const SlotTerms<T>& slot : options.slots) rank = std::max(rank, slot.head[i].rank());
      if (rank > 0) state.s = arena.matrix(x.rows, rank);
      const std::vector<std::int32_t> numbers = sequence_numbers(segments, x.rows);
      B::copy(x, state.x);
      for (const Segment& segment : segments) {
        const SlotTerms<T>& slot = options.slots[static_cast<std::size_t>(segment.slot)];
        if (drops(layer, options))
          B::dropout(dropout(slot, Purpose::head_dropout, options.dropouts.classifier, i), state.x, state.x,
                     numbers.data(), segment.first_sequence, segment.last_sequence);
        const MatrixView<const T> in = state.x.rows_between(segment.first_sequence, segment.last_sequence);
        const MatrixView<T> out = state.y.rows_between(segment.first_sequence, segment.last_sequence);
        if (slot.dense[i].weight.empty())
          B::linear_forward(in, frozen_[i].weight, frozen_[i].template bias_data<T>(), out);
        else
          B::dense_forward(in, slot.dense[i].weight, slot.dense[i].bias, out);
        if (!slot.head[i].a.empty())
          B::low_rank_forward(state.x, term(slot, i, segment, numbers), columns(state.s, slot.head[i].rank()), state.y,
                              arena);
      }
      if (layer.activated) {
        const MatrixView<T> activated = arena.matrix(x.rows, layer.out);
        B::activation_forward(layer.activation, state.y, nullptr, activated);
        x = activated;
      } else {
        x = state.y;
      }
    }
    return states.back().y;
  }

  /// Given the gradient of the logits (overwritten), adds the slots' gradients; writes dx (sequences, hidden) unless
  /// empty.
  void backward(MatrixView<T> dy, std::span<const Segment> segments, const PassOptions<T>& options,
                std::span<const State> states, MatrixView<T> dx, Arena& arena) const {
    const std::vector<std::int32_t> numbers = sequence_numbers(segments, dy.rows);
    for (std::size_t i = layers_.size(); i-- > 0;) {
      const HeadLayer& layer = layers_[i];
      const State& state = states[i];
      if (layer.activated) B::activation_backward(layer.activation, state.y, nullptr, dy);
      const MatrixView<T> d_in = i > 0 ? arena.matrix(dy.rows, layer.in) : dx;
      for (const Segment& segment : segments) {
        const SlotTerms<T>& slot = options.slots[static_cast<std::size_t>(segment.slot)];
        const DenseTerm<T>& dense = slot.dense[i];
        const MatrixView<const T> d_out = dy.rows_between(segment.first_sequence, segment.last_sequence);
        const MatrixView<T> d_segment =
            d_in.empty() ? d_in : d_in.rows_between(segment.first_sequence, segment.last_sequence);
        if (dense.weight.empty()) {
          if (!d_segment.empty()) B::linear_backward(d_out, frozen_[i].weight, d_segment, false);
        } else {
          B::dense_backward(d_out, state.x.rows_between(segment.first_sequence, segment.last_sequence), dense.weight,
                            dense.grad_weight, dense.grad_bias, d_segment);
        }
        if (!slot.head[i].a.empty())
          B::low_rank_backward(dy, state.x, columns(state.s, slot.head[i].rank()), term(slot, i, segment, numbers),
                               d_in, arena);
        if (drops(layer, options) && !d_in.empty())
          B::dropout(dropout(slot, Purpose::head_dropout, options.dropouts.classifier, i), d_in, d_in, numbers.data(),
                     segment.first_sequence, segment.last_sequence);
      }
      dy = d_in;
    }
  }

 private:
  static bool drops(const HeadLayer& layer, const PassOptions<T>& options) {
    return layer.dropout_before && options.training && options.dropouts.classifier > 0;
  }

  static Dropout dropout(const SlotTerms<T>& slot, Purpose purpose, double probability, std::size_t layer) {
    const StepAddress& at = slot.address;
    // Head layers are numbered past any block's, so that their masks are their own.
    return Dropout(derive_key(at.seed, purpose, at.round, at.client, at.step, at.micro, Index{1} << 20, layer),
                   probability);
  }

  static LowRankTerm<T> term(const SlotTerms<T>& slot, std::size_t layer, const Segment& segment,
                             const std::vector<std::int32_t>& numbers) {
    LowRankTerm<T> term = slot.head[layer];
    term.begin = segment.first_sequence;
    term.end = segment.last_sequence;
    term.row_numbers = numbers.data();
    if (slot.adapter_dropout > 0) term.dropout = dropout(slot, Purpose::adapter_dropout, slot.adapter_dropout, layer);
    return term;
  }

  static MatrixView<T> columns(MatrixView<T> s, Index count) { return {s.data, s.rows, count, s.stride}; }

  static std::vector<std::int32_t> sequence_numbers(std::span<const Segment> segments, Index sequences) {
    std::vector<std::int32_t> numbers(static_cast<std::size_t>(sequences));
    for (const Segment& segment : segments)
      for (Index s = segment.first_sequence; s < segment.last_sequence; ++s)
        numbers[static_cast<std::size_t>(s)] = static_cast<std::int32_t>(s - segment.first_sequence);
    return numbers;
  }

  std::vector<HeadLayer> layers_;
  std::vector<FrozenLinear> frozen_;
};

}  // namespace fedlora
