// SPDX-License-Identifier: Apache-2.0
// Models over the CUDA backend in bfloat16.
#include "cuda/model.hpp"

namespace fedlora::tests {

using P = Precision<Bf16, FloatMath::tf32>;

TEST_CASE("classifiers of every family compute what the CPU computes") { check_every_family<P>(); }

TEST_CASE("terms added to the base product, and by plain products, are the same terms") { check_every_path<P>(); }

TEST_CASE("a language model computes what the CPU computes") { check_language_model<P>(); }

}  // namespace fedlora::tests
