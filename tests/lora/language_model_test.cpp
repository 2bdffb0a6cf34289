// SPDX-License-Identifier: Apache-2.0
// Next-token models: losses against logits, gradients against slopes, chunks against one by one.
#include "fedlora/lora/language_model.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "../errors.hpp"
#include "../nn/tiny.hpp"
#include "fedlora/testing/gradient_check.hpp"

namespace fedlora::tests {
namespace {

using Model = LanguageModel<Llama, CpuBackend<double>>;

const LoraConfig everywhere{.rank = 2, .alpha = 3, .dropout = 0.25, .target_modules = {"all-linear"}};

/// Σ -log softmax of the next token, its count and the hits, from the model's own logits.
Model::SequenceLoss loss_of(const Model& model, const Adapter<double>& adapter, std::span<const std::int32_t> tokens) {
  const std::vector<double> logits = model.logits(adapter, tokens);
  Model::SequenceLoss loss;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    const double* row = logits.data() + i * tiny_vocabulary;
    double sum = 0;
    for (std::int32_t j = 0; j < tiny_vocabulary; ++j) sum += std::exp(row[j]);
    loss.nll += std::log(sum) - row[tokens[i + 1]];
    loss.right += std::max_element(row, row + tiny_vocabulary) - row == tokens[i + 1] ? 1 : 0;
    ++loss.tokens;
  }
  return loss;
}

std::span<const std::int32_t> tokens_of(const Dataset& data, Index i) {
  return std::span(data.tokens)
      .subspan(static_cast<std::size_t>(data.offsets[static_cast<std::size_t>(i)]),
               static_cast<std::size_t>(data.length(i)));
}

}  // namespace

TEST_CASE("a language model's gradients are the slopes of its loss") {
  const Model model(tiny_base<Llama>(), {}, everywhere);
  const Dataset data = tiny_data({4, 1, 7, 2});
  const auto adapter = random_adapter<double>(model.layout());
  const auto report = testing::check_model_gradient(model, data, all_of(data), adapter.values(), {5, 2, 3, 1, 0},
                                                    {.step = 2e-6, .every = 2});
  CHECK_MESSAGE(report.within(2e-7), report.text());
  CHECK(model.loss_count(data, all_of(data)) == 3 + 0 + 6 + 1);
}

TEST_CASE("losses are those of the logits, whatever the batch and the threads") {
  std::vector<Index> lengths;
  for (Index i = 0; i < 90; ++i) lengths.push_back(1 + (i * 5) % 12);  // more rows than one chunk of logits
  const Dataset data = tiny_data(lengths);
  const Model model(tiny_base<Llama>(), {.base_dropout = 0.0}, everywhere);
  const auto adapter = random_adapter<double>(model.layout());
  const auto losses = model.losses(adapter, data, 1);
  double sum = 0;
  Index tokens = 0, right = 0;
  for (Index i = 0; i < data.size(); ++i) {
    const auto expected = loss_of(model, adapter, tokens_of(data, i));
    const auto& got = losses[static_cast<std::size_t>(i)];
    CHECK(got.nll == doctest::Approx(expected.nll).epsilon(1e-12));
    CHECK(got.tokens == expected.tokens);
    CHECK(got.right == expected.right);
    sum += expected.nll;
    tokens += expected.tokens;
    right += expected.right;
  }
  const Evaluation one = model.evaluate(adapter, data, 1);
  CHECK(one.examples == tokens);
  CHECK(one.loss == doctest::Approx(sum / static_cast<double>(tokens)).epsilon(1e-12));
  CHECK(one.accuracy == doctest::Approx(static_cast<double>(right) / static_cast<double>(tokens)));
  CHECK(model.evaluate(adapter, data, 3).loss == one.loss);

  LoraConfig quiet = everywhere;
  quiet.dropout = 0;
  const Model trained(tiny_base<Llama>(), {.base_dropout = 0.0}, quiet);
  Model::Workspace workspace(trained.backend());
  std::vector<double> together(adapter.values().size(), 0.0), singly(adapter.values().size(), 0.0);
  const double loss = trained.accumulate_gradient(workspace, data, all_of(data), adapter.values(), together, 0.5, {});
  CHECK(loss == doctest::Approx(sum).epsilon(1e-12));
  for (Index i = 0; i < data.size(); ++i)
    trained.accumulate_gradient(workspace, data, {&i, 1}, adapter.values(), singly, 0.5, {});
  CHECK(difference(together, singly) <= 1e-12);
}

TEST_CASE("no token sees what comes after it") {
  const Model model(tiny_base<Llama>(), {}, everywhere);
  const auto adapter = random_adapter<double>(model.layout());
  const std::vector<std::int32_t> tokens = {1, 5, 2, 9, 4, 3}, changed = {1, 5, 2, 9, 7, 0};
  const auto a = model.logits(adapter, tokens), b = model.logits(adapter, changed);
  for (std::size_t i = 0; i < 4 * tiny_vocabulary; ++i) CHECK(a[i] == b[i]);
  CHECK(a[4 * tiny_vocabulary] != b[4 * tiny_vocabulary]);
}

TEST_CASE("a sequence of one token predicts nothing and costs nothing") {
  const Model model(tiny_base<Llama>(), {}, everywhere);
  const auto adapter = random_adapter<double>(model.layout());
  const Dataset data = tiny_data({1});
  CHECK(model.losses(adapter, data, 1)[0].tokens == 0);
  CHECK(model.losses(adapter, data, 1)[0].nll == 0);
  Model::Workspace workspace(model.backend());
  std::vector<double> gradient(adapter.values().size(), 0.0);
  CHECK(model.accumulate_gradient(workspace, data, all_of(data), adapter.values(), gradient, 1, {}) == 0);
  for (const double value : gradient) CHECK(value == 0);
}

TEST_CASE("rotary frequencies are stretched as config.json asks") {
  const auto logits = [](const Json& patch) {
    const Model model(tiny_base<Llama>(1, patch), {}, everywhere);
    return model.logits(random_adapter<double>(model.layout()), std::vector<std::int32_t>{1, 5, 2, 9, 4, 3});
  };
  const auto plain = logits(Json::object());
  // Linear scaling by 1 is none; by 2 it is something else; theta may stand in either place.
  CHECK(logits({{"rope_scaling", {{"type", "linear"}, {"factor", 1.0}}}}) == plain);
  CHECK(logits({{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}) != plain);
  CHECK(logits({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 20.0}}}, {"rope_theta", 1e4}}) == plain);
  CHECK(logits({{"rope_theta", 1e4}}) != plain);
  const auto llama3 = [&](double original) {
    return logits({{"rope_scaling",
                    {{"rope_type", "llama3"},
                     {"factor", 2.0},
                     {"low_freq_factor", 1.0},
                     {"high_freq_factor", 4.0},
                     {"original_max_position_embeddings", original}}}});
  };
  CHECK(llama3(1e6) == plain);  // every wavelength is short beside the context
  CHECK(llama3(1e-3) == logits({{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}));  // every one is long
  // Between: of the two frequencies 1 and theta^-1/2, with wavelengths 6.28 (short: kept) and 28.1, the second becomes
  // (1 - s) f / 2 + s f with s = (40 / 28.1 - 1) / (4 - 1). Another theta gives just that.
  const double pi = 3.14159265358979323846;
  const double f = std::pow(20.0, -0.5);
  const double smooth = (40 * f / (2 * pi) - 1) / 3;
  const double stretched = (1 - smooth) * f / 2 + smooth * f;
  CHECK(difference(llama3(40.0), logits({{"rope_theta", 1 / (stretched * stretched)}})) <= 1e-12);
  CHECK(llama3(40.0) != plain);
}

TEST_CASE("a base without an output layer is refused") {
  auto base = tiny_base<Llama>();
  base.lm_head = {};
  check_error<ConfigError>([&] { Model(base, {}, everywhere); }, {"tiny", "lm_head.weight", "neither"});
  check_error<ConfigError>([] { Model(tiny_base<Llama>(), {.max_tokens = 99}, everywhere); }, {"max_tokens", "99"});
}

}  // namespace fedlora::tests
