// SPDX-License-Identifier: Apache-2.0
// The gradient of DistilBert's classifier against central differences.
#include "gradients.hpp"

namespace fedlora::tests {

TEST_CASE("DistilBert's gradients are the slopes of its loss") { check_all_gradients<DistilBert>(); }

TEST_CASE("DistilBert's backward pass stops early only where nothing is lost") { check_early_stop<DistilBert>(); }

}  // namespace fedlora::tests
