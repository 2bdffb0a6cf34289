// SPDX-License-Identifier: Apache-2.0
// What goes around an optimizer step over flat arrays on the device, for one client or for several at once. A step is
//   gradient_norm            reads the gradient: its norm, and whether it is finite
//   adamw_step or sgd_step   one pass that unscales, clips and updates (optimizer.cuh)
//   update_scale             counts the step, and adapts the loss scale
// and needs nothing from the host: what one step must know of the others is a `StepState` in device memory.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// What a client's steps have led to. The host writes it before the first step and may read it after any.
struct StepState {
  double loss_scale = 1.0;          ///< the gradient is that of loss_scale · loss
  double norm = 0.0;                ///< of the last gradient, unscaled, before clipping
  std::int64_t steps_done = 0;      ///< steps taken
  std::int64_t skipped = 0;         ///< steps not taken because the gradient was not finite
  std::int32_t good_steps = 0;      ///< taken since the loss scale was last changed
  std::int32_t finite = 1;          ///< whether the last gradient was
  std::int32_t weights_finite = 1;  ///< 0 from the first step on that has made a weight that is not
};

/// How the loss scale changes: the rule of torch.amp.GradScaler, and its defaults but for the first scale. Theirs,
/// 65536, costs the first steps of a training; a client's local steps are few, and each client begins anew. 16-bit
/// floats with 5 bits of exponent need a loss scale; every other type stays at `fixed()`.
struct LossScaling {
  double initial = 4096.0;
  double growth = 2.0;
  double backoff = 0.5;
  std::int32_t interval = 2000;  ///< good steps before it grows

  /// Always 1.
  static constexpr LossScaling fixed() { return {1.0, 1.0, 1.0, 2000}; }
};

/// The rule for gradients that pass through activations in T.
template <class T>
inline constexpr LossScaling default_loss_scaling = LossScaling::fixed();
template <>
inline constexpr LossScaling default_loss_scaling<Half>{};

/// One client's part of the flat arrays, in one step.
struct StepSegment {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  double rate = 1.0;      ///< times the learning rate
  std::int32_t slot = 0;  ///< which `StepState`
};

/// The clients that take a step: `count` segments in device memory, which share no element and no slot. A client that
/// has nothing to learn from in this step is left out. Each is updated to the same bits as alone.
struct StepSegments {
  const StepSegment* table = nullptr;
  Index count = 0;
  Index longest = 0;  ///< no segment is longer. Sizes launches, and nothing else

  /// One segment without a table: all of `size` elements, slot 0.
  static StepSegments whole(Index size) { return {nullptr, 1, size}; }

  FEDLORA_DEVICE StepSegment operator[](Index i) const {
    return table == nullptr ? StepSegment{0, longest, 1.0, 0} : table[i];
  }
};

/// What every step has: flat arrays in device memory, indexed alike, and what is done to the gradient first:
///   g ← gradient / loss_scale + mu (weights − start)    the proximal term is FedProx's (Li et al. 2020, 1812.06127)
///   g ← g · min(1, clip_norm / (‖g‖ + 1e-6))            as torch.nn.utils.clip_grad_norm_
/// It is done in registers, once for the norm and once for the step; the gradient in memory stays as it is.
template <class T>
struct StepArrays {
  float* weights = nullptr;
  const float* gradient = nullptr;
  T* shadow = nullptr;           ///< unless null, receives the new weights rounded to T
  const float* start = nullptr;  ///< the weights that the client received; read where mu > 0
  double mu = 0.0;
  double clip_norm = 0.0;  ///< 0: no clipping
};

namespace detail {

/// 1 / loss_scale, as a float.
FEDLORA_DEVICE float unscaling(const StepState& state) { return 1.0f / static_cast<float>(state.loss_scale); }

FEDLORA_DEVICE bool is_finite(double value) {
  return (__builtin_bit_cast(std::uint64_t, value) & 0x7ff0000000000000u) != 0x7ff0000000000000u;
}

FEDLORA_DEVICE bool is_finite(float value) {
  return (__builtin_bit_cast(std::uint32_t, value) & 0x7f800000u) != 0x7f800000u;
}

/// Whether each of the arrays may be read by vectors from its beginning on; null is no hindrance.
template <class... P>
bool all_by_vectors(const P*... arrays) {
  return ((reinterpret_cast<std::uintptr_t>(arrays) % 16 == 0) && ...);
}

/// How the sum of squares of a segment is cut into parts: by its length alone.
struct NormCuts {
  static constexpr Index tile = 4096;       ///< elements that a block reads at once
  static constexpr Index most_parts = 512;  ///< four blocks for each multiprocessor of a large GPU

  FEDLORA_HOST_DEVICE static Index parts(Index length) {
    const Index tiles = divide_up(length, tile);
    return tiles < most_parts ? tiles : most_parts;
  }
};

inline void check_segments(const char* where, const StepSegments& segments) {
  if (segments.count < 0 || segments.longest < 0 || segments.count > 65535 ||
      (segments.table == nullptr && segments.count > 1))
    fail<ShapeError>(where, "a table of 0 to 65535 segments",
                     (segments.table == nullptr ? "no table of " : "one of ") + std::to_string(segments.count));
}

template <class T>
void check_arrays(const char* where, const StepArrays<T>& arrays) {
  if (arrays.mu > 0.0 && arrays.start == nullptr)
    fail<ShapeError>(where, "the weights at the start, for a proximal term", "none");
}

}  // namespace detail

/// Partial sums of g² over the segments: block (p, s) has every `parts`th tile of segment s from tile p on. Four sums
/// of a thread, then warp, then block, in double; a thread's elements are counted from the beginning of the segment.
struct SquaresKernel {
  static constexpr int threads = 256;
  static constexpr int batch = static_cast<int>(detail::NormCuts::tile) / (4 * threads);

  const float* gradient = nullptr;
  const float* weights = nullptr;
  const float* start = nullptr;
  float mu = 0.0f;
  StepSegments segments;
  const StepState* states = nullptr;
  double* partials = nullptr;  ///< (segments, parts of the longest)

  int shared_bytes() const { return threads / 32 * static_cast<int>(sizeof(double)); }
  Grid grid() const { return {detail::NormCuts::parts(segments.longest), segments.count}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto of_warps = block.template shared<double>(threads / 32);
    const StepSegment segment = segments[block.y()];
    const Index length = segment.end - segment.begin;
    const Index parts = detail::NormCuts::parts(length);
    if (block.x() >= parts) return;
    const float unscale = detail::unscaling(states[segment.slot]);
    const bool by_vectors =
        aligned(gradient, segment) && (mu == 0.0f || (aligned(weights, segment) && aligned(start, segment)));
    double sums[4] = {};
    for (Index tile = block.x(); tile * detail::NormCuts::tile < length; tile += parts) {
      const Index first = tile * detail::NormCuts::tile + block.thread() * 4;
      Vector<float> g[batch], w[batch], w0[batch];
      unrolled<batch>([&]<int B>() {
        const Index at = first + B * (4 * threads);
        g[B] = four_at(block, gradient, segment, at, by_vectors);
        if (mu == 0.0f) return;
        w[B] = four_at(block, weights, segment, at, by_vectors);
        w0[B] = four_at(block, start, segment, at, by_vectors);
      });
      unrolled<batch>([&]<int B>() {
        for (int e = 0; e < 4; ++e) {
          float value = g[B].elements[e] * unscale;
          if (mu != 0.0f) value += mu * (w[B].elements[e] - w0[B].elements[e]);
          sums[e] += static_cast<double>(value) * static_cast<double>(value);
        }
      });
    }
    double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int distance = 16; distance > 0; distance /= 2) sum += block.shuffle_down(sum, distance);
    if (block.lane() == 0) of_warps[block.warp()] = sum;
    block.sync();
    if (block.thread() != 0) return;
    double total = 0.0;
    for (int warp = 0; warp < threads / 32; ++warp) total += of_warps[warp];
    partials[block.y() * detail::NormCuts::parts(segments.longest) + block.x()] = total;
  }

 private:
  FEDLORA_DEVICE static bool aligned(const float* array, const StepSegment& segment) {
    return reinterpret_cast<std::uintptr_t>(array + segment.begin) % 16 == 0;
  }

  /// Elements `at` to `at` + 3 of the segment; zeros behind its end.
  template <class Block>
  FEDLORA_DEVICE static Vector<float> four_at(Block& block, const float* array, const StepSegment& segment, Index at,
                                              bool by_vectors) {
    const Index left = segment.end - segment.begin - at;
    const float* const from = array + segment.begin + at;
    if (by_vectors && left >= 4) return block.load_vector(from);
    Vector<float> four;
    for (int e = 0; e < 4; ++e) four.elements[e] = e < left ? from[e] : 0.0f;
    return four;
  }
};

/// The norm of each segment from its partial sums, in their order; a warp has one. Squares of floats do not overflow a
/// double: the sum is finite exactly when all of them are.
struct NormKernel {
  static constexpr int threads = 32;

  StepSegments segments;
  const double* partials = nullptr;
  StepState* states = nullptr;

  int shared_bytes() const { return 0; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const StepSegment segment = segments[block.x()];
    const Index parts = detail::NormCuts::parts(segment.end - segment.begin);
    const double* const own = partials + block.x() * detail::NormCuts::parts(segments.longest);
    double sum = 0.0;
    for (Index part = block.lane(); part < parts; part += 32) sum += own[part];
    for (int distance = 16; distance > 0; distance /= 2) sum += block.shuffle_down(sum, distance);
    if (block.lane() != 0) return;
    states[segment.slot].norm = sqrt(sum);
    states[segment.slot].finite = detail::is_finite(sum) ? 1 : 0;
  }
};

/// Counts a step and changes the loss scale; a thread has a segment.
struct UpdateScaleKernel {
  static constexpr int threads = 128;

  LossScaling scaling;
  StepSegments segments;
  StepState* states = nullptr;

  int shared_bytes() const { return 0; }
  Grid grid() const { return {divide_up<Index>(segments.count, threads), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index at = block.x() * threads + block.thread();
    if (at >= segments.count) return;
    StepState& state = states[segments[at].slot];
    if (state.finite == 0) {
      ++state.skipped;
      state.good_steps = 0;
      state.loss_scale *= scaling.backoff;
      return;
    }
    ++state.steps_done;
    if (++state.good_steps < scaling.interval) return;
    state.good_steps = 0;
    const double grown = state.loss_scale * scaling.growth;
    if (detail::is_finite(static_cast<float>(grown))) state.loss_scale = grown;
  }
};

/// *record = *state.
struct RecordStepKernel {
  static constexpr int threads = 32;

  const StepState* state = nullptr;
  StepState* record = nullptr;

  int shared_bytes() const { return 0; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    if (block.thread() == 0) *record = *state;
  }
};

/// *weight = factor · loss_scale, with the scale of `state` or, without one, `scale`.
struct LossWeightKernel {
  static constexpr int threads = 32;

  const StepState* state = nullptr;
  double factor = 1.0;
  double scale = 1.0;
  float* weight = nullptr;

  int shared_bytes() const { return 0; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    if (block.thread() == 0) *weight = static_cast<float>(factor * (state != nullptr ? state->loss_scale : scale));
  }
};

/// Bytes of workspace that `gradient_norm` needs.
inline std::size_t gradient_norm_workspace(const StepSegments& segments) {
  return static_cast<std::size_t>(detail::NormCuts::parts(segments.longest) * segments.count) * sizeof(double);
}

/// norm = ‖g‖ of each segment, with g = gradient / loss_scale + mu (weights − start), and finite = whether all of g is;
/// summed in double. Clipping does not enter; weights and gradient are only read.
/// Arrays:      those of `arrays`, each longer than any segment reaches; all in device memory
/// Determinism: the same bits in every run; the order of sums depends on the segment's length alone
/// \throws ShapeError
template <class T>
void gradient_norm(const StepArrays<T>& arrays, const StepSegments& segments, StepState* states,
                   std::span<std::byte> workspace, Stream stream) {
  constexpr const char* where = "cuda::gradient_norm";
  detail::check_segments(where, segments);
  detail::check_arrays(where, arrays);
  const std::size_t needed = gradient_norm_workspace(segments);
  if (workspace.size() < needed || reinterpret_cast<std::uintptr_t>(workspace.data()) % sizeof(double) != 0)
    fail<ShapeError>(where, std::to_string(needed) + " bytes of workspace on a multiple of 8",
                     std::to_string(workspace.size()));
  SquaresKernel squares;
  squares.gradient = arrays.gradient;
  squares.weights = arrays.weights;
  squares.start = arrays.start;
  squares.mu = arrays.mu > 0.0 ? static_cast<float>(arrays.mu) : 0.0f;
  squares.segments = segments;
  squares.states = states;
  squares.partials = reinterpret_cast<double*>(workspace.data());
  launch(stream, squares.grid(), squares);
  NormKernel norm;
  norm.segments = segments;
  norm.partials = squares.partials;
  norm.states = states;
  launch(stream, {segments.count, 1}, norm);
}

/// Ends a step: counts it as done or as skipped, and changes the loss scale as torch.amp.GradScaler does: times
/// `backoff` after a gradient that was not finite, times `growth` after `interval` steps that were, unless that is more
/// than a float holds. With `LossScaling::fixed()` the scale stays, and a skipped step means that training diverges.
/// Determinism: the same bits in every run
/// \throws ShapeError
inline void update_scale(const LossScaling& scaling, const StepSegments& segments, StepState* states, Stream stream) {
  detail::check_segments("cuda::update_scale", segments);
  UpdateScaleKernel kernel;
  kernel.scaling = scaling;
  kernel.segments = segments;
  kernel.states = states;
  launch(stream, kernel.grid(), kernel);
}

/// *record = *state; both in device memory.
inline void record_step(const StepState* state, StepState* record, Stream stream) {
  launch(stream, {1, 1}, RecordStepKernel{state, record});
}

/// *weight = factor · the loss scale of `state` or, without one, `scale`; both in device memory.
inline void scale_loss_weight(double factor, const StepState* state, double scale, float* weight, Stream stream) {
  launch(stream, {1, 1}, LossWeightKernel{state, factor, scale, weight});
}

}  // namespace fedlora::cuda

#endif
