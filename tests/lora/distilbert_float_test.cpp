// SPDX-License-Identifier: Apache-2.0
// DistilBERT in float32 against transformers and peft in float64.
#include "golden_training.hpp"

namespace fedlora::tests {

TEST_CASE("DistilBERT equals transformers and peft in float32") { check_family<DistilBert, float>("distilbert"); }

}  // namespace fedlora::tests
