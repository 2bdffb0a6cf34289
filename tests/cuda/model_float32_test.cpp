// SPDX-License-Identifier: Apache-2.0
// Models over the CUDA backend in float, multiplied as it is.
#include "cuda/model.hpp"

namespace fedlora::tests {

using Float32 = Precision<float, FloatMath::float32>;

template <class Arch>
Expected expected_of_classifier(Pooling pooling) {
  const SequenceClassifier<Arch, CpuBackend<double>> model(tiny_base<Arch>(), {.pooling = pooling}, everywhere);
  Adapter<double> adapter = adapter_for(model.layout());
  Pass pass = pass_of(model, adapter, texts());
  return {std::move(adapter), std::move(pass)};
}
template Expected expected_of_classifier<Bert>(Pooling);
template Expected expected_of_classifier<DistilBert>(Pooling);
template Expected expected_of_classifier<Roberta>(Pooling);
template Expected expected_of_classifier<Llama>(Pooling);

Expected expected_of_language_model() {
  const LanguageModel<Llama, CpuBackend<double>> model(tiny_base<Llama>(), {}, everywhere);
  Adapter<double> adapter = adapter_for(model.layout());
  Pass pass = pass_of(model, adapter, texts());
  return {std::move(adapter), std::move(pass)};
}

TEST_CASE("classifiers of every family compute what the CPU computes") { check_every_family<Float32>(); }

TEST_CASE("terms added to the base product, and by plain products, are the same terms") { check_every_path<Float32>(); }

TEST_CASE("a language model computes what the CPU computes") { check_language_model<Float32>(); }

TEST_CASE("an initial adapter is the CPU's, its head read from the device") {
  const SequenceClassifier<Bert, CpuBackend<float>> expected(tiny_base<Bert, CpuBackend<float>>(), {}, everywhere);
  const SequenceClassifier<Bert, CudaBackend<float>> model(tiny_base<Bert, CudaBackend<float>>(), {}, everywhere);
  const auto a = expected.initial_adapter(7);
  const auto b = model.initial_adapter(7);
  CHECK(std::ranges::equal(a.values(), b.values()));
}

TEST_CASE("a device that is not there is an error that says how many there are") {
  CHECK_THROWS_WITH_AS(CudaBackend<float>(CudaOptions{.device = 3}),
                       "[cuda device 3] expected one of 1, from 0, got no such device", CudaError);
}

}  // namespace fedlora::tests
