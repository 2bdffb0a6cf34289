// SPDX-License-Identifier: Apache-2.0
// RoBERTa in float64: against transformers and peft, and against central differences of its own loss.
#include "golden_training.hpp"
#include "gradients.hpp"

namespace fedlora::tests {

TEST_CASE("RoBERTa equals transformers and peft in float64") { check_family<Roberta, double>("roberta"); }

TEST_CASE("RoBERTa's gradients are the slopes of its loss") { check_all_gradients<Roberta>(); }

TEST_CASE("RoBERTa's backward pass stops early only where nothing is lost") { check_early_stop<Roberta>(); }

TEST_CASE("RoBERTa's hidden dropout acts where transformers has it") { check_dropout_places<Roberta>(true); }

}  // namespace fedlora::tests
