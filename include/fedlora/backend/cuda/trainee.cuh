// SPDX-License-Identifier: Apache-2.0
// One client's adapter while it is trained on the device: parameters, gradient and moments stay there from the first
// step to the last, and a step asks nothing of the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/graph.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/optimizer.cuh"
#include "fedlora/backend/cuda/optimizer_state.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"
#include "fedlora/backend/cuda/runner.cuh"
#include "fedlora/backend/optimizer_step.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// What a step of a client has come to, read when all of them are done.
struct StepOutcome {
  double loss = 0;              ///< Σ over the step's losses, nats
  bool gradient_finite = true;  ///< if not, the step was skipped
  double loss_scale = 1;        ///< of the step after it
  bool parameters_finite = true;
};

/// The adapter of one client after another, on one runner, which must outlive it.
///
///   trainee.begin(values, moments, steps_done, steps, clip_norm, mu);
///   for each step:  trainee.run(step, captured, [&] { …forward, backward…; trainee.update(optimizer step); });
///   outcomes = trainee.finish(values, moments);
///
/// `Half` is trained with a dynamic loss scale (LossScaling), which begins anew for each client, so that its bits do
/// not depend on what ran before; steps whose gradient overflows are skipped. Sums have a fixed order; two runs on one
/// device give the same bits, as graphs and without.
template <class T>
class Trainee {
 public:
  explicit Trainee(Runner<T>& run) : run_(run) {}
  Trainee(const Trainee&) = delete;
  Trainee& operator=(const Trainee&) = delete;
  ~Trainee() { graph_.abandon(); }

  /// Whether a skipped step is the loss scale's affair, and not the end of training.
  static constexpr bool scales_loss = default_loss_scaling<T>.initial != 1.0;

  /// Brings a client's adapter and its optimizer's moments to the device (empty ones: none yet; `steps_done` is 0
  /// then), for at most `steps` steps. \throws CudaError
  void begin(std::span<const float> values, std::span<const std::vector<float>* const> moments, Index steps_done,
             Index steps, double clip_norm, double mu) {
    size_ = static_cast<Index>(values.size());
    grow(weights_, values.size_bytes(), "an adapter's parameters");
    grow(gradient_, values.size_bytes(), "an adapter's gradient");
    upload<float>(values, weights_.as<float>(), stream());
    arrays_ = {};
    arrays_.weights = weights_.as<float>();
    arrays_.gradient = gradient_.as<float>();
    arrays_.clip_norm = clip_norm;
    arrays_.mu = mu;
    if constexpr (!std::is_same_v<T, float>) {
      grow(rounded_, values.size() * sizeof(T), "an adapter's rounded parameters");
      arrays_.shadow = rounded_.as<T>();
      convert(arrays_.weights, arrays_.shadow, size_, stream());
    }
    if (mu > 0) {
      grow(start_, values.size_bytes(), "an adapter's parameters at the start");
      detail::copy(detail::Copy::on_device, start_.data(), weights_.data(), values.size_bytes(), stream());
      arrays_.start = start_.as<float>();
    }
    for (std::size_t i = 0; i < std::size(moments_); ++i) {
      if (i >= moments.size()) continue;
      grow(moments_[i], values.size_bytes(), "an optimizer's moments");
      if (moments[i]->empty())
        detail::set_zero(moments_[i].data(), values.size_bytes(), stream());
      else
        upload<float>(*moments[i], moments_[i].template as<float>(), stream());
    }
    grow(states_, sizeof(StepState) * static_cast<std::size_t>(steps + 1), "the state of steps");
    StepState state;
    state.loss_scale = default_loss_scaling<T>.initial;
    state.steps_done = steps_done;
    upload<StepState>(std::span<const StepState>(&state, 1), states_.as<StepState>(), stream());
    grow(losses_, sizeof(double) * static_cast<std::size_t>(steps), "the losses of steps");
    detail::set_zero(losses_.data(), sizeof(double) * static_cast<std::size_t>(steps), stream());
    grow(partials_, gradient_norm_workspace(StepSegments::whole(size_)), "a gradient's norm");
    steps_ = steps;
  }

  /// As operations read them.
  std::span<const T> parameters() const {
    if constexpr (std::is_same_v<T, float>)
      return {arrays_.weights, static_cast<std::size_t>(size_)};
    else
      return {arrays_.shadow, static_cast<std::size_t>(size_)};
  }

  /// Where operations add to.
  std::span<float> gradient() const { return {gradient_.as<float>(), static_cast<std::size_t>(size_)}; }

  /// Queues a step: a gradient of zeros, then `body()`, which only calls operations and ends with `update`, and may be
  /// called twice. As a graph where a step of as many rows and sequences has run before and memory need not grow in
  /// this one, and where the stream can be captured. \throws CudaError
  template <class Body>
  void run(Index step, Index rows, Index sequences, Body&& body) {
    const bool seen = rows <= largest_rows_ && sequences <= most_sequences_;
    largest_rows_ = std::max(largest_rows_, rows);
    most_sequences_ = std::max(most_sequences_, sequences);
    const auto whole = [&] {
      begin_step(step);
      body();
    };
    if (seen && run_.context().options.graphs && detail::can_capture(stream())) {
      try {
        const auto scope = run_.scope();  // a capture that is given up gives its memory back
        return graph_.run(stream(), whole);
      } catch (const detail::CaptureRefused&) {
        // Fewer sequences can need more memory: a language model has more rows of logits then. Nothing has run yet.
      }
    }
    whole();
  }

  /// The same for a step of several micro-batches, in parts that are not captured: `begin_step`, then each
  /// micro-batch, then `update`.
  void begin_step(Index step) {
    step_ = step;
    detail::set_zero(gradient_.data(), static_cast<std::size_t>(size_) * sizeof(float), stream());
    detail::set_zero(losses_.as<double>() + step, sizeof(double), stream());
    run_.send_losses_to(losses_.as<double>() + step, states_.as<StepState>());
  }

  void update(const AdamWStep& step) {
    with_norm([&](const StepSegments& whole, StepState* state) {
      adamw_step<T>(step, arrays_, moments_[0].template as<float>(), moments_[1].template as<float>(), whole, state,
                    stream());
    });
  }
  void update(const SgdStep& step) {
    with_norm([&](const StepSegments& whole, StepState* state) {
      sgd_step<T>(step, arrays_, moments_[0].template as<float>(), whole, state, stream());
    });
  }

  /// Waits, and brings back the parameters and, where asked for, the moments. One outcome for each step; steps that did
  /// not run have none of their own. \throws CudaError
  std::vector<StepOutcome> finish(std::span<float> values, std::span<std::vector<float>* const> moments,
                                  Index& steps_done) {
    run_.send_losses_to(nullptr, nullptr);
    download(weights_.as<float>(), values, stream());
    for (std::size_t i = 0; i < moments.size(); ++i) {
      moments[i]->resize(values.size());
      download(moments_[i].template as<float>(), std::span<float>(*moments[i]), stream());
    }
    std::vector<double> losses(static_cast<std::size_t>(steps_));
    std::vector<StepState> states(losses.size() + 1);
    download(losses_.as<double>(), std::span<double>(losses), stream());
    download(states_.as<StepState>(), std::span<StepState>(states), stream());
    steps_done = states[0].steps_done;
    std::vector<StepOutcome> outcomes(losses.size());
    for (std::size_t i = 0; i < losses.size(); ++i)
      outcomes[i] = {losses[i], states[i + 1].finite != 0, states[i + 1].loss_scale, states[i + 1].weights_finite != 0};
    return outcomes;
  }

 private:
  Stream stream() const { return run_.stream(); }

  void grow(DeviceBuffer& buffer, std::size_t bytes, const char* what) {
    if (buffer.size() < bytes) buffer = DeviceBuffer(run_.context().memory, bytes, what, stream());
  }

  template <class Step>
  void with_norm(Step&& step) {
    const StepSegments whole = StepSegments::whole(size_);
    auto* const state = states_.as<StepState>();
    gradient_norm<T>(arrays_, whole, state, partials_.bytes(), stream());
    step(whole, state);
    update_scale(default_loss_scaling<T>, whole, state, stream());
    record_step(state, state + 1 + step_, stream());
  }

  Runner<T>& run_;
  StepGraph graph_;
  Index size_ = 0;
  Index steps_ = 0;
  Index step_ = 0;
  Index largest_rows_ = 0;  ///< of the steps that have run
  Index most_sequences_ = 0;
  StepArrays<T> arrays_;
  DeviceBuffer weights_, gradient_, rounded_, start_, moments_[2], losses_, partials_;
  DeviceBuffer states_;  ///< the state now, then the state after each step
};

}  // namespace fedlora::cuda

#endif
