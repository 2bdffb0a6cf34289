// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "fedlora/io/json.hpp"
#include "fedlora/optim/adamw.hpp"
#include "fedlora/optim/clip.hpp"
#include "fedlora/optim/concepts.hpp"
#include "fedlora/optim/schedule.hpp"
#include "fedlora/optim/sgd.hpp"

using namespace fedlora;

static_assert(Optimizer<AdamW, float> && Optimizer<AdamW, double> && Optimizer<Sgd, float> && Optimizer<Sgd, double>);

namespace {

/// What torch 2 and transformers 5 computed; see tests/golden/make_optim_golden.py.
const Json& golden() {
  static const Json json = parse_json(map_file(FEDLORA_TEST_DIR "/golden/optim.json"));
  return json;
}

AdamW adamw_of(const Json& options) {
  AdamW o;
  o.lr = options.at("lr");
  o.beta1 = options.value("beta1", o.beta1);
  o.beta2 = options.value("beta2", o.beta2);
  o.eps = options.value("eps", o.eps);
  o.weight_decay = options.value("weight_decay", o.weight_decay);
  return o;
}

Sgd sgd_of(const Json& options) {
  Sgd o;
  o.lr = options.at("lr");
  o.momentum = options.value("momentum", o.momentum);
  o.dampening = options.value("dampening", o.dampening);
  o.weight_decay = options.value("weight_decay", o.weight_decay);
  o.nesterov = options.value("nesterov", o.nesterov);
  return o;
}

/// The largest difference to torch's parameters after any step, relative to the largest parameter.
template <class T, class O>
double worst_difference(const O& optimizer, const Json& expected) {
  const auto numbers = [](const Json& json) {
    std::vector<T> values;
    for (const Json& number : json) values.push_back(static_cast<T>(number.get<double>()));
    return values;
  };
  std::vector<T> w = numbers(golden().at("start"));
  typename O::template State<T> state;
  double worst = 0;
  for (std::size_t s = 0; s < expected.size(); ++s) {
    const std::vector<T> g = numbers(golden().at("gradients")[s]);
    optimizer.step(state, w, g, optimizer.lr * golden().at("rates")[s].get<double>());
    for (std::size_t i = 0; i < w.size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(w[i]) - expected[s][i].get<double>()));
  }
  CHECK(state.steps == static_cast<Index>(expected.size()));
  return worst;
}

template <class T>
double worst_difference(const Json& entry, const Json& expected) {
  return entry.at("optimizer") == "adamw" ? worst_difference<T>(adamw_of(entry.at("options")), expected)
                                          : worst_difference<T>(sgd_of(entry.at("options")), expected);
}

}  // namespace

TEST_CASE("AdamW and SGD follow torch step by step") {
  REQUIRE(golden().at("optimizers").size() == 8);
  for (const Json& entry : golden().at("optimizers")) {
    CAPTURE(entry.at("options").dump());
    CHECK(worst_difference<double>(entry, entry.at("float64")) < 2e-15);
    CHECK(worst_difference<float>(entry, entry.at("float32")) < 5e-7);
  }
}

TEST_CASE("the defaults are torch's") {
  const AdamW a;
  CHECK(a.lr == 1e-3);
  CHECK(a.beta1 == 0.9);
  CHECK(a.beta2 == 0.999);
  CHECK(a.eps == 1e-8);
  CHECK(a.weight_decay == 0.01);
  const Sgd s;
  CHECK(s.lr == 1e-3);
  CHECK(s.momentum == 0);
  CHECK(s.weight_decay == 0);
  CHECK_FALSE(s.nesterov);
}

TEST_CASE("a step over many numbers is the same as over each of them") {
  // Longer than the optimizer's blocks, and not a multiple of them.
  const std::size_t size = 2500;
  std::vector<float> w(size), g(size);
  for (std::size_t i = 0; i < size; ++i) {
    w[i] = std::sin(static_cast<float>(i));
    g[i] = std::cos(3.0f * static_cast<float>(i));
  }
  const AdamW optimizer{.lr = 0.1, .weight_decay = 0.2};
  auto together = w;
  AdamW::State<float> state;
  for (int s = 0; s < 3; ++s) optimizer.step(state, together, g, 0.1);
  for (std::size_t i = 0; i < size; ++i) {
    std::vector<float> one = {w[i]};
    AdamW::State<float> own;
    for (int s = 0; s < 3; ++s) optimizer.step(own, one, std::span(g).subspan(i, 1), 0.1);
    REQUIRE(std::abs(one[0] - together[i]) <= 2e-7f * std::abs(together[i]) + 1e-9f);
  }
}

TEST_CASE("hyper-parameters that make no sense and sizes that do not fit are refused") {
  CHECK_THROWS_AS((AdamW{.lr = -1}.check()), ConfigError);
  CHECK_THROWS_AS((AdamW{.lr = std::nan("")}.check()), ConfigError);
  CHECK_THROWS_AS((AdamW{.beta1 = 1.0}.check()), ConfigError);
  CHECK_THROWS_AS((AdamW{.beta2 = -0.1}.check()), ConfigError);
  CHECK_THROWS_AS((AdamW{.eps = -1}.check()), ConfigError);
  CHECK_THROWS_AS((AdamW{.weight_decay = INFINITY}.check()), ConfigError);
  CHECK_THROWS_AS((Sgd{.lr = INFINITY}.check()), ConfigError);
  CHECK_THROWS_AS((Sgd{.momentum = -0.5}.check()), ConfigError);
  CHECK_THROWS_AS((Sgd{.nesterov = true}.check()), ConfigError);
  CHECK_THROWS_AS((Sgd{.momentum = 0.9, .dampening = 0.1, .nesterov = true}.check()), ConfigError);
  CHECK_NOTHROW(AdamW{}.check());
  CHECK_NOTHROW((Sgd{.momentum = 0.9, .nesterov = true}.check()));

  std::vector<double> w(3), g(2), longer(4);
  AdamW::State<double> adam;
  CHECK_THROWS_AS(AdamW{}.step(adam, w, g, 0.1), ShapeError);
  adam = {};
  AdamW{}.step(adam, w, std::vector<double>(3), 0.1);
  CHECK_THROWS_AS(AdamW{}.step(adam, longer, longer, 0.1), ShapeError);
  Sgd::State<double> sgd;
  CHECK_THROWS_AS(Sgd{}.step(sgd, w, g, 0.1), ShapeError);
}

TEST_CASE("clipping is torch's") {
  for (const Json& entry : golden().at("clips")) {
    auto g = golden().at("gradients")[0].get<std::vector<double>>();
    const double norm = clip_global_norm(std::span(g), entry.at("max_norm").get<double>());
    CHECK(norm == doctest::Approx(entry.at("norm").get<double>()).epsilon(1e-14));
    const auto expected = entry.at("clipped").get<std::vector<double>>();
    for (std::size_t i = 0; i < g.size(); ++i) CHECK(std::abs(g[i] - expected[i]) < 1e-14);
  }
  std::vector<float> g = {3, 4};
  CHECK_THROWS_AS(clip_global_norm(std::span(g), 0.0), ConfigError);
}

TEST_CASE("the norm of many small numbers is not lost in rounding") {
  const std::vector<float> g(1'000'003, 1e-3f);
  CHECK(global_norm(std::span(g)) == doctest::Approx(1e-3f * std::sqrt(1'000'003.0)).epsilon(1e-12));
}

TEST_CASE("one number that is not finite is found wherever it stands") {
  for (const double bad : {std::nan(""), static_cast<double>(INFINITY), -static_cast<double>(INFINITY)})
    for (std::size_t i = 0; i < 19; ++i) {
      std::vector<double> values(19, std::numeric_limits<double>::max());
      REQUIRE(all_finite(std::span(values)));
      values[i] = bad;
      CHECK_FALSE(all_finite(std::span(values)));
    }
  CHECK(all_finite(std::span<const float>()));
}

TEST_CASE("schedules are transformers'") {
  REQUIRE(golden().at("schedules").size() == 9);
  for (const Json& entry : golden().at("schedules")) {
    CAPTURE(entry.dump());
    const Schedule schedule{.shape = schedule_shape(entry.at("shape").get<std::string>()),
                            .warmup = entry.at("warmup").get<double>()};
    const auto factors = entry.at("factors").get<std::vector<double>>();
    for (std::size_t i = 0; i < factors.size(); ++i)
      CHECK(schedule.factor(static_cast<Index>(i), entry.at("total").get<Index>()) ==
            doctest::Approx(factors[i]).epsilon(1e-14));
  }
}

TEST_CASE("schedules end at their floor and refuse positions and fractions that make no sense") {
  const Schedule linear{.shape = ScheduleShape::linear, .floor = 0.1},
      cosine{.shape = ScheduleShape::cosine, .floor = 0.1};
  CHECK(linear.factor(0, 10) == 1.0);
  CHECK(linear.factor(10, 10) == doctest::Approx(0.1));
  CHECK(cosine.factor(5, 10) == doctest::Approx(0.55));
  CHECK(cosine.factor(12, 10) == doctest::Approx(0.1));
  CHECK_THROWS_AS(linear.factor(-1, 10), ConfigError);
  CHECK_THROWS_AS(linear.factor(0, 0), ConfigError);
  CHECK_THROWS_AS((Schedule{.warmup = 1.0}.check()), ConfigError);
  CHECK_THROWS_AS((Schedule{.floor = 2.0}.check()), ConfigError);
  CHECK_THROWS_AS(schedule_shape("step"), ConfigError);
}
