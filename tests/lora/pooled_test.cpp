// SPDX-License-Identifier: Apache-2.0
// What a frozen base makes of a text, computed once: a head learns and is measured on it as on the texts themselves.
#include <doctest/doctest.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../errors.hpp"
#include "../nn/tiny.hpp"
#include "fedlora/lora/classifier.hpp"

namespace fedlora::tests {
namespace {

template <class Arch>
using FloatModel = SequenceClassifier<Arch, CpuBackend<float>>;

const LoraConfig head_alone{.head_only = true};

/// Loss and gradient of a step over the examples.
template <class Model>
std::pair<double, std::vector<float>> step_of(const Model& model, const Adapter<float>& adapter, const Dataset& data,
                                              const std::vector<Index>& examples) {
  typename Model::Workspace workspace(model.backend());
  std::vector<float> gradient(adapter.values().size(), 0.0f);
  const double loss =
      model.accumulate_gradient(workspace, data, examples, adapter.values(), gradient, 0.25, {.step = 3});
  return {loss, gradient};
}

}  // namespace

TEST_CASE_TEMPLATE("a head learns and is measured on what its base made of the texts", Arch, Bert, Llama) {
  for (const bool mean : {false, true}) {
    // The classifier's own dropout stays: it comes behind the base.
    const Json patch = {{"hidden_dropout_prob", 0.0},
                        {"attention_probs_dropout_prob", 0.0},
                        {"attention_dropout", 0.0},
                        {"classifier_dropout", 0.5}};
    const FloatModel<Arch> model(tiny_base<Arch, CpuBackend<float>>(1, patch),
                                 {.labels = {"a", "b", "c"}, .pooling = mean ? Pooling::mean : Arch::pooling},
                                 head_alone);
    std::vector<Index> lengths = {4, 1, 12, 2, 7, 9, 3, 3};
    lengths.resize(70, 5);  // a batch of 64, and one of the rest
    const Dataset data = tiny_data(lengths);
    Index batches = 0;
    const Dataset pooled = model.with_pooled(data, 1, [&] { ++batches; });
    CHECK(batches == 2);
    REQUIRE(pooled.pooled_width() == model.base().config().hidden_size);

    const auto adapter = random_adapter<float>(model.layout());
    const Evaluation expected = model.evaluate(adapter, data, 1), got = model.evaluate(adapter, pooled, 1);
    CHECK(got.loss == expected.loss);
    CHECK(got.confusion == expected.confusion);
    CHECK(model.logits(adapter, pooled, 1) == model.logits(adapter, data, 1));
    std::vector<Index> batch = all_of(data);
    batch.resize(64);
    CHECK(step_of(model, adapter, pooled, batch) == step_of(model, adapter, data, batch));

    const std::vector<Index> some = {66, 0, 3};  // another batch than the base saw them in
    const auto [loss, gradient] = step_of(model, adapter, data, some);
    const auto [loss_pooled, gradient_pooled] = step_of(model, adapter, pooled, some);
    CHECK(loss_pooled == doctest::Approx(loss).epsilon(1e-5));
    CHECK(difference(gradient_pooled, gradient) <= 1e-4);
    const Dataset part = subset(pooled, some);
    CHECK(step_of(model, adapter, part, all_of(part)).first == doctest::Approx(loss).epsilon(1e-5));
  }
}

TEST_CASE("a base is run every time where it does not make the same of a text every time") {
  const Dataset data = tiny_data({4, 1, 12});
  const ClassifierOptions still{.base_dropout = 0.0};
  const auto base = tiny_base<Bert, CpuBackend<float>>();
  const FloatModel<Bert> model(base, still, head_alone);
  const Dataset pooled = model.with_pooled(data, 1);
  CHECK_FALSE(pooled.pooled.empty());

  const FloatModel<Bert> drops(base, {.base_dropout = 0.1}, head_alone);
  const FloatModel<Bert> adapted(base, still, {.target_modules = {"value"}});
  const SequenceClassifier<Bert, CpuBackend<double>> precise(tiny_base<Bert>(), still, head_alone);
  CHECK(drops.with_pooled(data, 1).pooled.empty());
  CHECK(adapted.with_pooled(data, 1).pooled.empty());
  CHECK(precise.with_pooled(data, 1).pooled.empty());
  const FloatModel<Bert> another(base, still, head_alone), copy(model);
  const FloatModel<Bert> averages(base, {.pooling = Pooling::mean, .base_dropout = 0.0}, head_alone);
  const auto refuses = [&](const auto& other) {
    check_error<ConfigError>([&] { other.evaluate(other.initial_adapter(1), pooled, 1); },
                             {"pooled of a dataset", "own with_pooled()", "of another model"});
  };
  refuses(drops);
  refuses(adapted);
  refuses(precise);
  refuses(another);
  refuses(averages);
  check_error<ConfigError>(
      [&] { step_of(another, another.initial_adapter(1), subset(pooled, std::vector<Index>{1}), {0}); },
      {"of another model"});
  const auto adapter = model.initial_adapter(1);
  CHECK(copy.evaluate(adapter, pooled, 1).loss == model.evaluate(adapter, data, 1).loss);
  CHECK(another.with_pooled(pooled, 1).pooled_by != pooled.pooled_by);
  CHECK_FALSE(drops.with_pooled(pooled, 1).pooled_by);

  Dataset unknown = pooled;
  unknown.pooled_by.reset();
  check_error<ConfigError>([&] { model.evaluate(adapter, unknown, 1); }, {"no model vouches for"});

  Dataset other = pooled;
  const auto refuses_size = [&](std::size_t size, const char* where) {
    other.pooled.resize(size);
    check_error<ShapeError>([&] { model.evaluate(model.initial_adapter(1), other, 1); }, {where});
  };
  refuses_size(25, "pooled of a dataset");
  refuses_size(3, "[pooled of a batch] expected 24 numbers, got 3");
  CHECK_THROWS_AS(model.with_pooled(data, 1, [] { throw std::runtime_error("stop"); }), std::runtime_error);
}

}  // namespace fedlora::tests
