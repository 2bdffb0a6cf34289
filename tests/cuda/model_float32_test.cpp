// SPDX-License-Identifier: Apache-2.0
// Models over the CUDA backend in float, multiplied as it is.
#include "cuda/model.hpp"

namespace fedlora::tests {

using P = Precision<float, FloatMath::float32>;

TEST_CASE("classifiers of every family compute what the CPU computes") { check_every_family<P>(); }

TEST_CASE("terms added to the base product, and by plain products, are the same terms") { check_every_path<P>(); }

TEST_CASE("a language model computes what the CPU computes") { check_language_model<P>(); }

TEST_CASE("an initial adapter is the CPU's, its head read from the device") {
  const SequenceClassifier<Bert, CpuBackend<float>> expected(tiny_base<Bert, CpuBackend<float>>(), {}, everywhere);
  const SequenceClassifier<Bert, CudaBackend<float>> model(tiny_base<Bert, CudaBackend<float>>(), {}, everywhere);
  const auto a = expected.initial_adapter(7);
  const auto b = model.initial_adapter(7);
  CHECK(std::ranges::equal(a.values(), b.values()));
}

TEST_CASE("a device that is not there is an error that says how many there are") {
  CHECK_THROWS_WITH_AS(CudaBackend<float>(CudaOptions{.device = 3}), "[cuda device 3] expected one of 1, from 0, got no such device",
                       CudaError);
}

}  // namespace fedlora::tests
