// SPDX-License-Identifier: Apache-2.0
// Regression and sets of labels: against transformers and peft, against central differences, and what is refused.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "../errors.hpp"
#include "golden_training.hpp"
#include "gradients.hpp"

namespace fedlora::tests {
namespace {

using TypedModel = SequenceClassifier<Bert, CpuBackend<double>>;

const LoraConfig small_lora{.rank = 2, .alpha = 3, .target_modules = {"query", "value"}};

std::vector<std::string> names_of(Index labels) {
  std::vector<std::string> names;
  for (Index i = 0; i < labels; ++i) names.push_back("label " + std::to_string(i));
  return names;
}

/// Four short examples with what the problem type predicts.
Dataset answered(ProblemType type, Index outputs) {
  Dataset data = tiny_data({4, 1, 7, 2});
  data.labels.clear();
  if (type == ProblemType::multi_label) {
    data.labels = {0, 2, 1, 0, 1, 2};  // {0, 2}, {}, {1}, {0, 1, 2}
    data.label_offsets = {0, 2, 2, 3, 6};
  } else {
    for (Index i = 0; i < 4 * outputs; ++i) data.targets.push_back(1.5 * static_cast<double>(i % 5) - 2);
  }
  return data;
}

template <class Arch, class T>
void check_problem_types(const std::string& family) {
  const Golden golden(family, "problem_types/" + family + ".json", "problem_types/" + family + ".safetensors");
  const auto base = golden.base<Arch, CpuBackend<T>>();
  for (const std::string name : {"regression", "regression3", "multi_label4"}) {
    CAPTURE(name);
    const Json& c = golden.cases["cases"][name];
    ClassifierOptions options{.labels = names_of(c["num_labels"].get<Index>()), .base_dropout = 0.0};
    if (name != "regression") options.problem_type = problem_type_of(c["problem_type"].get<std::string>());
    const SequenceClassifier<Arch, CpuBackend<T>> model(base, options, golden.lora(name));
    CHECK(problem_type_name(model.problem_type()) == c["problem_type"].get<std::string>());
    CHECK(model.layout()->context.problem_type == model.problem_type());
    const Dataset data = golden.dataset(name);
    const Adapter<T> adapter = golden.adapter<T>(model.layout(), "adapter." + name + ".");
    CHECK(relative_error(model.logits(adapter, data, 1), golden.tensor("logits." + name)) <= golden_tolerance<T>);
    CHECK(model.evaluate(adapter, data, 1).loss ==
          doctest::Approx(c["losses"][0].get<double>()).epsilon(sizeof(T) == 8 ? 1e-12 : 1e-5));
    check_training(golden, name, model);
  }
}

}  // namespace

TEST_CASE("regression and multi-label heads equal transformers and peft: BERT") {
  check_problem_types<Bert, double>("bert");
  check_problem_types<Bert, float>("bert");
}

TEST_CASE("regression and multi-label heads equal transformers and peft: Llama") {
  check_problem_types<Llama, double>("llama");
}

TEST_CASE("gradients of every problem type are the slopes of its loss") {
  for (const auto& [type, outputs] :
       {std::pair{ProblemType::regression, 1}, {ProblemType::regression, 3}, {ProblemType::multi_label, 3}}) {
    const TypedModel model(tiny_base<Bert>(), {.labels = names_of(outputs), .problem_type = type}, small_lora);
    const Dataset data = answered(type, outputs);
    const auto adapter = random_adapter<double>(model.layout());
    const auto report =
        testing::check_model_gradient(model, data, all_of(data), adapter.values(), {5, 2, 3, 1, 0}, {.step = 1e-5});
    CHECK_MESSAGE(report.within(2e-7), report.text());
  }
}

TEST_CASE("the problem type is the caller's, else config.json's, else by the number of labels") {
  const auto type_of = [](const Json& patch, ClassifierOptions options) {
    return TypedModel(tiny_base<Bert>(1, patch), std::move(options), small_lora).problem_type();
  };
  const Json one = {{"id2label", {{"0", "LABEL_0"}}}}, sets = {{"problem_type", "multi_label_classification"}};
  CHECK(type_of(Json::object(), {}) == ProblemType::single_label);
  CHECK(type_of(one, {}) == ProblemType::regression);
  CHECK(type_of(Json::object(), {.labels = {"x"}}) == ProblemType::regression);
  CHECK(type_of(sets, {}) == ProblemType::multi_label);
  CHECK(type_of(sets, {.problem_type = ProblemType::single_label}) == ProblemType::single_label);
  CHECK(type_of(Json::object(), {.labels = {"x"}, .problem_type = ProblemType::multi_label}) ==
        ProblemType::multi_label);
  check_error<ConfigError>(
      [&] { type_of(Json::object(), {.labels = {"x"}, .problem_type = ProblemType::single_label}); },
      {"classifier of tiny", "at least two labels", "regression", "only 'x'"});
}

TEST_CASE("the outputs of a regression head go by their names where all have one, else by their place") {
  const auto saved = [](std::vector<std::string> labels, ProblemType type) {
    const TypedModel model(tiny_base<Bert>(1, {{"id2label", {{"0", "a"}, {"1", "b"}, {"2", "c"}}}}),
                           {.labels = std::move(labels), .problem_type = type}, small_lora);
    return std::pair{model.initial_adapter(1), model.notes()};
  };
  const auto [named, no_notes] = saved({"a", "b", "c"}, ProblemType::single_label);
  const auto [numbers, none] = saved({"LABEL_0", "width", "b"}, ProblemType::regression);
  CHECK(std::ranges::equal(named.values(), numbers.values()));
  CHECK(none.empty());
  const auto [labels, no_note] = saved({"c", "a", "b"}, ProblemType::single_label);
  const auto [turned, nothing] = saved({"C", "a", "b"}, ProblemType::regression);
  CHECK(std::ranges::equal(labels.values(), turned.values()));
  CHECK(nothing.empty());
}

TEST_CASE("evaluation of numbers and of sets has the same bits on any number of threads") {
  std::vector<Index> lengths;
  for (Index i = 0; i < 150; ++i) lengths.push_back(1 + (i * 5) % 12);
  for (const ProblemType type : {ProblemType::regression, ProblemType::multi_label}) {
    Dataset data = tiny_data(lengths);
    if (type == ProblemType::regression) {
      for (const std::int32_t label : data.labels) data.targets.insert(data.targets.end(), {label + 0.5, -1.0 * label});
      data.labels.clear();
    } else {
      for (Index i = 0; i <= data.size(); ++i) data.label_offsets.push_back(i);
    }
    const TypedModel model(tiny_base<Bert>(),
                           {.labels = names_of(type == ProblemType::regression ? 2 : 3), .problem_type = type},
                           small_lora);
    const auto adapter = random_adapter<double>(model.layout());
    const Evaluation one = model.evaluate(adapter, data, 1);
    CHECK(one.examples == 150);
    for (const int threads : {2, 3})
      for (const Metric& metric : all_metrics)
        if (metric.problem_type == type)
          CHECK(measure(model.evaluate(adapter, data, threads), metric.name) == measure(one, metric.name));
    double loss = 0;
    const std::vector<double> logits = model.logits(adapter, data, 1);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const auto label = static_cast<std::size_t>(type == ProblemType::regression ? 0 : data.labels[i / 3]);
      loss += type == ProblemType::regression ? (logits[i] - data.targets[i]) * (logits[i] - data.targets[i])
                                              : std::log1p(std::exp(label == i % 3 ? -logits[i] : logits[i]));
    }
    CHECK(one.loss == doctest::Approx(loss / static_cast<double>(logits.size())).epsilon(1e-12));

    const Index some[] = {3, 77, 0};
    const Dataset part = subset(data, some);
    CHECK(model.evaluate(adapter, part, 1).examples == 3);
    CHECK(part.labels_of(1).size() == data.labels_of(77).size());
    CHECK(std::equal(part.targets.begin(), part.targets.begin() + part.outputs(),
                     data.targets.begin() + 3 * data.outputs()));
  }
}

TEST_CASE("answers that do not fit the problem type are refused, and the message says which") {
  const TypedModel numbers(tiny_base<Bert>(), {.labels = {"x"}}, small_lora),
      sets(tiny_base<Bert>(), {.problem_type = ProblemType::multi_label}, small_lora),
      single(tiny_base<Bert>(), {}, small_lora);
  const auto refuses = [](const TypedModel& model, const Dataset& data, std::initializer_list<std::string_view> parts) {
    const auto adapter = random_adapter<double>(model.layout());
    TypedModel::Workspace workspace(model.backend());
    std::vector<double> gradient(adapter.values().size(), 0.0);
    check_error<ShapeError>([&] { model.evaluate(adapter, data, 1); }, parts);
    check_error<ShapeError>(
        [&] { model.accumulate_gradient(workspace, data, all_of(data), adapter.values(), gradient, 1, {}); }, parts);
    if (model.problem_type() != ProblemType::multi_label) CHECK_NOTHROW(model.logits(adapter, data, 1));
  };
  const Dataset labelled = tiny_data({4, 1, 7, 2}), one = answered(ProblemType::regression, 1),
                two = answered(ProblemType::regression, 2), some = answered(ProblemType::multi_label, 3);
  refuses(numbers, labelled, {"targets", "4, 1 per example", "regression", "got 0"});
  refuses(numbers, two, {"targets", "4, 1 per example", "got 8"});
  refuses(single, one, {"labels", "4, 1 per example", "got 0"});
  refuses(single, some, {"labels", "one per example", "label_offsets"});
  refuses(sets, labelled, {"labels", "a set per example", "no label_offsets"});
  Dataset bad = one;
  bad.targets[2] = std::nan("");
  refuses(numbers, bad, {"target of example 2", "finite", "nan"});
  bad = some;
  bad.labels[3] = 3;
  refuses(sets, bad, {"entry 3 of labels", "[0, 3)", "got 3"});
  bad = some;
  bad.label_offsets = {0, 2, 2, 3};
  refuses(sets, bad, {"label_offsets of a dataset", "expected 5", "got 4"});
  bad.label_offsets = {0, 2, 1, 3, 6};
  refuses(sets, bad, {"label_offsets of example 1", "2 to 1"});
  bad = one;
  bad.targets.pop_back();
  check_error<ShapeError>([&] { numbers.logits(random_adapter<double>(numbers.layout()), bad, 1); },
                          {"targets of a dataset", "each of the 4 examples", "got 3"});

  // A number that float cannot hold.
  const SequenceClassifier<Bert, CpuBackend<float>> narrow(tiny_base<Bert, CpuBackend<float>>(), {.labels = {"x"}},
                                                           small_lora);
  bad = one;
  bad.targets[0] = 1e300;
  check_error<ShapeError>([&] { narrow.evaluate(random_adapter<float>(narrow.layout()), bad, 1); },
                          {"target of example 0", "finite"});
}

}  // namespace fedlora::tests
