// SPDX-License-Identifier: Apache-2.0
// BERT in float64: against transformers and peft, and against central differences of its own loss.
#include "golden_training.hpp"
#include "gradients.hpp"

namespace fedlora::tests {

TEST_CASE("BERT equals transformers and peft in float64") { check_family<Bert, double>("bert"); }

TEST_CASE("BERT's gradients are the slopes of its loss") { check_all_gradients<Bert>(); }

TEST_CASE("BERT's backward pass stops early only where nothing is lost") { check_early_stop<Bert>(); }

TEST_CASE("BERT's hidden dropout acts where transformers has it") { check_dropout_places<Bert>(true); }

}  // namespace fedlora::tests
