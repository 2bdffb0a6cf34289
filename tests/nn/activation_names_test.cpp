// SPDX-License-Identifier: Apache-2.0
// Every name of transformers' ACT2FN: the values and slopes that torch has for it, or a refusal.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "errors.hpp"
#include "fedlora/backend/cpu.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora::tests {
namespace {

Activation activation_called(const std::string& name) {
  return detail::read_activation(Json{{"hidden_act", name}}, "hidden_act", "config.json", "gelu");
}

double largest_difference(const std::vector<double>& got, const std::vector<double>& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(got[i] - expected[i]) / std::max(1.0, std::abs(expected[i]));
    worst = error <= worst ? worst : error;  // a NaN stays
  }
  return worst;
}

}  // namespace

TEST_CASE("functions have the names, the values and the slopes that they have in transformers") {
  const Json golden = parse_json(map_file(FEDLORA_TEST_DIR "/golden/activations.json"));
  const auto points = golden.at("x").get<std::vector<double>>();
  const auto count = static_cast<Index>(points.size());
  CpuBackend<double>::Runner run;
  std::size_t known = 0;
  for (const auto& [key, expected] : golden.at("functions").items()) {
    const std::string name = key;  // clang 14 does not capture structured bindings
    CAPTURE(name);
    const Activation activation = activation_called(name);
    std::vector<double> value(points.size()), slope(points.size(), 1.0);
    const MatrixView<const double> x(points.data(), 1, count);
    run.activation_forward(activation, x, nullptr, {value.data(), 1, count});
    run.activation_backward(activation, x, nullptr, {slope.data(), 1, count});
    const double bound = name == "gelu_fast" ? 1e-11 : 1e-14;  // it has √(2/π) to ten digits
    CHECK(largest_difference(value, expected.at("value").get<std::vector<double>>()) <= bound);
    CHECK(largest_difference(slope, expected.at("slope").get<std::vector<double>>()) <= bound);
    ++known;
  }
  CHECK(known == std::size(detail::activation_names));
  CHECK(activation_called("gelu") != activation_called("gelu_new"));
}

TEST_CASE("functions with trained parameters are refused with that reason, others with the names there are") {
  const Json golden = parse_json(map_file(FEDLORA_TEST_DIR "/golden/activations.json"));
  for (const Json& name : golden.at("trained"))
    check_error<ConfigError>([&] { activation_called(name.get<std::string>()); },
                             {"config.json, field hidden_act", "trained parameters of its own"});
  check_error<ConfigError>([] { activation_called("GELU"); }, {"gelu, gelu_python, ", "got 'GELU'"});
  check_error<FormatError>([] { detail::read_activation(Json{{"a", 1}}, "a", "config.json", "gelu"); }, {"a string"});
  CHECK(detail::read_activation(Json::object(), "a", "config.json", "silu") == Activation::silu);
}

}  // namespace fedlora::tests
