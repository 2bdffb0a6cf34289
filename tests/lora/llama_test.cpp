// SPDX-License-Identifier: Apache-2.0
// Llama in float64: against transformers and peft, and against central differences of its own loss.
#include "golden_training.hpp"
#include "gradients.hpp"

namespace fedlora::tests {

TEST_CASE("Llama equals transformers and peft in float64") { check_family<Llama, double>("llama"); }

TEST_CASE("Llama's gradients are the slopes of its loss") { check_all_gradients<Llama>(); }

TEST_CASE("Llama's backward pass stops early only where nothing is lost") { check_early_stop<Llama>(); }

}  // namespace fedlora::tests
