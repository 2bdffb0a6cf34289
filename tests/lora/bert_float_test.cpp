// SPDX-License-Identifier: Apache-2.0
// BERT in float32 against transformers and peft in float64.
#include "golden_training.hpp"

namespace fedlora::tests {

TEST_CASE("BERT equals transformers and peft in float32") { check_family<Bert, float>("bert"); }

}  // namespace fedlora::tests
