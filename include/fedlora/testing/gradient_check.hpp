// SPDX-License-Identifier: Apache-2.0
// Gradient checks for people who write their own layer or model: analytic gradients against central differences, in
// float64. A check returns a report; what to do with it is the caller's affair.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/core/step.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/fed/concepts.hpp"
#include "fedlora/lora/state_dict.hpp"

namespace fedlora::testing {

/// How a check is made.
struct GradientCheckOptions {
  double step = 1e-5;       ///< of the central difference, times max(1, |entry|)
  Index every = 1;          ///< look at every n-th entry, beginning with the first: for large vectors
  double floor = 1e-3;      ///< tensors whose gradient is smaller than this share of the largest count as that large
  bool add_to_ones = true;  ///< models only: hand in a gradient full of ones, which must be added to
};

/// What a check found. The error of an entry is |analytic - numeric| over the largest |numeric| of its tensor.
struct GradientReport {
  Index compared = 0;      ///< entries looked at
  double worst_error = 0;  ///< infinite when something was not finite
  Index worst = -1;        ///< the entry with the worst error
  std::string name;        ///< its name: "base_model.model.classifier.weight[2, 7]", or "[19]"
  double analytic = 0;
  double numeric = 0;

  bool within(double tolerance) const { return compared > 0 && worst_error <= tolerance; }
  /// One line for a test's message.
  std::string text() const {
    std::ostringstream line;
    line.precision(9);
    line << compared << " entries, worst error " << worst_error << " at " << name << ": analytic " << analytic
         << ", numeric " << numeric;
    return line.str();
  }
};

/// A run of entries that belong together: a tensor.
struct GradientBlock {
  std::string name;
  std::vector<Index> shape;
  Index offset = 0;
  Index size = 0;
};

/// (f(x + h e_i) - f(x - h e_i)) / 2h at every i for which `wanted(i)`; others are NaN. `x` is put back as it was.
template <class Function, class Wanted>
std::vector<double> numeric_gradient(Function&& f, std::span<double> x, double step, Wanted&& wanted) {
  std::vector<double> result(x.size(), std::numeric_limits<double>::quiet_NaN());
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!wanted(static_cast<Index>(i))) continue;
    const double here = x[i];
    const double width = step * std::max(1.0, std::abs(here));
    const volatile double above = here + width;  // the step that floating point really takes
    const volatile double below = here - width;
    x[i] = above;
    const double high = f(std::span<const double>(x));
    x[i] = below;
    const double low = f(std::span<const double>(x));
    x[i] = here;
    result[i] = (high - low) / (above - below);
  }
  return result;
}

/// The same at every i.
template <class Function>
std::vector<double> numeric_gradient(Function&& f, std::span<double> x, double step = 1e-5) {
  return numeric_gradient(std::forward<Function>(f), x, step, [](Index) { return true; });
}

/// Compares two gradients block by block; entries whose `numeric` is NaN by not being wanted are passed over.
inline GradientReport compare_gradients(std::span<const double> analytic, std::span<const double> numeric,
                                        std::span<const GradientBlock> blocks, const GradientCheckOptions& options) {
  if (analytic.size() != numeric.size())
    fail<ShapeError>("gradient check", std::to_string(numeric.size()) + " entries", std::to_string(analytic.size()));
  const auto wanted = [&](Index i) { return i % options.every == 0; };
  const auto largest_of = [&](Index begin, Index end) {
    double largest = 0;
    for (Index i = begin; i < end; ++i)
      if (wanted(i)) largest = std::max(largest, std::abs(numeric[static_cast<std::size_t>(i)]));
    return largest;
  };
  const double overall = largest_of(0, static_cast<Index>(numeric.size()));
  GradientReport report;
  for (const GradientBlock& block : blocks) {
    const double size = std::max({largest_of(block.offset, block.offset + block.size), options.floor * overall,
                                  std::numeric_limits<double>::min()});
    for (Index i = block.offset; i < block.offset + block.size; ++i) {
      if (!wanted(i)) continue;
      const double a = analytic[static_cast<std::size_t>(i)];
      const double n = numeric[static_cast<std::size_t>(i)];
      double error = std::abs(a - n) / size;
      if (!std::isfinite(error)) error = std::numeric_limits<double>::infinity();
      if (report.compared++ > 0 && error <= report.worst_error) continue;
      report.worst_error = error;
      report.worst = i;
      report.analytic = a;
      report.numeric = n;
      report.name = block.name + "[";
      Index rest = i - block.offset;
      std::string place;
      for (std::size_t d = block.shape.size(); d-- > 0;) {
        place = std::to_string(rest % block.shape[d]) + (place.empty() ? "" : ", ") + place;
        rest /= block.shape[d];
      }
      report.name += place + "]";
    }
  }
  return report;
}

/// Checks `analytic`, the gradient of `f` at `x`. `f` takes std::span<const double> and returns double; it must be a
/// pure function of its argument and smooth within a step.
template <class Function>
GradientReport check_gradient(Function&& f, std::span<const double> x, std::span<const double> analytic,
                              const GradientCheckOptions& options = {}) {
  std::vector<double> at(x.begin(), x.end());
  const std::vector<double> numeric = numeric_gradient(std::forward<Function>(f), std::span<double>(at), options.step,
                                                       [&](Index i) { return i % options.every == 0; });
  const auto size = static_cast<Index>(x.size());
  const GradientBlock whole{"", {size}, 0, size};
  return compare_gradients(analytic, numeric, {&whole, 1}, options);
}

/// Checks a model's `accumulate_gradient` against the loss that it returns itself, at `parameters`, with the weight
/// 1 / loss_count. Dropouts may be on: the address fixes their masks. The model must compute in double.
template <FederatedModel Model>
requires std::same_as<typename Model::Scalar, double> GradientReport check_model_gradient(
    const Model& model, const Dataset& data, std::span<const Index> examples, std::span<const double> parameters,
    const StepAddress& address = {}, const GradientCheckOptions& options = {}) {
  typename Model::Workspace workspace(model.backend());
  const double weight = 1.0 / static_cast<double>(model.loss_count(data, examples));
  const double start = options.add_to_ones ? 1.0 : 0.0;
  std::vector<double> gradient(parameters.size(), start);
  model.accumulate_gradient(workspace, data, examples, parameters, gradient, weight, address);
  for (double& value : gradient) value -= start;

  std::vector<double> scratch(parameters.size());
  const auto loss = [&](std::span<const double> at) {
    std::fill(scratch.begin(), scratch.end(), 0.0);
    return weight * model.accumulate_gradient(workspace, data, examples, at, scratch, weight, address);
  };
  std::vector<double> at(parameters.begin(), parameters.end());
  const std::vector<double> numeric =
      numeric_gradient(loss, std::span<double>(at), options.step, [&](Index i) { return i % options.every == 0; });
  std::vector<GradientBlock> blocks;
  const std::shared_ptr<const AdapterLayout> layout = model.layout();
  for (const StateEntry& entry : state_entries(*layout))
    blocks.push_back({entry.key, entry.shape, entry.offset, entry.size()});
  return compare_gradients(gradient, numeric, blocks, options);
}

}  // namespace fedlora::testing
