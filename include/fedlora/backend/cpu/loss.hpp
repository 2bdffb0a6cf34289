// SPDX-License-Identifier: Apache-2.0
// Losses over rows of a head's outputs: softmax cross-entropy, mean squared error, binary cross-entropy.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "fedlora/backend/cpu/level.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// Turns each row of logits into weight · (softmax - one_hot(label)) and returns Σ -log softmax[label]. A row with a
/// negative label counts for nothing and becomes zero.
template <class T>
double cross_entropy(const MatrixView<T>& logits, const std::int32_t* labels, T weight) {
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
double cross_entropy_loss(const MatrixView<const T>& logits, const std::int32_t* labels) {
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

/// Turns each row of outputs into its part of the gradient of weight · Σ loss, and returns Σ loss, where a row's loss
/// is the mean over columns of (output - target)². `targets` are as many rows, one after another.
template <class T>
double mean_squared_error(const MatrixView<T>& outputs, const T* targets, T weight) {
  const T share = weight / static_cast<T>(outputs.cols);
  double loss = 0;
  for (Index i = 0; i < outputs.rows; ++i) {
    T* row = outputs.row(i);
    double sum = 0;
    for (Index j = 0; j < outputs.cols; ++j) {
      const T error = row[j] - targets[i * outputs.cols + j];
      sum += static_cast<double>(error) * static_cast<double>(error);
      row[j] = T(2) * share * error;
    }
    loss += sum / static_cast<double>(outputs.cols);
  }
  return loss;
}

/// The same where a row's loss is the mean over columns of logistic_loss(logit, target).
template <class T>
double binary_cross_entropy(const MatrixView<T>& logits, const T* targets, T weight) {
  const T share = weight / static_cast<T>(logits.cols);
  double loss = 0;
  for (Index i = 0; i < logits.rows; ++i) {
    T* row = logits.row(i);
    double sum = 0;
    for (Index j = 0; j < logits.cols; ++j) {
      const T target = targets[i * logits.cols + j];
      sum += logistic_loss(static_cast<double>(row[j]), static_cast<double>(target));
      row[j] = share * (T(1) / (T(1) + std::exp(-row[j])) - target);
    }
    loss += sum / static_cast<double>(logits.cols);
  }
  return loss;
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
