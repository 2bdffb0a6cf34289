// SPDX-License-Identifier: Apache-2.0
// How good a model is on a data set.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Measures of one evaluation. Language models have `examples` (predicted tokens), `loss` and token `accuracy` alone.
struct Evaluation {
  Index examples = 0;
  double loss = 0;      ///< mean cross-entropy, nats
  double accuracy = 0;  ///< share of examples whose largest logit is their label's
  double macro_f1 =
      0;  ///< mean of F1 over all of the model's classes; one that neither occurs nor is predicted counts 0
  std::vector<std::vector<Index>> confusion;  ///< [true label][predicted label]
};

/// Accuracy and macro F1 from a confusion matrix, which becomes part of the result. F1 of a class is
/// 2 TP / (2 TP + FP + FN), and 0 where that is 0 / 0.
inline Evaluation evaluation_from(std::vector<std::vector<Index>> confusion, double loss_sum) {
  Evaluation result;
  const std::size_t classes = confusion.size();
  Index right = 0;
  for (std::size_t label = 0; label < classes; ++label)
    for (const Index count : confusion[label]) result.examples += count;
  for (std::size_t label = 0; label < classes; ++label) {
    const Index hits = confusion[label][label];
    right += hits;
    Index truth = 0;
    Index predicted = 0;
    for (std::size_t other = 0; other < classes; ++other) {
      truth += confusion[label][other];
      predicted += confusion[other][label];
    }
    if (truth + predicted > 0)
      result.macro_f1 += 2.0 * static_cast<double>(hits) / static_cast<double>(truth + predicted);
  }
  if (classes > 0) result.macro_f1 /= static_cast<double>(classes);
  const auto total = static_cast<double>(result.examples);
  result.loss = result.examples > 0 ? loss_sum / total : std::numeric_limits<double>::quiet_NaN();
  result.accuracy = result.examples > 0 ? static_cast<double>(right) / total : std::numeric_limits<double>::quiet_NaN();
  result.confusion = std::move(confusion);
  return result;
}

}  // namespace fedlora
