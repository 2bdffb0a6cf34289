// SPDX-License-Identifier: Apache-2.0
// Measures against scikit-learn, scipy and torch (tests/golden/metrics.json), to the last digits.
#include "fedlora/lora/measures.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "errors.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/lora/evaluation.hpp"

namespace fedlora::tests {
namespace {

const Json& metric_cases(ProblemType type) {
  static const Json json = parse_json(map_file(FEDLORA_TEST_DIR "/golden/metrics.json"));
  return json[std::string(problem_type_name(type))];
}

/// Whether a measure is what the reference says; null is NaN.
void check_measure(const Evaluation& evaluation, const char* name, const Json& expected, Index positive = 1) {
  CAPTURE(std::string(name));
  const double value = measure(evaluation, name, positive);
  if (expected.is_null())
    CHECK(std::isnan(value));
  else
    CHECK(std::abs(value - expected.get<double>()) <= 1e-12 * std::max(1.0, std::abs(expected.get<double>())));
}

/// Evaluates predictions, every example with a loss of its own number.
Evaluation of_labels(const std::vector<std::int32_t>& truth, const std::vector<std::int32_t>& predicted,
                     std::size_t labels) {
  std::vector<RowLoss> losses;
  for (std::size_t i = 0; i < predicted.size(); ++i) losses.push_back({static_cast<double>(i), predicted[i]});
  return evaluation_of_labels(truth, losses, labels);
}

std::vector<double> flat(const Json& rows) {
  std::vector<double> numbers;
  for (const Json& row : rows)
    for (const Json& number : row) numbers.push_back(number.get<double>());
  return numbers;
}

}  // namespace

TEST_CASE("measures of one label per example are scikit-learn's") {
  for (const Json& c : metric_cases(ProblemType::single_label)) {
    CAPTURE(c["name"].get<std::string>());
    const auto truth = c["truth"].get<std::vector<std::int32_t>>();
    const Evaluation evaluation =
        of_labels(truth, c["predicted"].get<std::vector<std::int32_t>>(), c["labels"].get<std::size_t>());
    for (const char* name : {"accuracy", "macro_f1", "matthews"}) check_measure(evaluation, name, c[name]);
    for (std::size_t label = 0; label < c["f1"].size(); ++label)
      check_measure(evaluation, "f1", c["f1"][label], static_cast<Index>(label));
    CHECK(evaluation.loss == doctest::Approx(static_cast<double>(truth.size() - 1) / 2));
    CHECK(evaluation.accuracy == measure(evaluation, "accuracy"));
    CHECK(evaluation.macro_f1 == measure(evaluation, "macro_f1"));
  }
}

TEST_CASE("measures of sets of labels are scikit-learn's, whatever the batches and their order") {
  for (const Json& c : metric_cases(ProblemType::multi_label)) {
    CAPTURE(c["name"].get<std::string>());
    const std::vector<double> targets = flat(c["truth"]), logits = flat(c["logits"]);
    const std::size_t examples = c["truth"].size(), labels = c["truth"][0].size();
    SetCounts whole(labels, static_cast<Index>(examples)), parts(labels, static_cast<Index>(examples));
    whole.add<double>(0, logits, targets);
    const Evaluation evaluation = std::move(whole).evaluation();
    for (const char* name : {"loss", "micro_f1", "macro_f1", "subset_accuracy", "hamming_loss"})
      check_measure(evaluation, name, c[name]);
    for (std::size_t i = examples; i-- > 0;)
      parts.add<double>(static_cast<Index>(i), std::span(logits).subspan(i * labels, labels),
                        std::span(targets).subspan(i * labels, labels));
    const Evaluation again = std::move(parts).evaluation();
    for (const char* name : {"loss", "micro_f1", "macro_f1", "subset_accuracy", "hamming_loss"})
      CHECK(measure(again, name) == measure(evaluation, name));
  }
}

TEST_CASE("measures of numbers are scipy's and scikit-learn's, and undefined where theirs are") {
  for (const Json& c : metric_cases(ProblemType::regression)) {
    CAPTURE(c["name"].get<std::string>());
    const Evaluation evaluation =
        evaluation_of_numbers(flat(c["predicted"]), flat(c["targets"]), static_cast<Index>(c["targets"][0].size()));
    check_measure(evaluation, "pearson", c["pearson"]);
    check_measure(evaluation, "spearman", c["spearman"]);
    if (c["mse"].is_null()) continue;  // beyond a double's range
    check_measure(evaluation, "mse", c["mse"]);
    check_measure(evaluation, "mae", c["mae"]);
    CHECK(measure(evaluation, "mse") == evaluation.loss);
    CHECK(std::isnan(evaluation.accuracy));
  }
}

TEST_CASE("a correlation of numbers around a large mean is scipy's") {
  std::vector<double> numbers, others;
  for (int i = 0; i < 40; ++i) {
    numbers.push_back(1e15 + i % 5);
    others.push_back((7 * i * i + 3 * i) % 11);
  }
  // scipy.stats.pearsonr(numbers, others).statistic
  CHECK(std::abs(pearson_correlation(numbers, others) - 0.12934456952999093) <= 1e-12);
}

TEST_CASE("no examples have no measures, and numbers that are none no correlation") {
  const Evaluation nothing[] = {of_labels({}, {}, 3), SetCounts(3, 0).evaluation(), evaluation_of_numbers({}, {}, 2)};
  for (const Evaluation& evaluation : nothing) {
    CHECK(evaluation.examples == 0);
    for (const Metric& metric : all_metrics)
      if (metric.problem_type == evaluation.problem_type)
        CHECK_MESSAGE(std::isnan(measure(evaluation, metric.name)), metric.name);
  }
  const double bad[] = {1, std::nan(""), 3, 2}, infinite[] = {1, Evaluation::undefined, HUGE_VAL, 2},
               good[] = {1, 2, 3, 4};
  for (const double* numbers : {bad, infinite}) {
    CHECK(std::isnan(spearman_correlation({numbers, 4}, good)));
    CHECK(std::isnan(pearson_correlation(good, {numbers, 4})));
  }
  check_error<ShapeError>([&] { pearson_correlation({good, 3}, good); }, {"pearson_correlation", "3 numbers", "4"});
}

TEST_CASE("a metric goes by its name, within its problem type") {
  const Evaluation evaluation = of_labels({0, 1, 1}, {0, 1, 0}, 2);
  CHECK(find_metric(ProblemType::regression, "mse").title == "MSE");
  CHECK(measure(evaluation, "f1") == measure(evaluation, "f1", 1));
  check_error<ConfigError>([&] { measure(evaluation, "pearson"); },
                           {"metric", "accuracy, loss, macro_f1, f1, matthews", "single_label", "'pearson'"});
  check_error<ConfigError>([&] { measure(evaluation, "f1", 2); }, {"positive label", "[0, 2)", "got 2"});
  CHECK(of_labels({0}, {1}, 1024).confusion.size() == 1024);
  CHECK(of_labels({0}, {1}, 1025).confusion.empty());  // the square of many is too much
}

}  // namespace fedlora::tests
