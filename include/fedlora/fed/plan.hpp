// SPDX-License-Identifier: Apache-2.0
// What a client does with a broadcast: how long it trains, in which steps, at which rates. And the order of its
// examples, which is a pure function, so that a twin of a run in another framework can follow it exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/fed/client.hpp"
#include "fedlora/fed/sampling.hpp"
#include "fedlora/optim/schedule.hpp"

namespace fedlora {

/// What the learning-rate schedule runs over.
enum class ScheduleOver {
  rounds,  ///< position: the round; constant within a round
  steps,   ///< position: the step, (round − 1) · S + step of rounds · S, where S is the client's steps per round
  local_steps,  ///< starts anew in every round
};

/// Local training. The defaults are one epoch of batches of eight, as plain as can be.
struct LocalPlan {
  Index epochs = 1;
  Index steps = 0;       ///< optimizer steps instead of epochs, when positive; examples are reshuffled every time round
  Index batch_size = 8;  ///< examples per optimizer step
  /// Micro-batches that a step is split into, to save memory, or to share a step among threads when there are more of
  /// them than clients. The gradient is the whole step's mean.
  Index accumulation = 1;
  double clip_norm = 0;  ///< global gradient norm to clip at, FedProx's term included; 0: no clipping
  Schedule schedule = {};
  ScheduleOver schedule_over = ScheduleOver::rounds;
  Index rounds = 0;  ///< rounds of the whole run; needed by schedules over rounds or steps that are not constant
  double mu = 0;     ///< FedProx (Li et al. 2020, arXiv 1812.06127): adds μ/2 ‖w − w_received‖² to the loss
  int threads = 0;   ///< workers; 0: one per hardware thread. Results do not depend on it
  bool keep_optimizer_state = false;  ///< moments live from round to round in a ClientStore instead of starting at zero

  /// \throws ConfigError naming the field.
  void check() const {
    const auto at_least = [](const char* field, Index minimum, Index got) {
      if (got < minimum)
        fail<ConfigError>(std::string("local plan, ") + field, "at least " + std::to_string(minimum),
                          std::to_string(got));
    };
    at_least("epochs", steps > 0 ? 0 : 1, epochs);
    at_least("steps", 0, steps);
    at_least("batch_size", 1, batch_size);
    at_least("accumulation", 1, accumulation);
    at_least("rounds", 0, rounds);
    at_least("threads", 0, threads);
    if (!(clip_norm >= 0) || !std::isfinite(clip_norm))
      fail<ConfigError>("local plan, clip_norm", "a norm of at least 0", std::to_string(clip_norm));
    if (!(mu >= 0) || !std::isfinite(mu))
      fail<ConfigError>("local plan, mu", "a number of at least 0", std::to_string(mu));
    schedule.check();
  }

  /// The schedule's factor at a step of a round (counted from 1) in which the client takes `local_steps` steps.
  double rate_factor(Index round, Index step, Index local_steps) const {
    if (schedule_over == ScheduleOver::local_steps) return schedule.factor(step, local_steps);
    if (schedule.shape == ScheduleShape::constant && schedule.warmup == 0) return 1.0;
    if (rounds < 1 || round < 1 || round > rounds)
      fail<ConfigError>("local plan, rounds", "the rounds of the whole run, for a schedule over rounds or steps",
                        std::to_string(rounds) + " in round " + std::to_string(round));
    if (schedule_over == ScheduleOver::rounds) return schedule.factor(round - 1, rounds);
    return schedule.factor((round - 1) * local_steps + step, rounds * local_steps);
  }
};

/// The examples of one optimizer step, micro-batch by micro-batch.
using StepExamples = std::vector<std::vector<Index>>;

/// How many optimizer steps a client with this many examples takes in a round.
inline Index local_steps(Index examples, const LocalPlan& plan) {
  if (plan.steps > 0) return plan.steps;
  return plan.epochs * ((examples + plan.batch_size - 1) / plan.batch_size);
}

/// The order in which a client visits its examples in a round. Every epoch e is shuffled with the key (seed,
/// shuffle_examples, round, client, e) and cut into batches of `batch_size`; the last, short batch is kept. A step's
/// batch is split into `accumulation` micro-batches of equal size (the last may be smaller, empty ones are left out).
inline std::vector<StepExamples> batch_plan(std::span<const Index> examples, Index client, std::uint64_t seed,
                                            Index round, const LocalPlan& plan) {
  plan.check();
  if (examples.empty())
    fail<ConfigError>("batch_plan, client " + std::to_string(client), "at least one example", "none");
  const Index total = local_steps(static_cast<Index>(examples.size()), plan);
  const Index micro_size = (plan.batch_size + plan.accumulation - 1) / plan.accumulation;
  std::vector<StepExamples> steps;
  steps.reserve(static_cast<std::size_t>(total));
  std::vector<Index> order;
  for (Index epoch = 0; static_cast<Index>(steps.size()) < total; ++epoch) {
    order.assign(examples.begin(), examples.end());
    RandomSequence random(derive_key(seed, Purpose::shuffle_examples, round, client, epoch));
    random.shuffle(order);
    const auto size = static_cast<Index>(order.size());
    for (Index begin = 0; begin < size && static_cast<Index>(steps.size()) < total; begin += plan.batch_size) {
      const Index end = std::min(size, begin + plan.batch_size);
      StepExamples step;
      for (Index micro = begin; micro < end; micro += micro_size)
        step.emplace_back(order.begin() + micro, order.begin() + std::min(end, micro + micro_size));
      steps.push_back(std::move(step));
    }
  }
  return steps;
}

/// The same for a client of a cohort.
template <class Model, class Optim>
std::vector<StepExamples> batch_plan(const Client<Model, Optim>& client, const Cohort<Client<Model, Optim>>& cohort,
                                     const LocalPlan& plan) {
  return batch_plan(client.examples, client.id, cohort.seed, cohort.round, plan);
}

}  // namespace fedlora
