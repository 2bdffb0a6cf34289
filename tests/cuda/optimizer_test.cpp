// SPDX-License-Identifier: Apache-2.0
// Optimizer steps on the host, against the formulas in float64 and against the CPU's steps in float.
#include "fedlora/backend/cuda/optimizer.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <span>
#include <vector>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"
#include "fedlora/optim/adamw.hpp"
#include "fedlora/optim/clip.hpp"
#include "fedlora/optim/sgd.hpp"

namespace fedlora::tests {
namespace {

using cuda::LossScaling;
using cuda::StepSegment;
using cuda::StepSegments;
using cuda::StepState;
using cuda::Stream;

/// One kind of optimizer: how to run it on the device, on the CPU in float, and by the formula in double.
struct AdamWCase {
  cuda::AdamWParameters parameters;

  template <class T>
  void run(const cuda::StepArrays<T>& arrays, float* first, float* second, const StepSegments& segments,
           StepState* states, Stream stream) const {
    cuda::adamw_step(parameters, arrays, first, second, segments, states, stream);
  }

  using OnCpu = AdamW;
  OnCpu on_cpu() const {
    return {parameters.lr, parameters.beta1, parameters.beta2, parameters.eps, parameters.weight_decay};
  }

  /// Kingma and Ba 2015, algorithm 1, with the decay of Loshchilov and Hutter 2019, algorithm 2.
  void formula(double lr, Index t, double g, double& w, double& m, double& v) const {
    w -= lr * parameters.weight_decay * w;
    m = parameters.beta1 * m + (1 - parameters.beta1) * g;
    v = parameters.beta2 * v + (1 - parameters.beta2) * g * g;
    const double m_hat = m / (1 - std::pow(parameters.beta1, static_cast<double>(t)));
    const double v_hat = v / (1 - std::pow(parameters.beta2, static_cast<double>(t)));
    w -= lr * m_hat / (std::sqrt(v_hat) + parameters.eps);
  }
};

struct SgdCase {
  cuda::SgdParameters parameters;

  template <class T>
  void run(const cuda::StepArrays<T>& arrays, float* first, float*, const StepSegments& segments, StepState* states,
           Stream stream) const {
    cuda::sgd_step(parameters, arrays, parameters.momentum > 0 ? first : nullptr, segments, states, stream);
  }

  using OnCpu = Sgd;
  OnCpu on_cpu() const {
    return {parameters.lr, parameters.momentum, parameters.dampening, parameters.weight_decay, parameters.nesterov};
  }

  void formula(double lr, Index t, double g, double& w, double& u, double&) const {
    g += parameters.weight_decay * w;
    u = t == 1 ? g : parameters.momentum * u + (1 - parameters.dampening) * g;
    if (parameters.momentum == 0) u = g;
    w -= lr * (parameters.nesterov ? g + parameters.momentum * u : u);
  }
};

/// Flat arrays on the device. Moments begin as NaN, which must not be read.
template <class T>
struct Arrays {
  DeviceMatrix<float> weights, gradient, start, first, second;
  DeviceMatrix<T> shadow;

  Arrays(const Values& weights_, const Values& start_, Rows kind)
      : weights(weights_, kind),
        gradient(1, weights_.cols, kind),
        start(start_, kind),
        first(1, weights_.cols, kind),
        second(1, weights_.cols, kind),
        shadow(1, weights_.cols, kind) {}

  bool same_bits(const Arrays& other) const {
    return weights.same_bits(other.weights) && first.same_bits(other.first) && second.same_bits(other.second) &&
           shadow.same_bits(other.shadow);
  }
  bool intact() const {
    return weights.intact() && gradient.intact() && start.intact() && first.intact() && second.intact() &&
           shadow.intact();
  }
};

struct Settings {
  double mu = 0.0;
  double clip_norm = 0.0;
  LossScaling scaling = LossScaling::fixed();
};

/// One step of the segments, with gradients that are `gradient` times each one's loss scale.
template <class T, class Optimizer>
void device_step(const Optimizer& optimizer, const Settings& settings, Arrays<T>& arrays, const StepSegments& segments,
                 std::vector<StepState>& states, Stream stream) {
  cuda::StepArrays<T> views;
  views.weights = arrays.weights.view().data;
  views.gradient = arrays.gradient.view().data;
  views.shadow = arrays.shadow.view().data;
  views.start = settings.mu > 0 ? arrays.start.view().data : nullptr;
  views.mu = settings.mu;
  views.clip_norm = settings.clip_norm;
  Workspace workspace(cuda::gradient_norm_workspace(segments));
  cuda::gradient_norm(views, segments, states.data(), workspace.bytes(), stream);
  CHECK(workspace.intact());
  optimizer.run(views, arrays.first.view().data, arrays.second.view().data, segments, states.data(), stream);
  cuda::update_scale(settings.scaling, segments, states.data(), stream);
}

/// What a client's steps ought to lead to.
template <class Optimizer>
struct Reference {
  std::vector<double> w, first, second;  // by the formula, in double
  std::vector<float> float_w;            // by the CPU, in float
  typename Optimizer::OnCpu::template State<float> float_state;
  double norm = 0;
  Index steps = 0;

  explicit Reference(const Values& weights, Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      w.push_back(weights(0, i));
      float_w.push_back(static_cast<float>(weights(0, i)));
    }
    first.assign(w.size(), 0.0);
    second.assign(w.size(), 0.0);
  }

  void step(const Optimizer& optimizer, const Settings& settings, const Values& gradient, const Values& start,
            Index begin, double rate) {
    ++steps;
    std::vector<double> g(w.size());
    std::vector<float> float_g(w.size());
    double squares = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const Index at = begin + static_cast<Index>(i);
      g[i] = gradient(0, at) + settings.mu * (w[i] - start(0, at));
      float_g[i] = static_cast<float>(gradient(0, at));
      if (settings.mu > 0)
        float_g[i] += static_cast<float>(settings.mu) * (float_w[i] - static_cast<float>(start(0, at)));
      squares += g[i] * g[i];
    }
    norm = std::sqrt(squares);
    const double lr = optimizer.parameters.lr * rate;
    const double clip = settings.clip_norm > 0 ? std::min(1.0, settings.clip_norm / (norm + 1e-6)) : 1.0;
    for (std::size_t i = 0; i < w.size(); ++i) optimizer.formula(lr, steps, g[i] * clip, w[i], first[i], second[i]);
    if (settings.clip_norm > 0) clip_global_norm(std::span<float>(float_g), settings.clip_norm);
    optimizer.on_cpu().step(float_state, float_w, float_g, lr);
  }
};

/// Largest difference over the largest entry.
template <class A>
double difference(const Values& got, Index begin, const std::vector<A>& expected) {
  double worst = 0, size = 1e-30;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double there = static_cast<double>(expected[i]);
    const double here = std::abs(got(0, begin + static_cast<Index>(i)) - there);
    worst = here <= worst ? worst : here;  // not a number stays
    size = std::max(size, std::abs(there));
  }
  return worst / size;
}

/// Several steps of clients with `sizes` elements in one set of arrays: against the references, against each alone bit
/// by bit, and in several orders of blocks. In the third step the second client's gradient is not finite, and in the
/// fourth the first client takes no part.
template <class T, class Optimizer>
void check_steps(const Optimizer& optimizer, const Settings& settings, const std::vector<Index>& sizes, Rows kind) {
  constexpr int steps = 5;
  Index total = 5;  // elements before, between and after the segments belong to nobody
  std::vector<Index> begins;
  for (const Index size : sizes) {
    begins.push_back(total);
    total += size + static_cast<Index>(begins.size() % 3);
  }
  const std::size_t clients = sizes.size();
  const Values weights = random_in<float>(1, total, 1), start = random_in<float>(1, total, 2);
  std::vector<Values> gradients;
  for (int s = 0; s < steps; ++s)
    gradients.push_back(random_in<float>(1, total, 10 + static_cast<std::uint64_t>(s), 0.3));
  StepState begin_state;
  begin_state.loss_scale = settings.scaling.initial;
  const auto rate_of = [](std::size_t client, int s) {
    return 1.0 / static_cast<double>(1 + s) + 0.1 * static_cast<double>(client);
  };
  const auto is_broken = [&](std::size_t client, int s) { return s == 2 && client == 1; };
  const auto takes_part = [&](std::size_t client, int s) { return clients == 1 || s != 3 || client != 0; };
  const auto fill = [&](Arrays<T>& arrays, Index to, std::size_t client, int s, double scale) {
    for (Index i = 0; i < sizes[client]; ++i)
      arrays.gradient.view()(0, to + i) =
          static_cast<float>(gradients[static_cast<std::size_t>(s)](0, begins[client] + i) * scale);
    if (is_broken(client, s)) arrays.gradient.view()(0, to + sizes[client] / 2) = s % 2 == 0 ? infinity : nan_value;
  };

  const auto together = [&](std::uint64_t seed, Arrays<T>& arrays, std::vector<StepState>& states, auto&& after) {
    for (int s = 0; s < steps; ++s) {
      std::vector<StepSegment> table;
      Index longest = 0;
      for (std::size_t client = clients; client-- > 0;) {
        if (!takes_part(client, s)) continue;
        const auto slot = static_cast<std::int32_t>(clients - 1 - client);
        fill(arrays, begins[client], client, s, states[static_cast<std::size_t>(slot)].loss_scale);
        table.push_back({begins[client], begins[client] + sizes[client], rate_of(client, s), slot});
        longest = std::max(longest, sizes[client]);
      }
      const StepSegments segments{table.data(), static_cast<Index>(table.size()), longest};
      device_step(optimizer, settings, arrays, segments, states, Stream{seed + static_cast<std::uint64_t>(s)});
      after(s);
    }
  };

  std::vector<Reference<Optimizer>> references;
  for (std::size_t client = 0; client < clients; ++client)
    references.emplace_back(weights, begins[client], begins[client] + sizes[client]);
  Arrays<T> arrays(weights, start, kind);
  std::vector<StepState> states(clients, begin_state);
  together(1, arrays, states, [&](int s) {
    for (std::size_t client = 0; client < clients; ++client) {
      CAPTURE(client);
      CAPTURE(s);
      auto& reference = references[client];
      const StepState& state = states[clients - 1 - client];
      const bool stepped = takes_part(client, s) && !is_broken(client, s);
      if (stepped) {
        reference.step(optimizer, settings, gradients[static_cast<std::size_t>(s)], start, begins[client],
                       rate_of(client, s));
        CHECK(std::abs(state.norm - reference.norm) <= 1e-6 * reference.norm);
      }
      CHECK(state.steps_done == reference.steps);
      CHECK(state.finite == (is_broken(client, s) ? 0 : 1));
      CHECK(state.weights_finite == 1);
      CHECK(difference(arrays.weights.values(), begins[client], reference.float_w) <= 1e-6);
      CHECK(difference(arrays.weights.values(), begins[client], reference.w) <= 1e-6);
    }
  });
  CHECK(arrays.intact());
  for (std::size_t client = 0; client < clients; ++client) {
    CAPTURE(client);
    const bool broken = client == 1;
    CHECK(states[clients - 1 - client].skipped == (broken ? 1 : 0));
    const auto& reference = references[client];
    if (optimizer.on_cpu().lr == 0 || sizes[client] == 0) continue;
    if constexpr (std::is_same_v<Optimizer, AdamWCase>) {
      CHECK(difference(arrays.first.values(), begins[client], reference.first) <= 2e-6);
      CHECK(difference(arrays.second.values(), begins[client], reference.second) <= 2e-6);
    } else if (optimizer.parameters.momentum > 0) {
      CHECK(difference(arrays.first.values(), begins[client], reference.first) <= 2e-6);
    }
    for (Index i = 0; i < sizes[client]; ++i) {
      const T rounded(arrays.weights.in()(0, begins[client] + i));
      CHECK(static_cast<float>(arrays.shadow.in()(0, begins[client] + i)) == static_cast<float>(rounded));
    }
  }
  std::vector<bool> owned(static_cast<std::size_t>(total), false);
  for (std::size_t client = 0; client < clients; ++client)
    for (Index i = 0; i < sizes[client]; ++i) owned[static_cast<std::size_t>(begins[client] + i)] = true;
  for (Index i = 0; i < total; ++i) {
    if (owned[static_cast<std::size_t>(i)]) continue;
    CHECK(static_cast<double>(arrays.weights.in()(0, i)) == weights(0, i));
    CHECK(std::isnan(static_cast<float>(arrays.shadow.in()(0, i))));
    CHECK(std::isnan(arrays.first.in()(0, i)));
  }

  Arrays<T> again(weights, start, kind);
  std::vector<StepState> again_states(clients, begin_state);
  together(100, again, again_states, [](int) {});
  CHECK(again.same_bits(arrays));

  for (std::size_t client = 0; client < clients; ++client) {
    CAPTURE(client);
    const Index size = sizes[client];
    Values own_weights(1, size), own_start(1, size);
    for (Index i = 0; i < size; ++i) {
      own_weights(0, i) = weights(0, begins[client] + i);
      own_start(0, i) = start(0, begins[client] + i);
    }
    Arrays<T> alone(own_weights, own_start, Rows::aligned);
    std::vector<StepState> own(1, begin_state);
    for (int s = 0; s < steps; ++s) {
      if (!takes_part(client, s)) continue;
      fill(alone, 0, client, s, own[0].loss_scale);
      const StepSegment segment{0, size, rate_of(client, s), 0};
      device_step(optimizer, settings, alone, {&segment, 1, size}, own, Stream{7});
    }
    const StepState& state = states[clients - 1 - client];
    CHECK(own[0].norm == state.norm);
    CHECK(own[0].loss_scale == state.loss_scale);
    bool same = true;
    for (Index i = 0; i < size; ++i)
      same = same && alone.weights.in()(0, i) == arrays.weights.in()(0, begins[client] + i);
    CHECK(same);
  }
}

const std::vector<Index> odd_sizes = {1, 31, 33, 0, 61, 32, 2061};

}  // namespace

TEST_CASE_TEMPLATE("AdamW steps", T, float, Bf16, Half) {
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    check_steps<T>(AdamWCase{{.lr = 0.02}}, {}, odd_sizes, kind);
    check_steps<T>(AdamWCase{{.lr = 0.02, .weight_decay = 0.3}}, {.mu = 0.5, .clip_norm = 0.7}, odd_sizes, kind);
    check_steps<T>(AdamWCase{{.lr = 0.05, .beta1 = 0.3, .beta2 = 0.95, .eps = 1e-3}},
                   {.mu = 0.01, .clip_norm = 1e6, .scaling = {.initial = 1024.0}}, odd_sizes, kind);
  }
}

TEST_CASE_TEMPLATE("SGD steps", T, float, Bf16, Half) {
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    check_steps<T>(SgdCase{{.lr = 0.1}}, {}, odd_sizes, kind);
    check_steps<T>(SgdCase{{.lr = 0.1, .momentum = 0.9, .dampening = 0.2, .weight_decay = 0.1}},
                   {.clip_norm = 0.3, .scaling = {}}, odd_sizes, kind);
    check_steps<T>(SgdCase{{.lr = 0.1, .momentum = 0.8, .weight_decay = 0.1, .nesterov = true}}, {.mu = 1.5}, odd_sizes,
                   kind);
  }
}

TEST_CASE("clients of many blocks") {
  // With a larger eps: among so many gradients some are nearly zero, and m / √v says only which sign rounding has left.
  check_steps<Bf16>(AdamWCase{{.lr = 0.02, .eps = 1e-3, .weight_decay = 0.1}}, {.mu = 0.1, .clip_norm = 5.0},
                    {100003, 5003}, Rows::aligned);
  check_steps<Half>(SgdCase{{.lr = 0.02, .momentum = 0.9}}, {.clip_norm = 5.0, .scaling = {}}, {20011, 33}, Rows::odd);
  // As long as a block, but not where blocks begin.
  check_steps<float>(SgdCase{{.lr = 0.1, .momentum = 0.9}}, {}, {3, 2048}, Rows::aligned);
}

TEST_CASE("a sum of squares that takes every block more than once") {
  // More than 512 tiles of 4096 elements.
  constexpr Index size = 513 * 4096 + 5;
  DeviceMatrix<float> gradient(Values(1, size), Rows::aligned);
  double squares = 0;
  for (Index i = 0; i < size; ++i) {
    gradient.view()(0, i) = static_cast<float>(i % 977) - 488.0f;
    squares += static_cast<double>(gradient.in()(0, i)) * static_cast<double>(gradient.in()(0, i));
  }
  cuda::StepArrays<float> arrays;
  arrays.gradient = gradient.view().data;
  StepState state;
  const auto segments = StepSegments::whole(size);
  Workspace workspace(cuda::gradient_norm_workspace(segments));
  CHECK(workspace.bytes().size() == 512 * sizeof(double));
  cuda::gradient_norm(arrays, segments, &state, workspace.bytes(), Stream{});
  CHECK(std::abs(state.norm - std::sqrt(squares)) <= 1e-13 * state.norm);
  CHECK(state.finite == 1);
  gradient.view()(0, size - 1) = -infinity;
  cuda::gradient_norm(arrays, segments, &state, workspace.bytes(), Stream{});
  CHECK(state.finite == 0);
}

TEST_CASE("one client needs no table, and no shadow") {
  const Values weights = random_in<float>(1, 61, 1), gradient = random_in<float>(1, 61, 2);
  DeviceMatrix<float> with(weights, Rows::aligned), without(weights, Rows::aligned), g(gradient, Rows::aligned);
  DeviceMatrix<float> m(2, 61, Rows::aligned), v(2, 61, Rows::aligned);
  StepState states[2];
  const StepSegment segment{0, 61, 1.0, 1};
  int number = 0;
  for (const StepSegments& segments : {StepSegments::whole(61), StepSegments{&segment, 1, 61}}) {
    cuda::StepArrays<Half> arrays;
    arrays.weights = number == 0 ? without.view().data : with.view().data;
    arrays.gradient = g.view().data;
    Workspace workspace(cuda::gradient_norm_workspace(segments));
    cuda::gradient_norm(arrays, segments, states, workspace.bytes(), Stream{});
    cuda::adamw_step({.lr = 0.1}, arrays, m.view().row(number), v.view().row(number), segments, states, Stream{});
    cuda::update_scale(LossScaling::fixed(), segments, states, Stream{});
    CHECK(states[number].steps_done == 1);
    ++number;
  }
  CHECK(with.same_bits(without));
  CHECK(error_of(with.values(), weights) > 1e-3);
  // Nobody takes a step.
  cuda::gradient_norm(cuda::StepArrays<Half>{}, {&segment, 0, 0}, states, {}, Stream{});
  cuda::update_scale(LossScaling::fixed(), {&segment, 0, 0}, states, Stream{});
  CHECK(states[1].steps_done == 1);
}

TEST_CASE("a gradient that is not finite changes nothing but the state") {
  for (const float bad : {nan_value, infinity, -infinity}) {
    Arrays<Half> arrays(random_in<float>(1, 61, 1), random_in<float>(1, 61, 2), Rows::aligned);
    const Arrays<Half> before(random_in<float>(1, 61, 1), random_in<float>(1, 61, 2), Rows::aligned);
    for (Index i = 0; i < 61; ++i) arrays.gradient.view()(0, i) = i == 60 ? bad : 1.0f;
    std::vector<StepState> states(1);
    const auto segments = StepSegments::whole(61);
    device_step(AdamWCase{}, {.clip_norm = 1.0}, arrays, segments, states, Stream{});
    device_step(SgdCase{{.momentum = 0.9}}, {.mu = 1.0}, arrays, segments, states, Stream{});
    CHECK(arrays.same_bits(before));
    CHECK(states[0].steps_done == 0);
    CHECK(states[0].skipped == 2);
    CHECK(states[0].loss_scale == 1.0);
    CHECK_FALSE(std::isfinite(states[0].norm));
  }
}

TEST_CASE("the loss scale grows and falls as torch.amp.GradScaler's") {
  constexpr LossScaling scaling{1024.0, 2.0, 0.5, 3};
  std::vector<StepState> states(1);
  states[0].loss_scale = scaling.initial;
  const auto segments = StepSegments::whole(8);
  // What torch.amp.GradScaler(init_scale=1024, growth_interval=3) has after each of these steps.
  const bool finite[] = {true, true, true, true, false, true, true, true, false, false, true};
  const double expected[] = {1024, 1024, 2048, 2048, 1024, 1024, 1024, 2048, 1024, 512, 512};
  std::int64_t done = 0;
  for (std::size_t s = 0; s < std::size(finite); ++s) {
    CAPTURE(s);
    states[0].finite = finite[s] ? 1 : 0;
    cuda::update_scale(scaling, segments, states.data(), Stream{});
    done += finite[s] ? 1 : 0;
    CHECK(states[0].loss_scale == expected[s]);
    CHECK(states[0].steps_done == done);
    CHECK(states[0].skipped == static_cast<std::int64_t>(s) + 1 - done);
  }
  // Never beyond what a float holds.
  states[0].loss_scale = 0x1p127;
  states[0].good_steps = 2;
  states[0].finite = 1;
  cuda::update_scale(scaling, segments, states.data(), Stream{});
  CHECK(states[0].loss_scale == 0x1p127);
  CHECK(states[0].good_steps == 0);

  CHECK(cuda::default_loss_scaling<Half>.initial == 4096.0);
  CHECK(cuda::default_loss_scaling<Half>.growth == 2.0);
  CHECK(cuda::default_loss_scaling<Half>.backoff == 0.5);
  CHECK(cuda::default_loss_scaling<Half>.interval == 2000);
  CHECK(cuda::default_loss_scaling<Bf16>.initial == 1.0);
  CHECK(cuda::default_loss_scaling<float>.growth == 1.0);
}

TEST_CASE("bias corrections are right after many steps") {
  for (const std::int64_t t : {1, 2, 3, 10, 999, 12345, 1000000, 1000000000}) {
    CAPTURE(t);
    for (const double beta : {0.9, 0.95, 0.999, 0.99999, 0.0}) {
      const double expected = 1.0 - std::pow(beta, static_cast<double>(t));
      CHECK(std::abs((1.0 - cuda::detail::integer_power(beta, t)) - expected) <= 1e-12 * expected);
    }
  }
}

TEST_CASE("weights that stop being finite are noticed, and stay so") {
  Arrays<Bf16> arrays(random_in<float>(1, 33, 1), random_in<float>(1, 33, 2), Rows::aligned);
  std::vector<StepState> states(1);
  const auto segments = StepSegments::whole(33);
  for (Index i = 0; i < 33; ++i) arrays.gradient.view()(0, i) = i == 32 ? 1e38f : 0.0f;
  device_step(SgdCase{{.lr = 0.5}}, {}, arrays, segments, states, Stream{});
  CHECK(states[0].weights_finite == 1);
  device_step(SgdCase{{.lr = 1e3}}, {}, arrays, segments, states, Stream{});
  CHECK(states[0].weights_finite == 0);
  arrays.weights.view()(0, 32) = 1.0f;
  device_step(SgdCase{{.lr = 0.5}}, {}, arrays, segments, states, Stream{});
  CHECK(states[0].weights_finite == 0);
}

TEST_CASE("arguments of steps that do not fit are refused") {
  StepState state;
  StepSegment segment;
  cuda::StepArrays<float> arrays;
  const StepSegments segments = StepSegments::whole(8);
  std::vector<std::byte> bytes(64);
  check_error<ShapeError>([&] { cuda::gradient_norm(arrays, segments, &state, {}, Stream{}); },
                          {"cuda::gradient_norm", "8 bytes of workspace", "got 0"});
  check_error<ShapeError>(
      [&] {
        cuda::update_scale({}, {nullptr, 2, 8}, &state, Stream{});
      },
      {"cuda::update_scale", "a table of 0 to 65535 segments", "no table of 2"});
  check_error<ShapeError>(
      [&] {
        cuda::sgd_step({}, arrays, nullptr, {&segment, 65536, 8}, &state, Stream{});
      },
      {"cuda::sgd_step", "one of 65536"});
  arrays.mu = 0.1;
  check_error<ShapeError>([&] { cuda::gradient_norm(arrays, segments, &state, bytes, Stream{}); },
                          {"the weights at the start", "got none"});
  check_error<ShapeError>([&] { cuda::adamw_step({}, arrays, nullptr, nullptr, segments, &state, Stream{}); },
                          {"cuda::adamw_step", "the weights at the start"});
}

}  // namespace fedlora::tests
