// SPDX-License-Identifier: Apache-2.0
// The gradient of Roberta's classifier against central differences.
#include "gradients.hpp"

namespace fedlora::tests {

TEST_CASE("Roberta's gradients are the slopes of its loss") { check_all_gradients<Roberta>(); }

TEST_CASE("Roberta's backward pass stops early only where nothing is lost") { check_early_stop<Roberta>(); }

}  // namespace fedlora::tests
