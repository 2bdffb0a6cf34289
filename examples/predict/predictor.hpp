// SPDX-License-Identifier: Apache-2.0
// A base with an adapter as a function from texts to predictions, whatever its family, precision and task.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "device.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/lora/evaluation.hpp"
#include "fedlora/lora/pretrained.hpp"
#include "problem_type.hpp"

namespace fedlora::examples {

struct PredictorOptions {
  std::string model, adapter;
  std::optional<PeftConfig> adapter_config;  ///< read from `adapter`, when that is not empty
  ProblemOptions problem;
  std::string pooling = "family";
  Index max_tokens = 0;
  Device device;
  int threads = 0;
};

struct Predictor {
  std::vector<std::string> labels;  ///< empty for a language model
  ProblemType problem_type = ProblemType::single_label;
  /// A JSON object per text; with `evaluation`, for a table with labels, also how good they are.
  std::function<std::vector<Json>(const Table&, Evaluation* evaluation)> predict;
};

/// What the model is for: the adapter's task_type says so, else config.json's architectures.
/// \throws ConfigError when neither does.
inline TaskType task_of(const PredictorOptions& options, const ModelConfig& config) {
  if (options.adapter_config && options.adapter_config->task) return *options.adapter_config->task;
  for (const std::string& name : config.architectures) {
    if (name.ends_with("ForSequenceClassification")) return TaskType::sequence_classification;
    if (name.ends_with("ForCausalLM")) return TaskType::causal_lm;
  }
  std::string names;
  for (const std::string& name : config.architectures) names += (names.empty() ? "" : ", ") + name;
  fail<ConfigError>(options.model + "/config.json, field architectures",
                    "a class that ends in ForSequenceClassification or ForCausalLM, or an adapter whose task_type says "
                    "what to predict",
                    names.empty() ? "none" : names);
}

/// \throws ConfigError when the model cannot do what it is for: no head, no output layer.
template <class Arch, class B>
Predictor make_predictor(Pretrained<Arch, B> base, const PredictorOptions& options);

}  // namespace fedlora::examples
