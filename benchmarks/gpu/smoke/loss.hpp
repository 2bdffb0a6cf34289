// SPDX-License-Identifier: Apache-2.0
// Losses, their gradients, and sums of losses.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"
#include "fedlora/backend/cuda/loss.cuh"
#include "fedlora/backend/cuda/optimizer_state.cuh"

namespace fedlora::smoke {

/// Mean squared error (`square`) or binary cross-entropy of `columns` outputs, and its gradient.
template <class T>
void check_target_loss(Check& check, Index columns, bool square) {
  const Gpu& gpu = check.gpu;
  const Index rows = check.shape.logit_rows;
  const std::string name =
      std::to_string(columns) + (square ? " numbers, squared error, " : " labels, binary cross-entropy, ");
  const Values outputs = random<T>(rows, columns, 43, 3);
  Values targets = random<float>(rows, columns, 44, 2);
  if (!square)
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) targets(i, j) = targets(i, j) > 0 ? 1 : 0;
  const double weight = 0.25;
  Matrix<float> scaled(gpu, 1, 1, Layout::odd), losses(gpu, 1, rows, Layout::odd);
  cuda::scale_loss_weight(weight, nullptr, 1.0, scaled.data(), gpu.stream());
  std::vector<float> flat;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) flat.push_back(static_cast<float>(targets(i, j)));
  const Table<float> placed(gpu, flat);
  Matrix<T> gradient(gpu, outputs, check.shape.layout);
  if (square)
    cuda::mean_squared_error<T>(gradient.view(), placed.data(), scaled.data(), losses.data(), gpu.stream());
  else
    cuda::binary_cross_entropy<T>(gradient.view(), placed.data(), scaled.data(), losses.data(), gpu.stream());
  const auto across = static_cast<double>(columns);
  check.matrix(name + "gradient", gradient, check.tolerance<T>(), [&](Index i, double* to) {
    for (Index j = 0; j < columns; ++j)
      to[j] = weight / across *
              (square ? 2 * (outputs(i, j) - targets(i, j)) : 1 / (1 + std::exp(-outputs(i, j))) - targets(i, j));
  });
  check.matrix(name + "losses", losses, 1e-5, [&](Index, double* to) {
    for (Index i = 0; i < rows; ++i) {
      to[i] = 0;
      for (Index j = 0; j < columns; ++j) {
        const double error = outputs(i, j) - targets(i, j);
        const double against = targets(i, j) > 0 ? -outputs(i, j) : outputs(i, j);
        to[i] += (square ? error * error : std::log1p(std::exp(against))) / across;
      }
    }
  });
}

template <class T>
void check_loss(Check& check) {
  for (const Index columns : {Index{1}, Index{28}, Index{101}}) {
    check_target_loss<T>(check, columns, true);
    check_target_loss<T>(check, columns, false);
  }
  const Shape& shape = check.shape;
  const Gpu& gpu = check.gpu;
  const cuda::Stream stream = gpu.stream();
  for (const Index classes : {shape.vocabulary, Index{6}}) {
    const Index rows = shape.logit_rows;
    const std::string name = std::to_string(classes) + " classes, ";
    Values logits = random<T>(rows, classes, 41, 6);
    for (Index i = 0; i < rows && classes > 100; ++i)  // some that count beside the label
      for (Index k = 1; k <= 12; ++k) logits(i, k * classes / 13) = 10;
    std::vector<std::int32_t> labels = numbers(rows, classes);
    labels[1] = -1;  // counts for nothing
    const Table<std::int32_t> label(gpu, labels), best(gpu, std::vector<std::int32_t>(labels.size(), -7));
    const Table<std::int32_t> slots(gpu, numbers(rows, 2));
    const std::vector<double> factors = {0.25, 3.0};
    const Table<cuda::StepState> state(gpu, [] {
      cuda::StepState scaled;
      scaled.loss_scale = 8;
      return std::vector<cuda::StepState>{scaled};
    }());
    Matrix<float> weights(gpu, 1, 2, Layout::odd);
    cuda::scale_loss_weight(factors[0], nullptr, 2.0, weights.data(), stream);
    cuda::scale_loss_weight(factors[1], state.data(), 2.0, weights.data() + 1, stream);
    check.matrix("weights of losses", weights, 0, [&](Index, double* to) {
      to[0] = factors[0] * 2;
      to[1] = factors[1] * 8;
    });

    Matrix<T> gradient(gpu, logits, shape.layout);
    const Matrix<T> given(gpu, logits, shape.layout);
    Matrix<float> with_gradient(gpu, 1, rows, Layout::odd), alone(gpu, 1, rows, Layout::odd);
    cuda::cross_entropy<T>(gradient.view(), label.data(), {weights.data(), slots.data()}, with_gradient.data(), stream);
    cuda::cross_entropy_loss<T>(given.in(), label.data(), alone.data(), best.data(), stream);

    std::vector<double> tops(labels.size()), sums(labels.size()), losses(labels.size());
    std::vector<std::int32_t> largest(labels.size());
    for (Index i = 0; i < rows; ++i) {
      const auto at = static_cast<std::size_t>(i);
      for (Index j = 0; j < classes; ++j)
        if (logits(i, j) > logits(i, largest[at])) largest[at] = static_cast<std::int32_t>(j);
      tops[at] = logits(i, largest[at]);
      for (Index j = 0; j < classes; ++j) sums[at] += std::exp(logits(i, j) - tops[at]);
      losses[at] = labels[at] < 0 ? 0 : std::log(sums[at]) + tops[at] - logits(i, labels[at]);
    }
    check.matrix(name + "gradient", gradient, check.tolerance<T>(), [&](Index i, double* to) {
      const auto at = static_cast<std::size_t>(i);
      const double weight = slots[i] == 0 ? factors[0] * 2 : factors[1] * 8;
      for (Index j = 0; j < classes; ++j)
        to[j] =
            labels[at] < 0 ? 0 : weight * (std::exp(logits(i, j) - tops[at]) / sums[at] - (j == labels[at] ? 1 : 0));
    });
    const auto expected = [&](Index, double* to) { std::copy(losses.begin(), losses.end(), to); };
    check.matrix(name + "losses beside gradients", with_gradient, 1e-5, expected);
    check.matrix(name + "losses", alone, 1e-5, expected);
    const std::vector<std::int32_t> found = best.get();
    for (std::size_t i = 0; i < found.size(); ++i)
      check.value(name + "best of row " + std::to_string(i), found[i], largest[i], 0);

    const Values lots = random<float>(1, shape.parameters, 42);
    const Matrix<float> on_lots(gpu, lots, Layout::odd);
    const auto count = static_cast<std::int32_t>(shape.parameters);
    const Table<std::int32_t> bounds(gpu, {0, count / 3, count / 3, count});
    const Table<double> one(gpu, {0.5}), three(gpu, {7.0, 7.0, 7.0});
    cuda::sum_losses(on_lots.data(), shape.parameters, one.data(), true, stream);
    cuda::sum_losses(on_lots.data(), bounds.data(), 3, three.data(), false, stream);
    const auto sum = [&](Index begin, Index end) {
      double result = 0;
      for (Index i = begin; i < end; ++i) result += lots(0, i);
      return result;
    };
    check.value("sum of losses", one.get()[0], 0.5 + sum(0, count), 1e-9, 1);
    for (std::size_t s = 0; s < 3; ++s)
      check.value("sum of client " + std::to_string(s), three.get()[s], sum(bounds.sent()[s], bounds.sent()[s + 1]),
                  1e-9, 1);
  }
}

}  // namespace fedlora::smoke
