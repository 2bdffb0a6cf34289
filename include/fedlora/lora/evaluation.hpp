// SPDX-License-Identifier: Apache-2.0
// How good a model is on a data set: what it counted and measured there, and its measures by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fedlora/backend/operations.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/lora/measures.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

/// One evaluation. Language models have `examples` (predicted tokens), `loss` and token `accuracy` alone.
struct Evaluation {
  static constexpr double undefined = std::numeric_limits<double>::quiet_NaN();

  ProblemType problem_type = ProblemType::single_label;
  Index examples = 0;
  /// The mean: of cross-entropy (nats), of squared error, or of binary cross-entropy over examples and labels (nats).
  double loss = 0;
  double accuracy = 0;  ///< share of examples whose label, or whole set of labels, is predicted; NaN for numbers
  /// The mean of F1 over the classes that occur or are predicted; for sets, over all labels. NaN for numbers.
  double macro_f1 = undefined;
  std::vector<LabelCounts> label_counts;  ///< by label
  std::vector<std::vector<Index>>
      confusion;               ///< [true label][predicted label]; for sets, and beyond 1,024 labels, empty
  double pearson = undefined;  ///< of numbers and targets; the mean over outputs where there are several
  double spearman = undefined;
  double mae = undefined;  ///< mean absolute error
};

/// A measure that programs know by name.
struct Metric {
  ProblemType problem_type = ProblemType::single_label;
  std::string_view name;        ///< in files and on command lines
  std::string_view title;       ///< what a person reads
  bool usual = false;           ///< shown unasked
  std::string_view definition;  ///< one line
};

/// All of them; those of a problem type in the order in which they are shown.
inline constexpr Metric all_metrics[] = {
    {ProblemType::single_label, "accuracy", "accuracy", true, "share of texts whose largest logit is their label's"},
    {ProblemType::single_label, "loss", "loss", true, "mean cross-entropy in nats"},
    {ProblemType::single_label, "macro_f1", "macro F1", true,
     "mean of F1 over the labels that occur or are predicted, as scikit-learn's f1_score(average=\"macro\")"},
    {ProblemType::single_label, "f1", "F1", false,
     "F1 of one label, the positive one: 2 TP / (2 TP + FP + FN); 0 where it neither occurs nor is predicted"},
    {ProblemType::single_label, "matthews", "Matthews", false,
     "Matthews correlation, of any number of labels; 0 where all texts or all predictions have one label"},
    {ProblemType::regression, "pearson", "Pearson", true,
     "Pearson correlation; undefined where all predictions, or all targets, are the same"},
    {ProblemType::regression, "spearman", "Spearman", true,
     "Spearman rank correlation, equal numbers with their mean rank; undefined as there"},
    {ProblemType::regression, "mse", "MSE", true, "mean squared error, which is the loss"},
    {ProblemType::regression, "mae", "MAE", false, "mean absolute error"},
    {ProblemType::multi_label, "micro_f1", "micro F1", true, "F1 over all decisions about a label taken together"},
    {ProblemType::multi_label, "loss", "loss", true, "mean binary cross-entropy over texts and labels in nats"},
    {ProblemType::multi_label, "macro_f1", "macro F1", true,
     "mean of F1 over all labels; one that neither occurs nor is predicted counts 0"},
    {ProblemType::multi_label, "subset_accuracy", "subset accuracy", true,
     "share of texts whose whole set of labels is predicted"},
    {ProblemType::multi_label, "hamming_loss", "Hamming loss", false, "share of wrong decisions about a label"},
};

/// The metric of that name. \throws ConfigError naming those that the problem type has
inline const Metric& find_metric(ProblemType type, std::string_view name) {
  std::string names;
  for (const Metric& metric : all_metrics) {
    if (metric.problem_type != type) continue;
    if (metric.name == name) return metric;
    names.append(names.empty() ? "" : ", ").append(metric.name);
  }
  fail<ConfigError>("metric", "one of " + names + " (for " + std::string(problem_type_name(type)) + ")",
                    detail::in_quotes(name));
}

/// The value of a metric; NaN where it is undefined. `positive` is the label that "f1" is of.
/// \throws ConfigError for a name that the problem type does not have, or a label that there is not
inline double measure(const Evaluation& evaluation, std::string_view name, Index positive = 1) {
  find_metric(evaluation.problem_type, name);
  if (name == "loss" || name == "mse") return evaluation.loss;
  if (name == "accuracy" || name == "subset_accuracy") return evaluation.accuracy;
  if (name == "macro_f1") return evaluation.macro_f1;
  if (name == "pearson") return evaluation.pearson;
  if (name == "spearman") return evaluation.spearman;
  if (name == "mae") return evaluation.mae;
  const auto& counts = evaluation.label_counts;
  if (evaluation.examples == 0) return Evaluation::undefined;
  if (name == "micro_f1") return micro_f1(counts);
  if (name == "matthews") return matthews_correlation(counts);
  if (name == "hamming_loss") return hamming_loss(counts, evaluation.examples);
  if (positive < 0 || positive >= static_cast<Index>(counts.size()))
    fail<ConfigError>("metric f1, positive label", "a number in [0, " + std::to_string(counts.size()) + ")",
                      std::to_string(positive));
  return f1_score(counts[static_cast<std::size_t>(positive)]);
}

/// From what every example was: `losses[i]` is of the example whose label is `labels[i]`.
inline Evaluation evaluation_of_labels(std::span<const std::int32_t> labels, std::span<const RowLoss> losses,
                                       std::size_t num_labels) {
  Evaluation result;
  result.examples = static_cast<Index>(losses.size());
  result.label_counts.resize(num_labels);
  if (num_labels <= 1024) result.confusion.assign(num_labels, std::vector<Index>(num_labels, 0));
  Index right = 0;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    const auto label = static_cast<std::size_t>(labels[i]), best = static_cast<std::size_t>(losses[i].best);
    result.loss += losses[i].nll;
    ++result.label_counts[label].actual;
    ++result.label_counts[best].predicted;
    if (label == best) ++result.label_counts[label].both, ++right;
    if (!result.confusion.empty()) ++result.confusion[label][best];
  }
  const auto count = static_cast<double>(losses.size());
  result.loss /= count;
  result.accuracy = static_cast<double>(right) / count;
  result.macro_f1 = macro_f1(result.label_counts);
  return result;
}

/// Counts predicted sets of labels, batch by batch in any order: a label is predicted where its probability is above
/// one half, its logit above 0.
class SetCounts {
 public:
  SetCounts(std::size_t num_labels, Index examples)
      : counts_(num_labels), losses_(static_cast<std::size_t>(examples), 0.0) {}

  /// Of the examples from `first` on: logits and targets (0 or 1), row after row of all labels.
  template <class T>
  void add(Index first, std::span<const T> logits, std::span<const T> targets) {
    for (std::size_t i = 0; i < logits.size(); i += counts_.size()) {
      bool all = true;
      double loss = 0;
      for (std::size_t label = 0; label < counts_.size(); ++label) {
        const bool actual = targets[i + label] > T(0), predicted = logits[i + label] > T(0);
        loss += logistic_loss(static_cast<double>(logits[i + label]), static_cast<double>(targets[i + label]));
        counts_[label].actual += actual ? 1 : 0;
        counts_[label].predicted += predicted ? 1 : 0;
        counts_[label].both += actual && predicted ? 1 : 0;
        all = all && actual == predicted;
      }
      losses_[static_cast<std::size_t>(first) + i / counts_.size()] = loss / static_cast<double>(counts_.size());
      right_ += all ? 1 : 0;
    }
  }

  Evaluation evaluation() && {
    const auto examples = static_cast<double>(losses_.size());
    Evaluation result;
    result.problem_type = ProblemType::multi_label;
    result.examples = static_cast<Index>(losses_.size());
    result.loss = std::accumulate(losses_.begin(), losses_.end(), 0.0) / examples;
    result.accuracy = static_cast<double>(right_) / examples;
    if (!losses_.empty()) result.macro_f1 = macro_f1_of_sets(counts_);
    result.label_counts = std::move(counts_);
    return result;
  }

 private:
  std::vector<LabelCounts> counts_;
  std::vector<double> losses_;  ///< by example
  Index right_ = 0;             ///< examples whose whole set was predicted
};

/// From numbers (examples, outputs): predictions and what they should be.
inline Evaluation evaluation_of_numbers(std::span<const double> predicted, std::span<const double> targets,
                                        Index outputs) {
  Evaluation result;
  result.problem_type = ProblemType::regression;
  result.examples = static_cast<Index>(targets.size()) / outputs;
  result.accuracy = Evaluation::undefined;
  result.loss = mean_squared_error(predicted, targets);
  result.mae = mean_absolute_error(predicted, targets);
  result.pearson = result.spearman = 0;
  std::vector<double> a(static_cast<std::size_t>(result.examples)), b(a.size());
  for (Index output = 0; output < outputs; ++output) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      a[i] = predicted[i * static_cast<std::size_t>(outputs) + static_cast<std::size_t>(output)];
      b[i] = targets[i * static_cast<std::size_t>(outputs) + static_cast<std::size_t>(output)];
    }
    result.pearson += pearson_correlation(a, b) / static_cast<double>(outputs);
    result.spearman += spearman_correlation(a, b) / static_cast<double>(outputs);
  }
  return result;
}

}  // namespace fedlora
