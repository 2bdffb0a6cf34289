// SPDX-License-Identifier: Apache-2.0
// make_predictor, for the translation units that instantiate it.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "fedlora/data/table_notes.hpp"
#include "fedlora/hf/adapter_layout.hpp"
#include "fedlora/hf/adapter_metadata.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/hf/task.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/lora/language_model.hpp"
#include "predict/predictor.hpp"

namespace fedlora::examples {

/// Refuses what a model or adapter with NaN, infinite or overflowing numbers gives.
inline void check_finite(double value, const Table& table, Index example) {
  const auto at = static_cast<std::size_t>(example);
  if (!std::isfinite(value))
    fail<DivergenceError>(
        table.source + ", line " + std::to_string(at < table.line.size() ? table.line[at] : example + 1),
        "a finite result (are there NaN or infinite numbers in the model or the adapter?)", std::to_string(value));
}

/// Where texts are cut: where the person says, else where the adapter's were, as far as the base has positions.
inline Index longest_text(const PredictorOptions& options, const ModelConfig& config) {
  const Index adapted = options.adapter_config ? options.adapter_config->context.max_tokens : 0;
  return options.max_tokens.value_or(std::min(adapted, config.max_positions));
}

/// Adds what a person should know of the encoded texts.
inline void note_cut_texts(const Dataset& data, Index max_tokens, std::vector<std::string>& notes) {
  if (std::string note = cut_note(data, max_tokens); !note.empty()) notes.push_back(std::move(note));
}

/// The adapter over the model, with what a person should be told; without one, the model's own head.
template <class Model>
auto adapter_for(const Model& model, const PredictorOptions& options, std::vector<std::string>& notes) {
  using T = typename Model::Scalar;
  return std::make_shared<const Adapter<T>>(
      options.adapter.empty() ? model.initial_adapter(0)
                              : load_peft<T>(std::filesystem::path(options.adapter), model.layout(), &notes));
}

/// What a head's outputs for one text say: the label with the largest, the number (several: all of them), or the labels
/// whose probability is above one half.
template <class T>
Json prediction_of(std::span<const T> outputs, const std::vector<std::string>& names, ProblemType type) {
  Json line = {{"logits", std::vector<T>(outputs.begin(), outputs.end())}};
  if (type == ProblemType::regression) {
    line["prediction"] = outputs.size() == 1 ? Json(outputs[0]) : line["logits"];
  } else if (type == ProblemType::multi_label) {
    Json labels = Json::array(), probabilities = Json::array();
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      probabilities.push_back(1 / (1 + std::exp(-outputs[i])));
      if (outputs[i] > T(0)) labels.push_back(names[i]);
    }
    line["labels"] = std::move(labels);
    line["probabilities"] = std::move(probabilities);
  } else {
    line["label"] = names[static_cast<std::size_t>(std::max_element(outputs.begin(), outputs.end()) - outputs.begin())];
  }
  return line;
}

template <class Arch, class B>
Predictor make_classifier(Pretrained<Arch, B> base, const PredictorOptions& options, LoraConfig lora) {
  using Model = SequenceClassifier<Arch, B>;
  using T = typename Model::Scalar;
  ClassifierOptions classifier;
  if (options.adapter_config) classifier = classifier_options_of(*options.adapter_config, base.config());
  classifier.max_tokens = longest_text(options, base.config());
  classifier.base_dropout = 0.0;
  if (!options.pooling.empty()) classifier.pooling = pooling_named(options.pooling).value_or(Arch::pooling);
  if (!options.problem.type.empty()) classifier.problem_type = problem_type_option(options.problem.type);
  const auto model = std::make_shared<const Model>(std::move(base), std::move(classifier), lora);
  if (options.adapter.empty() && !model->notes().empty())
    fail<ConfigError>(options.model, "a checkpoint with a classification head, or an adapter", model->notes().front());
  std::vector<std::string> notes = model->base().warnings;
  const auto adapter = adapter_for(*model, options, notes);
  const std::string trained = options.adapter.empty() ? options.model : options.adapter;
  const std::optional<bool> in_pairs =
      (options.adapter_config ? options.adapter_config->context : model->base().context).text_pairs;
  const auto predict = [model, adapter, trained, in_pairs, threads = options.threads](
                           const Table& table, Evaluation* evaluation, std::vector<std::string>& said) {
    if (std::string note = text_pairs_note(in_pairs, !table.text_pair.empty(), trained); !note.empty())
      said.push_back(std::move(note));
    const Dataset data = model->encode(table, threads);
    note_cut_texts(data, model->max_tokens(), said);
    const std::vector<T> logits = model->logits(*adapter, data, threads);
    const std::vector<std::string>& names = model->labels();
    std::vector<Json> lines;
    for (std::size_t i = 0; i < static_cast<std::size_t>(data.size()); ++i) {
      const std::span<const T> row(logits.data() + i * names.size(), names.size());
      for (const T value : row) check_finite(static_cast<double>(value), table, static_cast<Index>(i));
      lines.push_back(prediction_of(row, names, model->problem_type()));
    }
    if (evaluation != nullptr) *evaluation = model->evaluate(*adapter, data, threads);
    return lines;
  };
  return {model->labels(), model->problem_type(), std::move(notes), predict};
}

template <class Arch, class B>
Predictor make_language_model(Pretrained<Arch, B> base, const PredictorOptions& options, LoraConfig lora) {
  if constexpr (!Arch::causal) {
    fail<ConfigError>(options.model, "a causal model for next-token prediction", std::string(Arch::model_type));
  } else {
    using Model = LanguageModel<Arch, B>;
    const Index max_tokens = longest_text(options, base.config());
    const auto model = std::make_shared<const Model>(std::move(base), LanguageModelOptions{max_tokens, 0.0}, lora);
    std::vector<std::string> notes = model->base().warnings;
    const auto adapter = adapter_for(*model, options, notes);
    const auto predict = [model, adapter, threads = options.threads](const Table& table, Evaluation*,
                                                                     std::vector<std::string>& said) {
      const Dataset data = model->encode(table, threads);
      note_cut_texts(data, model->max_tokens(), said);
      std::vector<Json> lines;
      for (const auto& loss : model->losses(*adapter, data, threads)) {
        check_finite(loss.nll, table, static_cast<Index>(lines.size()));
        const Json mean = loss.tokens > 0 ? Json(loss.nll / static_cast<double>(loss.tokens)) : Json(nullptr);
        lines.push_back({{"nll", mean}, {"tokens", loss.tokens}});
      }
      return lines;
    };
    return {{}, {}, std::move(notes), predict};
  }
}

template <class Arch, class B>
Predictor make_predictor(Pretrained<Arch, B> base, const PredictorOptions& options) {
  LoraConfig lora;
  if (options.adapter_config)
    lora = options.adapter_config->lora;
  else
    lora.head_only = true;
  if (task_of(base, model_files(options.model), options.adapter_config, options.adapter) == TaskType::causal_lm)
    return make_language_model(std::move(base), options, std::move(lora));
  return make_classifier(std::move(base), options, std::move(lora));
}

}  // namespace fedlora::examples
