// SPDX-License-Identifier: Apache-2.0
// Softmax cross-entropy over rows of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "fedlora/core/shape.hpp"

namespace fedlora::cpu {

/// Turns each row of logits into weight · (softmax - one_hot(label)) and returns Σ -log softmax[label]. A row with a
/// negative label counts for nothing and becomes zero.
template <class T>
double cross_entropy(MatrixView<T> logits, const std::int32_t* labels, T weight) {
  double loss = 0;
  for (Index i = 0; i < logits.rows; ++i) {
    T* row = logits.row(i);
    if (labels[i] < 0) {
      std::fill_n(row, logits.cols, T(0));
      continue;
    }
    const T top = *std::max_element(row, row + logits.cols);
    const T chosen = row[labels[i]];
    double sum = 0;
    for (Index j = 0; j < logits.cols; ++j) {
      row[j] = std::exp(row[j] - top);
      sum += static_cast<double>(row[j]);
    }
    loss += std::log(sum) - static_cast<double>(chosen - top);
    const T factor = static_cast<T>(static_cast<double>(weight) / sum);
    for (Index j = 0; j < logits.cols; ++j) row[j] *= factor;
    row[labels[i]] -= weight;
  }
  return loss;
}

/// The loss alone; logits are left as they are.
template <class T>
double cross_entropy_loss(MatrixView<const T> logits, const std::int32_t* labels) {
  double loss = 0;
  for (Index i = 0; i < logits.rows; ++i) {
    if (labels[i] < 0) continue;
    const T* row = logits.row(i);
    const T top = *std::max_element(row, row + logits.cols);
    double sum = 0;
    for (Index j = 0; j < logits.cols; ++j) sum += std::exp(static_cast<double>(row[j] - top));
    loss += std::log(sum) - static_cast<double>(row[labels[i]] - top);
  }
  return loss;
}

}  // namespace fedlora::cpu
