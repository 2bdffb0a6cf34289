// SPDX-License-Identifier: Apache-2.0
// The gradient of Llama's classifier against central differences.
#include "gradients.hpp"

namespace fedlora::tests {

TEST_CASE("Llama's gradients are the slopes of its loss") { check_all_gradients<Llama>(); }

TEST_CASE("Llama's backward pass stops early only where nothing is lost") { check_early_stop<Llama>(); }

}  // namespace fedlora::tests
