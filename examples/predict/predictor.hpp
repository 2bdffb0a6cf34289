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
  std::string pooling;              ///< empty: the adapter's, else the family's
  std::optional<Index> max_tokens;  ///< absent: the adapter's, else the model's own limit
  Device device;
  int threads = 0;
};

struct Predictor {
  std::vector<std::string> labels;  ///< of the head's rows; empty for a language model
  ProblemType problem_type = ProblemType::single_label;
  std::vector<std::string> notes;  ///< what a person should be told
  /// A JSON object per text; with `evaluation`, for a table with labels, also how good they are. Notes of the texts,
  /// such as that some were cut, are added to `notes`.
  std::function<std::vector<Json>(const Table&, Evaluation* evaluation, std::vector<std::string>& notes)> predict;
};

/// \throws ConfigError when the model cannot do what it is for: no head, no output layer.
template <class Arch, class B>
Predictor make_predictor(Pretrained<Arch, B> base, const PredictorOptions& options);

}  // namespace fedlora::examples
