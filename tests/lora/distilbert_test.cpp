// SPDX-License-Identifier: Apache-2.0
// DistilBERT in float64: against transformers and peft, and against central differences of its own loss.
#include "golden_training.hpp"
#include "gradients.hpp"

namespace fedlora::tests {

TEST_CASE("DistilBERT equals transformers and peft in float64") { check_family<DistilBert, double>("distilbert"); }

TEST_CASE("DistilBERT's gradients are the slopes of its loss") { check_all_gradients<DistilBert>(); }

TEST_CASE("DistilBERT's backward pass stops early only where nothing is lost") { check_early_stop<DistilBert>(); }

TEST_CASE("DistilBERT's hidden dropout acts where transformers has it") { check_dropout_places<DistilBert>(false); }

}  // namespace fedlora::tests
