// SPDX-License-Identifier: Apache-2.0
// RoBERTa in float32 against transformers and peft in float64.
#include "golden_training.hpp"

namespace fedlora::tests {

TEST_CASE("RoBERTa equals transformers and peft in float32") { check_family<Roberta, float>("roberta"); }

}  // namespace fedlora::tests
