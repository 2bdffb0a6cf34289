// SPDX-License-Identifier: Apache-2.0
// What a model and an adapter are for, told by their files: one rule for everything that loads them.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "fedlora/core/error.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/hf/peft_config.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/lora/config.hpp"
#include "fedlora/lora/pretrained.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

/// The task of one of transformers' classes, if it is one of ours: BertForSequenceClassification, LlamaForCausalLM.
constexpr std::optional<TaskType> task_of_class(std::string_view name) {
  if (name.ends_with("ForSequenceClassification")) return TaskType::sequence_classification;
  if (name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel")) return TaskType::causal_lm;
  return std::nullopt;
}

/// The adapter's task_type says it, else auto_mapping (the class that PEFT saw, where task_type was not given), else
/// config.json's architectures, else, where those name nothing, a classification head among the checkpoint's tensors
/// (`has_head`). `causal` is the family's: an encoder has no next token.
/// \throws ConfigError naming the field that says something else, or saying what to do where nothing does.
inline TaskType task_of(const ModelConfig& config, const FileSet& model, bool causal, bool has_head,
                        const std::optional<PeftConfig>& adapter, const std::string& adapter_directory) {
  const auto checked = [&](TaskType task, const std::string& where, const std::string& got) {
    if (task == TaskType::causal_lm && !causal)
      fail<ConfigError>(
          where, "SEQ_CLS, or a causal base (" + model.name() + " is an encoder, which predicts no next token)", got);
    return task;
  };
  const std::string file = adapter_directory + "/adapter_config.json";
  if (adapter && adapter->task)
    return checked(*adapter->task, file + ", field task_type",
                   *adapter->task == TaskType::causal_lm ? "CAUSAL_LM" : "SEQ_CLS");
  if (adapter && !adapter->base_class.empty()) {
    const std::string where = file + ", field auto_mapping.base_model_class";
    const auto task = task_of_class(adapter->base_class);
    if (!task)
      fail<ConfigError>(where, "a class that ends in ForSequenceClassification or ForCausalLM",
                        detail::in_quotes(adapter->base_class));
    return checked(*task, where, detail::in_quotes(adapter->base_class));
  }
  const std::string where = model.path_of("config.json") + ", field architectures";
  std::string names;
  for (const std::string& name : config.architectures) {
    if (const auto task = task_of_class(name)) return checked(*task, where, detail::in_quotes(name));
    names += (names.empty() ? "" : ", ") + name;
  }
  if (names.empty() && has_head) return TaskType::sequence_classification;
  fail<ConfigError>(
      where,
      std::string("a class that ends in ForSequenceClassification or ForCausalLM, or ") +
          (adapter ? "task_type SEQ_CLS or CAUSAL_LM in " + file : "an adapter whose task_type says what to predict"),
      names.empty() ? "none" : names);
}

/// The same for a base that is loaded from `model`.
template <class Arch, class B>
TaskType task_of(const Pretrained<Arch, B>& base, const FileSet& model, const std::optional<PeftConfig>& adapter,
                 const std::string& adapter_directory) {
  const bool has_head = base.head.contains(Arch::head(base.config()).back().name + ".weight");
  return task_of(base.config(), model, Arch::causal, has_head, adapter, adapter_directory);
}

}  // namespace fedlora
