// SPDX-License-Identifier: Apache-2.0
// Measures of predictions, each the number that scikit-learn 1.9 or scipy 1.17 gives for the same predictions. They are
// computed from counts, or in double from all predictions in their order, so that no batch and no thread shows in them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// How many examples have a label, how many were given it, and how many both.
struct LabelCounts {
  Index actual = 0;
  Index predicted = 0;
  Index both = 0;
};

/// 2 TP / (2 TP + FP + FN) of one label; 0 where no example has it or was given it.
inline double f1_score(const LabelCounts& label) {
  const Index sum = label.actual + label.predicted;
  return sum > 0 ? 2.0 * static_cast<double>(label.both) / static_cast<double>(sum) : 0.0;
}

/// F1 over all decisions about a label taken together; f1_score(average="micro").
inline double micro_f1(std::span<const LabelCounts> labels) {
  LabelCounts all;
  for (const LabelCounts& label : labels) {
    all.actual += label.actual;
    all.predicted += label.predicted;
    all.both += label.both;
  }
  return f1_score(all);
}

/// The mean of F1 over the classes that occur or are predicted, where every example has one; f1_score(average="macro").
/// NaN where there is none.
inline double macro_f1(std::span<const LabelCounts> classes) {
  double sum = 0;
  Index counted = 0;
  for (const LabelCounts& one : classes) {
    sum += f1_score(one);
    counted += one.actual + one.predicted > 0 ? 1 : 0;
  }
  return sum / static_cast<double>(counted);
}

/// The same where examples have sets of labels: over all labels, and those that neither occur nor are predicted count
/// 0.
inline double macro_f1_of_sets(std::span<const LabelCounts> labels) {
  double sum = 0;
  for (const LabelCounts& label : labels) sum += f1_score(label);
  return sum / static_cast<double>(labels.size());
}

/// The correlation of classes and predictions (Matthews 1975; for more than two classes Gorodkin 2004), from -1 to 1; 0
/// where all examples are of one class, or all predictions.
inline double matthews_correlation(std::span<const LabelCounts> classes) {
  double examples = 0, both = 0, products = 0, actual = 0, predicted = 0;
  for (const LabelCounts& one : classes) {
    const auto a = static_cast<double>(one.actual), p = static_cast<double>(one.predicted);
    examples += a;
    both += static_cast<double>(one.both);
    products += a * p;
    actual += a * a;
    predicted += p * p;
  }
  const double square = examples * examples;
  const double scale = std::sqrt(square - actual) * std::sqrt(square - predicted);
  return scale > 0 ? (both * examples - products) / scale : 0.0;
}

/// The share of wrong decisions about a label, of all examples and labels.
inline double hamming_loss(std::span<const LabelCounts> labels, Index examples) {
  Index wrong = 0;
  for (const LabelCounts& label : labels) wrong += label.actual + label.predicted - 2 * label.both;
  return static_cast<double>(wrong) / (static_cast<double>(examples) * static_cast<double>(labels.size()));
}

namespace detail {

inline void check_pairs(const char* where, std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size()) fail<ShapeError>(where, std::to_string(a.size()) + " numbers", std::to_string(b.size()));
}

/// The numbers less their mean, of length 1. Empty where they are all the same, not finite, or less than two.
inline std::vector<double> standardised(std::span<const double> numbers) {
  std::vector<double> parts;
  if (numbers.size() < 2 || !std::all_of(numbers.begin(), numbers.end(), [](double x) { return std::isfinite(x); }) ||
      std::all_of(numbers.begin(), numbers.end(), [&](double x) { return x == numbers[0]; }))
    return parts;
  const auto count = static_cast<double>(numbers.size());
  double mean = std::accumulate(numbers.begin(), numbers.end(), 0.0) / count;
  // What rounding of the sum has cost shows in the mean of the differences, which are small and exact.
  mean += std::accumulate(numbers.begin(), numbers.end(), 0.0, [&](double sum, double x) { return sum + (x - mean); }) /
          count;
  double largest = 0, square = 0;
  for (const double number : numbers) largest = std::max(largest, std::abs(parts.emplace_back(number - mean)));
  for (double& part : parts) {
    part /= largest;
    square += part * part;
  }
  for (double& part : parts) part /= std::sqrt(square);
  return parts;
}

/// Ranks from 1; equal numbers share the mean of theirs.
inline std::vector<double> ranks(std::span<const double> numbers) {
  std::vector<std::size_t> order(numbers.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return numbers[a] < numbers[b]; });
  std::vector<double> ranks(numbers.size());
  for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && numbers[order[end]] == numbers[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = static_cast<double>(begin + 1 + end) / 2;
  }
  return ranks;
}

}  // namespace detail

/// Pearson's correlation; NaN where it is undefined: one side is constant, a number is not finite, or there are less
/// than two. \throws ShapeError
inline double pearson_correlation(std::span<const double> a, std::span<const double> b) {
  detail::check_pairs("pearson_correlation", a, b);
  const auto x = detail::standardised(a), y = detail::standardised(b);
  if (x.empty() || y.empty()) return std::numeric_limits<double>::quiet_NaN();
  return std::clamp(std::inner_product(x.begin(), x.end(), y.begin(), 0.0), -1.0, 1.0);
}

/// Spearman's: Pearson's of the ranks, where equal numbers share the mean of theirs. NaN as there. \throws ShapeError
inline double spearman_correlation(std::span<const double> a, std::span<const double> b) {
  detail::check_pairs("spearman_correlation", a, b);
  const auto finite = [](double x) { return std::isfinite(x); };
  if (!std::all_of(a.begin(), a.end(), finite) || !std::all_of(b.begin(), b.end(), finite))
    return std::numeric_limits<double>::quiet_NaN();
  return pearson_correlation(detail::ranks(a), detail::ranks(b));
}

/// The mean of |a - b|; NaN of nothing. \throws ShapeError
inline double mean_absolute_error(std::span<const double> a, std::span<const double> b) {
  detail::check_pairs("mean_absolute_error", a, b);
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

/// The mean of (a - b)²; NaN of nothing. \throws ShapeError
inline double mean_squared_error(std::span<const double> a, std::span<const double> b) {
  detail::check_pairs("mean_squared_error", a, b);
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

}  // namespace fedlora
