// SPDX-License-Identifier: Apache-2.0
// One client's adapter while it is trained on the device: parameters, gradient and moments stay there from the first
// step to the last, and a step asks nothing of the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/graph.cuh"
#include "fedlora/backend/cuda/idle.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/optimizer.cuh"
#include "fedlora/backend/cuda/optimizer_state.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"
#include "fedlora/backend/cuda/resources.cuh"
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
///   for each step:  trainee.run(step, rows, sequences, [&] { …forward, backward…; trainee.update(optimizer step); });
///   outcomes = trainee.finish(values, moments, steps_done);
///
/// `Half` is trained with a dynamic loss scale (LossScaling), which begins anew for each client, so that its bits do
/// not depend on what ran before; steps whose gradient overflows are skipped. Sums have a fixed order; two runs on one
/// device give the same bits, as graphs and without.
template <class T>
class Trainee {
 public:
  explicit Trainee(Runner<T>& run) : run_(run), resources_(std::move(run.resources_->trainee)) {
    if (resources_) return;
    resources_ = std::make_unique<TraineeResources>();
    run.context().tally.add(&Counts::trainees_made);
  }
  Trainee(const Trainee&) = delete;
  Trainee& operator=(const Trainee&) = delete;
  /// Leaves what it was made of to the runner's next one.
  ~Trainee() {
    resources_->graph.abandon();
    run_.resources_->trainee = std::move(resources_);
  }

  /// Whether a skipped step is the loss scale's affair, and not the end of training.
  static constexpr bool scales_loss = default_loss_scaling<T>.initial != 1.0;

  /// Brings a client's adapter and its optimizer's moments to the device (empty ones: none yet; `steps_done` is 0
  /// then), for at most `steps` steps. \throws CudaError
  void begin(std::span<const float> values, std::span<const std::vector<float>* const> moments, Index steps_done,
             Index steps, double clip_norm, double mu) {
    size_ = static_cast<Index>(values.size());
    if (std::exchange(resources_->size, size_) != size_) resources_->largest_rows = resources_->most_sequences = 0;
    grow(resources_->weights, values.size_bytes(), "an adapter's parameters");
    grow(resources_->gradient, values.size_bytes(), "an adapter's gradient");
    upload<float>(values, resources_->weights.as<float>(), stream());
    arrays_ = {};
    arrays_.weights = resources_->weights.as<float>();
    arrays_.gradient = resources_->gradient.as<float>();
    arrays_.clip_norm = clip_norm;
    arrays_.mu = mu;
    if constexpr (!std::is_same_v<T, float>) {
      grow(resources_->rounded, values.size() * sizeof(T), "an adapter's rounded parameters");
      arrays_.shadow = resources_->rounded.as<T>();
      convert(arrays_.weights, arrays_.shadow, size_, stream());
    }
    if (mu > 0) {
      grow(resources_->start, values.size_bytes(), "an adapter's parameters at the start");
      detail::copy(detail::Copy::on_device, resources_->start.data(), resources_->weights.data(), values.size_bytes(),
                   stream());
      arrays_.start = resources_->start.as<float>();
    }
    for (std::size_t i = 0; i < std::size(resources_->moments); ++i) {
      if (i >= moments.size()) continue;
      grow(resources_->moments[i], values.size_bytes(), "an optimizer's moments");
      if (moments[i]->empty())
        detail::set_zero(resources_->moments[i].data(), values.size_bytes(), stream());
      else
        upload<float>(*moments[i], resources_->moments[i].template as<float>(), stream());
    }
    grow(resources_->states, sizeof(StepState) * static_cast<std::size_t>(steps + 1), "the state of steps");
    StepState state;
    state.loss_scale = default_loss_scaling<T>.initial;
    state.steps_done = steps_done;
    upload<StepState>(std::span<const StepState>(&state, 1), resources_->states.as<StepState>(), stream());
    grow(resources_->losses, sizeof(double) * static_cast<std::size_t>(steps), "the losses of steps");
    detail::set_zero(resources_->losses.data(), sizeof(double) * static_cast<std::size_t>(steps), stream());
    grow(resources_->partials, gradient_norm_workspace(StepSegments::whole(size_)), "a gradient's norm");
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
  std::span<float> gradient() const { return {resources_->gradient.as<float>(), static_cast<std::size_t>(size_)}; }

  /// Captures that fail one after another before a runner tries no more: what a library refuses once it will mostly
  /// refuse again, and each try costs the host a step. A capture that succeeds begins the count anew, and so does
  /// CudaBackend::trim, with new runners.
  static constexpr int most_failures = 3;

  /// Queues a step: a gradient of zeros, then `body()`, which only calls operations and ends with `update`, and may be
  /// called twice. As a graph where a step of as many rows and sequences has run before and memory need not grow in
  /// this one, and where the stream can be captured. If the capture, or the launch of what was captured, fails with a
  /// CudaError, the step runs without; that is counted, and said once (Options::on_notice). Everything else that `body`
  /// throws comes through. \throws CudaError from the step that runs without, or where a graph failed and has run in
  /// part
  template <class Body>
  void run(Index step, Index rows, Index sequences, Body&& body) {
    const bool seen = rows <= resources_->largest_rows && sequences <= resources_->most_sequences;
    const auto whole = [&] {
      begin_step(step);
      body();
    };
    bool tried = false;
    std::optional<std::string> failure;
    if (seen && resources_->failures < most_failures && run_.context().options.graphs &&
        detail::can_capture(stream())) {
      tried = true;
      if (launched_as_graph(step, whole, failure)) return;
    }
    whole();
    resources_->largest_rows = std::max(resources_->largest_rows, rows);
    resources_->most_sequences = std::max(resources_->most_sequences, sequences);
    if (tried && !failure) run_.context().tally.add(&Counts::captures_refused);
    if (!failure) return;
    ++resources_->failures;
    run_.context().capture_failed(*failure);  // after the step: an error that is the step's own has come through
  }

  /// The same for a step of several micro-batches, in parts that are not captured: `begin_step`, then each
  /// micro-batch, then `update`.
  void begin_step(Index step) {
    step_ = step;
    detail::set_zero(resources_->gradient.data(), static_cast<std::size_t>(size_) * sizeof(float), stream());
    detail::set_zero(resources_->losses.as<double>() + step, sizeof(double), stream());
    run_.send_losses_to(resources_->losses.as<double>() + step, resources_->states.as<StepState>());
  }

  void update(const AdamWStep& step) {
    with_norm([&](const StepSegments& whole, StepState* state) {
      adamw_step<T>(step, arrays_, resources_->moments[0].template as<float>(),
                    resources_->moments[1].template as<float>(), whole, state, stream());
    });
  }
  void update(const SgdStep& step) {
    with_norm([&](const StepSegments& whole, StepState* state) {
      sgd_step<T>(step, arrays_, resources_->moments[0].template as<float>(), whole, state, stream());
    });
  }

  /// Waits, and brings back the parameters and, where asked for, the moments. One outcome for each step; steps that did
  /// not run have none of their own. \throws CudaError
  std::vector<StepOutcome> finish(std::span<float> values, std::span<std::vector<float>* const> moments,
                                  Index& steps_done) {
    run_.send_losses_to(nullptr, nullptr);
    download(resources_->weights.as<float>(), values, stream());
    for (std::size_t i = 0; i < moments.size(); ++i) {
      moments[i]->resize(values.size());
      download(resources_->moments[i].template as<float>(), std::span<float>(*moments[i]), stream());
    }
    std::vector<double> losses(static_cast<std::size_t>(steps_));
    std::vector<StepState> states(losses.size() + 1);
    download(resources_->losses.as<double>(), std::span<double>(losses), stream());
    download(resources_->states.as<StepState>(), std::span<StepState>(states), stream());
    steps_done = states[0].steps_done;
    std::vector<StepOutcome> outcomes(losses.size());
    for (std::size_t i = 0; i < losses.size(); ++i)
      outcomes[i] = {losses[i], states[i + 1].finite != 0, states[i + 1].loss_scale, states[i + 1].weights_finite != 0};
    return outcomes;
  }

 private:
  Stream stream() const { return run_.stream(); }

  /// Whether the step is in the stream as a graph. If not, nothing of it is, and it says why a capture failed; memory
  /// that must grow is no failure.
  template <class Step>
  bool launched_as_graph(Index step, Step&& whole, std::optional<std::string>& failure) {
    StepGraph& graph = resources_->graph;
    Tally& tally = run_.context().tally;
    const std::int64_t made = graph.instantiations();
    try {
      const auto scope = run_.scope();  // a capture that is given up gives its memory back
      graph.run(stream(), whole);
      tally.add(&Counts::graphs_launched);
      tally.add(&Counts::graphs_made, graph.instantiations() - made);
      resources_->failures = 0;
      return true;
    } catch (const detail::CaptureRefused&) {
      // Fewer sequences can need more memory: a language model has more rows of logits then.
    } catch (const detail::GraphLaunchFailed& error) {
      if (has_begun(step)) throw;
      failure = error.what();
    } catch (const CudaError& error) {
      failure = error.what();
    }
    return false;
  }

  /// Whether the stream has done anything of a step that a second run of the step would not do over: up to its loss
  /// all is written anew, and adapter and moments change after it. Waits. \throws CudaError if the device has failed
  bool has_begun(Index step) {
    double loss = 0;
    download(resources_->losses.template as<double>() + step, std::span(&loss, 1), stream());
    return loss != 0;
  }

  void grow(DeviceBuffer& buffer, std::size_t bytes, const char* what) {
    if (buffer.size() < bytes) buffer = DeviceBuffer(run_.context().memory, bytes, what, stream());
  }

  template <class Step>
  void with_norm(Step&& step) {
    const StepSegments whole = StepSegments::whole(size_);
    auto* const state = resources_->states.as<StepState>();
    gradient_norm<T>(arrays_, whole, state, resources_->partials.bytes(), stream());
    step(whole, state);
    update_scale(default_loss_scaling<T>, whole, state, stream());
    record_step(state, state + 1 + step_, stream());
  }

  Runner<T>& run_;
  std::unique_ptr<TraineeResources> resources_;
  Index size_ = 0;
  Index steps_ = 0;
  Index step_ = 0;
  StepArrays<T> arrays_;
};

}  // namespace fedlora::cuda

#endif
