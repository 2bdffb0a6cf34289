// SPDX-License-Identifier: Apache-2.0
// Whole models over the CUDA backend, run on the host, against the same models over the CPU's in float64: losses,
// gradients with every dropout on, logits, by either path of the low-rank terms. A file for each type includes this.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "../nn/tiny.hpp"
#include "fedlora/backend/cuda.cuh"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/lora/language_model.hpp"

namespace fedlora::tests {

using cuda::FloatMath;
using cuda::LowRankPath;

/// A type of elements, a way to multiply them, and what rounding may cost.
template <class T_, FloatMath Math>
struct Precision {
  using T = T_;
  static constexpr FloatMath math = Math;
  static constexpr double logits = std::is_same_v<T, Bf16>   ? 4e-2
                                   : std::is_same_v<T, Half> ? 4e-3
                                   : Math == FloatMath::tf32 ? 4e-3
                                                             : 1e-5;
  static constexpr double gradient = 3 * logits;
};

inline const LoraConfig everywhere{.rank = 3, .alpha = 5, .dropout = 0.25, .target_modules = {"all-linear"}};

/// A pass of a model in type S, converted to double.
struct Pass {
  double loss = 0;
  std::vector<double> gradient, logits;
  Evaluation evaluation;
};

template <class Model>
Pass pass_of(const Model& model, const Adapter<double>& adapter, const Dataset& data) {
  using S = typename Model::Scalar;
  const std::vector<S> parameters(adapter.values().begin(), adapter.values().end());
  Adapter<S> converted(model.layout());
  std::ranges::copy(parameters, converted.values().begin());
  typename Model::Workspace workspace(model.backend());
  std::vector<S> gradient(parameters.size(), S(0));
  Pass pass;
  pass.loss = model.accumulate_gradient(workspace, data, all_of(data), parameters, gradient, 0.25, {5, 2, 3, 1, 0});
  const double again = model.accumulate_gradient(workspace, data, all_of(data), parameters, gradient, 0.25, {5, 2, 3, 1, 0});
  CHECK(again == pass.loss);
  pass.gradient.assign(gradient.begin(), gradient.end());  // twice the gradient: it is added to
  for (double& value : pass.gradient) value /= 2;
  if constexpr (requires { model.labels(); }) {
    const auto logits = model.logits(converted, data, 1);
    pass.logits.assign(logits.begin(), logits.end());
  } else {
    const auto logits = model.logits(converted, std::span(data.tokens).first(static_cast<std::size_t>(data.length(0))));
    pass.logits.assign(logits.begin(), logits.end());
  }
  pass.evaluation = model.evaluate(converted, data, 1);
  return pass;
}

/// An adapter whose numbers float holds exactly.
inline Adapter<double> adapter_for(const std::shared_ptr<const AdapterLayout>& layout) {
  Adapter<double> adapter = random_adapter<double>(layout, 7, 0.1);
  for (double& value : adapter.values()) value = static_cast<double>(static_cast<float>(value));
  return adapter;
}

template <class P>
void compare(const Pass& got, const Pass& expected) {
  CHECK(difference(got.logits, expected.logits) <= P::logits);
  CHECK(std::abs(got.loss - expected.loss) <= P::logits * (1 + std::abs(expected.loss)));
  CHECK(difference(got.gradient, expected.gradient) <= P::gradient);
  CHECK(std::abs(got.evaluation.loss - expected.evaluation.loss) <= P::logits * (1 + std::abs(expected.evaluation.loss)));
}

inline Dataset texts() { return tiny_data({4, 1, 7, 2, 11}); }

/// What the CPU computes in float64, and for which adapter.
struct Expected {
  Adapter<double> adapter;
  Pass pass;
};
/// Compiled once, in model_float32_test.cpp.
template <class Arch>
Expected expected_of_classifier(Pooling pooling);
Expected expected_of_language_model();

template <class Arch, class P>
void check_classifier(const CudaOptions& options, Pooling pooling) {
  using B = CudaBackend<typename P::T>;
  const Expected expected = expected_of_classifier<Arch>(pooling);
  const SequenceClassifier<Arch, B> model(tiny_base<Arch, B>(1, Json::object(), {}, B(options)), {.pooling = pooling},
                                          everywhere);
  compare<P>(pass_of(model, expected.adapter, texts()), expected.pass);
  model.backend().context()->memory.check();
}

/// One with an encoder's blocks, one with a decoder's.
template <class P>
void check_two_families() {
  check_classifier<Bert, P>({.math = P::math}, Pooling::first_token);
  check_classifier<Llama, P>({.math = P::math}, Pooling::last_token);
}

template <class P>
void check_every_family() {
  check_classifier<Bert, P>({.math = P::math}, Pooling::first_token);
  check_classifier<Bert, P>({.math = P::math}, Pooling::mean);
  check_classifier<DistilBert, P>({.math = P::math}, Pooling::first_token);
  check_classifier<Roberta, P>({.math = P::math}, Pooling::first_token);
  check_classifier<Llama, P>({.math = P::math}, Pooling::last_token);
}

template <class P>
void check_every_path() {
  check_classifier<Bert, P>({.math = P::math, .slot_bytes = 0}, Pooling::first_token);
  check_classifier<Bert, P>({.math = P::math, .low_rank = LowRankPath::plain}, Pooling::first_token);
  check_classifier<Llama, P>({.math = P::math, .low_rank = LowRankPath::plain}, Pooling::last_token);
}

template <class P>
void check_language_model() {
  using B = CudaBackend<typename P::T>;
  const Expected expected = expected_of_language_model();
  const LanguageModel<Llama, B> model(tiny_base<Llama, B>(1, Json::object(), {}, B({.math = P::math})), {}, everywhere);
  compare<P>(pass_of(model, expected.adapter, texts()), expected.pass);
  model.backend().context()->memory.check();
}

}  // namespace fedlora::tests
