// SPDX-License-Identifier: Apache-2.0
// Where an adapter's matrices and head stand over a base, told by the files of both, without a model to train.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "fedlora/hf/peft_config.hpp"
#include "fedlora/hf/task.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/lora/config.hpp"
#include "fedlora/lora/language_model.hpp"
#include "fedlora/lora/pretrained.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

/// The options of the classifier that `adapter` was trained in, as far as its files tell them, over a base of this
/// configuration.
inline ClassifierOptions classifier_options_of(const PeftConfig& adapter, const ModelConfig& config) {
  return {.labels = adapter_labels(adapter, config.id2label),
          .pooling = adapter.context.pooling,
          .max_tokens = std::min(adapter.context.max_tokens, config.max_positions),
          .problem_type = adapter.context.problem_type,
          .text_pairs = adapter.context.text_pairs};
}

/// The layout of `adapter` over `base`, as the model that it was trained in has it: labels, pooling and problem type of
/// its head are those that its metadata keeps, else the base's. `model` are the files that `base` was loaded from.
/// \throws ConfigError as `task_of` does, and as the model does that cannot carry such an adapter.
template <class Arch, class B>
std::shared_ptr<const AdapterLayout> adapter_layout(const Pretrained<Arch, B>& base, const FileSet& model,
                                                    const PeftConfig& adapter, const std::string& adapter_directory) {
  const TaskType task = task_of(base, model, adapter, adapter_directory);
  ClassifierOptions options = classifier_options_of(adapter, base.config());
  if constexpr (Arch::causal)
    if (task == TaskType::causal_lm)
      return LanguageModel<Arch, B>(base, {.max_tokens = options.max_tokens}, adapter.lora).layout();
  return SequenceClassifier<Arch, B>(base, std::move(options), adapter.lora).layout();
}

}  // namespace fedlora
