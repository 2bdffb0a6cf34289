// SPDX-License-Identifier: Apache-2.0
// The gradient of Bert's classifier against central differences.
#include "gradients.hpp"

namespace fedlora::tests {

TEST_CASE("Bert's gradients are the slopes of its loss") { check_all_gradients<Bert>(); }

TEST_CASE("Bert's backward pass stops early only where nothing is lost") { check_early_stop<Bert>(); }

}  // namespace fedlora::tests
