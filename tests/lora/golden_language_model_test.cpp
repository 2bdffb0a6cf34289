// SPDX-License-Identifier: Apache-2.0
// Llama as a language model against transformers and peft.
#include "fedlora/lora/language_model.hpp"
#include "golden_training.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE("next-token training equals transformers and peft", T, double, float) {
  using B = CpuBackend<T>;
  const Golden golden("llama");
  check_training(golden, "lm", LanguageModel<Llama, B>(golden.base<Llama, B>(), {}, golden.lora("lm")));
}

}  // namespace fedlora::tests
