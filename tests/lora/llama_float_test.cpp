// SPDX-License-Identifier: Apache-2.0
// Llama in float32 against transformers and peft in float64.
#include "golden_training.hpp"

namespace fedlora::tests {

TEST_CASE("Llama equals transformers and peft in float32") { check_family<Llama, float>("llama"); }

}  // namespace fedlora::tests
