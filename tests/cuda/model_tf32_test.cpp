// SPDX-License-Identifier: Apache-2.0
// Models over the CUDA backend in float, multiplied as tf32.
#include "cuda/model.hpp"

namespace fedlora::tests {

using Tf32 = Precision<float, FloatMath::tf32>;

// The other families: model_float32_test.cpp and model_bf16_test.cpp.
TEST_CASE("an encoder and a decoder compute what the CPU computes") { check_two_families<Tf32>(); }

TEST_CASE("terms added to the base product, and by plain products, are the same terms") { check_every_path<Tf32>(); }

TEST_CASE("a language model computes what the CPU computes") { check_language_model<Tf32>(); }

}  // namespace fedlora::tests
