// SPDX-License-Identifier: Apache-2.0
// Optimizer steps over flat arrays on the device: one pass that unscales the gradient, clips it, updates weights and
// moments, and rounds the weights to 16 bits for the products. What goes before and after it is in optimizer_state.cuh.
#pragma once

#include <cmath>
#include <cstdint>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/optimizer_state.cuh"
#include "fedlora/backend/cuda/packed.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/optimizer_step.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

using AdamWParameters = AdamWStep;
using SgdParameters = SgdStep;

namespace detail {

/// Elements of a flat array that one thread has: 16 bytes of a 16-bit shadow.
inline constexpr int step_length = 8;

/// base^exponent by squaring. An error of about exponent · 2^-53 of a power that has then become small: 1 − βᵗ is right
/// to 1e-13 at every t.
FEDLORA_HOST_DEVICE inline double integer_power(double base, std::int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 != 0) result *= base;
    base *= base;
  }
  return result;
}

/// Elements [begin, end) of the arrays, which one thread has, at most `step_length` of them.
struct StepPart {
  Index at;  ///< of element 0; a multiple of `step_length`
  int begin;
  int end;
  bool by_vectors;  ///< all of them, in arrays that allow it

  FEDLORA_DEVICE bool has(int e) const { return e >= begin && e < end; }
};

template <class Block>
FEDLORA_DEVICE void read_part(Block& block, const float* from, const StepPart& part, float (&values)[step_length]) {
  if (part.by_vectors) {
    unrolled<step_length / 4>([&]<int Quad>() {
      const Vector<float> four = block.load_vector(from + part.at + 4 * Quad);
      for (int e = 0; e < 4; ++e) values[4 * Quad + e] = four.elements[e];
    });
  } else {
    for (int e = 0; e < step_length; ++e) values[e] = part.has(e) ? from[part.at + e] : 0.0f;
  }
}

template <class T, class Block>
FEDLORA_DEVICE void write_part(Block& block, T* to, const StepPart& part, const float (&values)[step_length]) {
  if (part.by_vectors) {
    unrolled<step_length / vector_length<T>>([&]<int At>() {
      float of_vector[vector_length<T>];
      for (int e = 0; e < vector_length<T>; ++e) of_vector[e] = values[At * vector_length<T> + e];
      store_packed(block, to + part.at + At * vector_length<T>, pack<T>(of_vector));
    });
  } else {
    for (int e = 0; e < step_length; ++e)
      if (part.has(e)) to[part.at + e] = T(values[e]);
  }
}

}  // namespace detail

/// One step of `Rule` over all segments, element by element: block (b, s) has the b-th 2048 elements of segment s,
/// counted from the multiple of 8 at or before its beginning, so that segments may begin anywhere and still be read by
/// vectors. One thread computes what all elements share, in double, while the others wait for their loads.
template <class Rule, class T>
struct StepKernel {
  static constexpr int threads = 256;
  static constexpr int tile = threads * detail::step_length;

  Rule rule;
  StepArrays<T> arrays;
  bool by_vectors = false;
  StepSegments segments;
  StepState* states = nullptr;

  int shared_bytes() const { return static_cast<int>((sizeof(Shared) + 15) / 16 * 16); }
  Grid grid() const { return {divide_up<Index>(segments.longest + detail::step_length - 1, tile), segments.count}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto shared = block.template shared<Shared>(1);
    const StepSegment segment = segments[block.y()];
    const Index first = segment.begin / detail::step_length * detail::step_length;
    StepState& state = states[segment.slot];
    if (first + block.x() * tile >= segment.end || state.finite == 0) return;
    const Index at = first + block.x() * tile + block.thread() * detail::step_length;
    const Index before = segment.begin - at;
    const Index left = segment.end - at;
    detail::StepPart part{at, before > 0 ? static_cast<int>(before) : 0, 0, false};
    part.end = left < 0 ? 0 : left < detail::step_length ? static_cast<int>(left) : detail::step_length;
    part.by_vectors = by_vectors && part.begin == 0 && part.end == detail::step_length;

    const bool proximal = arrays.mu > 0.0;
    float g[detail::step_length], w[detail::step_length], w0[detail::step_length];
    detail::read_part(block, arrays.gradient, part, g);
    detail::read_part(block, arrays.weights, part, w);
    if (proximal) detail::read_part(block, arrays.start, part, w0);
    typename Rule::Moments moments;
    rule.read(block, part, state.steps_done == 0, moments);

    if (block.thread() == 0) {
      Shared common;
      common.unscale = detail::unscaling(state);
      common.clip = 1.0f;
      if (arrays.clip_norm > 0.0) {
        const double factor = arrays.clip_norm / (state.norm + 1e-6);
        if (factor < 1.0) common.clip = static_cast<float>(factor);
      }
      common.scalars = rule.scalars(segment.rate, state.steps_done + 1);
      shared[0] = common;
    }
    block.sync();
    const Shared common = shared[0];

    const float mu = static_cast<float>(arrays.mu);
    bool finite = true;
    for (int e = 0; e < detail::step_length; ++e) {
      float value = g[e] * common.unscale;
      if (proximal) value += mu * (w[e] - w0[e]);
      value *= common.clip;
      w[e] = rule.update(common.scalars, w[e], value, moments, e);
      finite = finite && (!part.has(e) || detail::is_finite(w[e]));
    }
    if (part.end <= part.begin) return;
    detail::write_part(block, arrays.weights, part, w);
    if (arrays.shadow != nullptr) detail::write_part(block, arrays.shadow, part, w);
    rule.write(block, part, moments);
    if (!finite) state.weights_finite = 0;  // whoever writes it writes the same
  }

 private:
  struct Shared {
    float unscale;
    float clip;
    typename Rule::Scalars scalars;
  };
};

/// w ← w (1 − lr·λ);  m ← m + (1 − β₁)(g − m);  v ← β₂ v + (1 − β₂) g²;
/// w ← w − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε). Moments are zero before the first step, whatever memory holds.
struct AdamWRule {
  struct Scalars {
    float decay, blend, keep, fresh, step_size, correction, tiny;
  };
  struct Moments {
    float m[detail::step_length], v[detail::step_length];
  };

  AdamWParameters parameters;
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;

  template <class Block>
  FEDLORA_DEVICE void read(Block& block, const detail::StepPart& part, bool first, Moments& moments) const {
    if (first) {
      for (int e = 0; e < detail::step_length; ++e) moments.m[e] = moments.v[e] = 0.0f;
    } else {
      detail::read_part(block, exp_avg, part, moments.m);
      detail::read_part(block, exp_avg_sq, part, moments.v);
    }
  }

  FEDLORA_DEVICE Scalars scalars(double rate, std::int64_t t) const {
    const double lr = parameters.lr * rate;
    return {static_cast<float>(1.0 - lr * parameters.weight_decay),
            static_cast<float>(1.0 - parameters.beta1),
            static_cast<float>(parameters.beta2),
            static_cast<float>(1.0 - parameters.beta2),
            static_cast<float>(-(lr / (1.0 - detail::integer_power(parameters.beta1, t)))),
            static_cast<float>(sqrt(1.0 - detail::integer_power(parameters.beta2, t))),
            static_cast<float>(parameters.eps)};
  }

  FEDLORA_DEVICE float update(const Scalars& s, float w, float g, Moments& moments, int e) const {
    float& m = moments.m[e];
    float& v = moments.v[e];
    m = s.blend < 0.5f ? m + s.blend * (g - m) : g - (g - m) * (1.0f - s.blend);  // torch's lerp
    v = v * s.keep + s.fresh * g * g;
    return w * s.decay + s.step_size * m / (sqrtf(v) / s.correction + s.tiny);
  }

  template <class Block>
  FEDLORA_DEVICE void write(Block& block, const detail::StepPart& part, const Moments& moments) const {
    detail::write_part(block, exp_avg, part, moments.m);
    detail::write_part(block, exp_avg_sq, part, moments.v);
  }
};

/// g ← g + λ w;  u ← g at the first step, else μ u + (1 − d) g;  w ← w − lr · u, or with Nesterov's look-ahead
/// w ← w − lr · (g + μ u).
template <bool Momentum>
struct SgdRule {
  struct Scalars {
    float rate, decay, momentum, fresh;
    bool first;
  };
  struct Moments {
    float u[detail::step_length];
  };

  SgdParameters parameters;
  float* momentum_buffer = nullptr;

  template <class Block>
  FEDLORA_DEVICE void read(Block& block, const detail::StepPart& part, bool first, Moments& moments) const {
    if constexpr (Momentum) {
      if (!first) detail::read_part(block, momentum_buffer, part, moments.u);
    }
  }

  FEDLORA_DEVICE Scalars scalars(double rate, std::int64_t t) const {
    return {static_cast<float>(-(parameters.lr * rate)), static_cast<float>(parameters.weight_decay),
            static_cast<float>(parameters.momentum), static_cast<float>(1.0 - parameters.dampening), t == 1};
  }

  FEDLORA_DEVICE float update(const Scalars& s, float w, float g, Moments& moments, int e) const {
    g += s.decay * w;
    if constexpr (!Momentum) {
      return w + s.rate * g;
    } else {
      float& u = moments.u[e];
      u = s.first ? g : u * s.momentum + s.fresh * g;
      return w + s.rate * (parameters.nesterov ? g + s.momentum * u : u);
    }
  }

  template <class Block>
  FEDLORA_DEVICE void write(Block& block, const detail::StepPart& part, const Moments& moments) const {
    if constexpr (Momentum) detail::write_part(block, momentum_buffer, part, moments.u);
  }
};

namespace detail {

template <class T, class Rule>
void launch_step(const Rule& rule, bool by_vectors, const StepArrays<T>& arrays, const StepSegments& segments,
                 StepState* states, Stream stream) {
  StepKernel<Rule, T> kernel;
  kernel.rule = rule;
  kernel.arrays = arrays;
  kernel.by_vectors = by_vectors && all_by_vectors(arrays.weights, arrays.gradient, arrays.shadow, arrays.start);
  kernel.segments = segments;
  kernel.states = states;
  launch(stream, kernel.grid(), kernel);
}

}  // namespace detail

/// One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) after `gradient_norm` with the same arrays: weights
/// and moments are updated in place, the shadow is overwritten. A segment whose gradient is not finite is left alone.
/// The step number of the bias corrections is steps_done + 1; at the first step the moments are not read.
/// Arrays:      those of `arrays`, exp_avg and exp_avg_sq, all different; in device memory
/// Precision:   element by element in float; what elements share in double, rounded once, as torch does
/// Determinism: the same bits in every run, whatever other segments there are
/// \throws ShapeError
template <class T>
void adamw_step(const AdamWParameters& parameters, const StepArrays<T>& arrays, float* exp_avg, float* exp_avg_sq,
                const StepSegments& segments, StepState* states, Stream stream) {
  constexpr const char* where = "cuda::adamw_step";
  detail::check_segments(where, segments);
  detail::check_arrays(where, arrays);
  const AdamWRule rule{parameters, exp_avg, exp_avg_sq};
  detail::launch_step(rule, detail::all_by_vectors(exp_avg, exp_avg_sq), arrays, segments, states, stream);
}

/// One step of SGD after `gradient_norm` with the same arrays; otherwise as `adamw_step`. Without momentum the buffer
/// is not used and may be null.
/// Determinism: the same bits in every run, whatever other segments there are
/// \throws ShapeError
template <class T>
void sgd_step(const SgdParameters& parameters, const StepArrays<T>& arrays, float* momentum_buffer,
              const StepSegments& segments, StepState* states, Stream stream) {
  constexpr const char* where = "cuda::sgd_step";
  detail::check_segments(where, segments);
  detail::check_arrays(where, arrays);
  if (parameters.momentum == 0.0) {
    detail::launch_step(SgdRule<false>{parameters, nullptr}, true, arrays, segments, states, stream);
  } else {
    const SgdRule<true> rule{parameters, momentum_buffer};
    detail::launch_step(rule, detail::all_by_vectors(momentum_buffer), arrays, segments, states, stream);
  }
}

}  // namespace fedlora::cuda

#endif
