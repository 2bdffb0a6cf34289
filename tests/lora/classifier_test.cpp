// SPDX-License-Identifier: Apache-2.0
// What a classifier promises apart from its gradients: batches are only a matter of packing, evaluation is repeatable,
// heads come from the checkpoint or from a seed, and bad input is refused by name.
#include "fedlora/lora/classifier.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../errors.hpp"
#include "../nn/tiny.hpp"

namespace fedlora::tests {
namespace {

using Model = SequenceClassifier<Bert, CpuBackend<double>>;
using Loss = std::pair<double, std::vector<double>>;

const LoraConfig everywhere{.rank = 2, .alpha = 3, .target_modules = {"all-linear"}};

Loss train(const Model& model, const Adapter<double>& adapter, const Dataset& data, const std::vector<Index>& examples,
           double weight = 1, const StepAddress& address = {}) {
  Model::Workspace workspace(model.backend());
  std::vector<double> gradient(adapter.values().size(), 0.0);
  const double loss = model.accumulate_gradient(workspace, data, examples, adapter.values(), gradient, weight, address);
  return {loss, gradient};
}

std::vector<double> part_of(const std::vector<double>& all, Index example) {
  return {all.begin() + 3 * example, all.begin() + 3 * example + 3};
}

}  // namespace

TEST_CASE("pad tokens at the end of a text do not stand for it, where the configuration names one") {
  using Decoder = SequenceClassifier<Llama, CpuBackend<double>>;
  Dataset data;
  const std::vector<std::vector<std::int32_t>> texts = {{1, 5, 7}, {1, 5, 7, 2, 2}, {1, 2, 7}, {2, 2}, {2}};
  for (const auto& text : texts) data.append(text, std::vector<std::int32_t>(text.size(), 0));
  for (const Json& pad : {Json(2), Json(nullptr), Json(-1)}) {
    const Decoder model(tiny_base<Llama>(1, {{"pad_token_id", pad}}), {}, {.rank = 2, .target_modules = {"q_proj"}});
    const std::vector<double> logits = model.logits(random_adapter<double>(model.layout()), data, 1);
    const bool passes_over = pad == 2;
    CHECK((difference(part_of(logits, 0), part_of(logits, 1)) <= 1e-13) == passes_over);
    CHECK(difference(part_of(logits, 0), part_of(logits, 2)) > 1e-6);      // one in the middle stays
    CHECK((difference(part_of(logits, 3), part_of(logits, 4)) <= 1e-13));  // of nothing but them the first; equal rows
  }
}

TEST_CASE("examples packed together are what they are one by one, in any order") {
  for (const bool mean : {false, true}) {
    const Model model(tiny_base<Bert>(), {.pooling = mean ? Pooling::mean : Pooling::first_token, .base_dropout = 0.0},
                      everywhere);
    const auto adapter = random_adapter<double>(model.layout());
    const Dataset data = tiny_data({4, 1, 12, 2, 7});
    const std::vector<double> together = model.logits(adapter, data, 1);
    const auto [loss, gradient] = train(model, adapter, data, all_of(data));

    double loss_sum = 0;
    std::vector<double> gradient_sum(gradient.size(), 0.0);
    for (Index i = 0; i < data.size(); ++i) {
      Dataset one;
      const auto length = static_cast<std::size_t>(data.length(i));
      const auto first = static_cast<std::size_t>(data.offsets[static_cast<std::size_t>(i)]);
      one.append(std::span(data.tokens).subspan(first, length), std::span(data.token_types).subspan(first, length));
      CHECK(difference(model.logits(adapter, one, 1), part_of(together, i)) <= 1e-12);
      const auto [loss_here, gradient_here] = train(model, adapter, data, {i});
      loss_sum += loss_here;
      for (std::size_t k = 0; k < gradient.size(); ++k) gradient_sum[k] += gradient_here[k];
    }
    CHECK(loss == doctest::Approx(loss_sum).epsilon(1e-13));
    CHECK(difference(gradient, gradient_sum) <= 1e-12);

    const std::vector<Index> order = {3, 0, 4, 2, 1};
    Dataset permuted;
    for (const Index i : order) {
      const auto length = static_cast<std::size_t>(data.length(i));
      const auto first = static_cast<std::size_t>(data.offsets[static_cast<std::size_t>(i)]);
      permuted.append(std::span(data.tokens).subspan(first, length),
                      std::span(data.token_types).subspan(first, length));
    }
    const std::vector<double> moved = model.logits(adapter, permuted, 1);
    for (std::size_t i = 0; i < order.size(); ++i)
      CHECK(difference(part_of(moved, static_cast<Index>(i)), part_of(together, order[i])) <= 1e-12);
    CHECK(difference(train(model, adapter, data, order).second, gradient) <= 1e-12);
  }
}

TEST_CASE("the gradient is added to, times the weight; the loss is not weighted") {
  const Model model(tiny_base<Bert>(), {}, everywhere);
  const auto adapter = random_adapter<double>(model.layout());
  const Dataset data = tiny_data({4, 2});
  const auto [loss, gradient] = train(model, adapter, data, all_of(data), 1);
  const auto [again, quarter] = train(model, adapter, data, all_of(data), 0.25);
  CHECK(loss == again);
  for (std::size_t i = 0; i < gradient.size(); ++i)
    CHECK(4 * quarter[i] == doctest::Approx(gradient[i]).epsilon(1e-12));
}

TEST_CASE("dropouts follow config.json, unless they are overridden, and are off in evaluation") {
  const Dataset data = tiny_data({4, 2, 5});
  const auto base = tiny_base<Bert>();
  LoraConfig dropped = everywhere;
  dropped.dropout = 0.5;
  const Model on(base, {}, everywhere), off(base, {.base_dropout = 0.0}, everywhere),
      own(base, {.base_dropout = 0.0}, dropped);
  const auto adapter = random_adapter<double>(on.layout());
  const double quiet = train(off, adapter, data, all_of(data)).first;
  CHECK(train(on, adapter, data, all_of(data)).first != quiet);
  CHECK(train(own, adapter, data, all_of(data)).first != quiet);
  CHECK(train(on, adapter, data, all_of(data), 1, {1}).first != train(on, adapter, data, all_of(data), 1, {2}).first);
  CHECK(train(off, adapter, data, all_of(data), 1, {1}).first == quiet);
  const double evaluated = off.evaluate(adapter, data, 1).loss * 3;
  CHECK(evaluated == doctest::Approx(quiet).epsilon(1e-13));
  CHECK(on.evaluate(adapter, data, 1).loss * 3 == evaluated);
  CHECK(own.logits(adapter, data, 1) == off.logits(adapter, data, 1));
}

TEST_CASE("every site draws its own mask") {
  for (const double dropout : {0.0, 0.25}) {
    const Model model(tiny_base<Bert>(), {.base_dropout = 0.0},
                      {.rank = 2, .dropout = dropout, .target_modules = {"query", "value"}});
    auto adapter = random_adapter<double>(model.layout());
    const MatrixView<double> query = adapter.a(0), value = adapter.a(1);
    std::copy_n(query.data, query.size(), value.data);
    const Dataset data = tiny_data({4, 2, 5});
    Model::Workspace workspace(model.backend());
    std::vector<double> gradient(adapter.values().size(), 0.0);
    model.accumulate_gradient(workspace, data, all_of(data), adapter.values(), gradient, 1, {});
    const auto kept = [&](LayerLinear which) {  // S = dropout(x) Aᵀ of the first block
      const MatrixView<double> s = workspace.blocks[0].s[static_cast<std::size_t>(which)];
      return std::vector<double>(s.data, s.data + s.size());
    };
    CHECK((kept(LayerLinear::query) == kept(LayerLinear::value)) == (dropout == 0.0));
  }
}

TEST_CASE("every block draws its own mask") {
  constexpr Index hidden = 8;
  const Model model(tiny_base<Bert>(1, {{"num_hidden_layers", 3}}), {.base_dropout = 0.0},
                    {.rank = hidden, .dropout = 0.5, .target_modules = {"query"}});
  auto adapter = random_adapter<double>(model.layout());
  for (std::size_t site = 0; site < adapter.layout().sites.size(); ++site) {  // A = 1: S is dropout(x) itself
    const MatrixView<double> a = adapter.a(site);
    for (Index i = 0; i < hidden; ++i)
      for (Index j = 0; j < hidden; ++j) a(i, j) = i == j ? 1.0 : 0.0;
  }
  const Dataset data = tiny_data({4, 2, 5});
  Model::Workspace workspace(model.backend());
  std::vector<double> gradient(adapter.values().size(), 0.0);
  model.accumulate_gradient(workspace, data, all_of(data), adapter.values(), gradient, 1, {});
  const auto mask = [&](std::size_t block) {
    const MatrixView<double> s = workspace.blocks[block].s[static_cast<std::size_t>(LayerLinear::query)];
    std::vector<bool> kept;
    for (Index i = 0; i < s.rows; ++i)
      for (Index j = 0; j < hidden; ++j) kept.push_back(s(i, j) != 0.0);
    return kept;
  };
  CHECK(mask(0).size() == 11 * hidden);
  CHECK(mask(0) != mask(1));
}

TEST_CASE("an adapter whose B is zero changes nothing") {
  const auto base = tiny_base<Bert>();
  const Dataset data = tiny_data({4, 2, 5});
  const Model adapted(base, {}, everywhere), bare(base, {}, {.head_only = true});
  CHECK(adapted.logits(adapted.initial_adapter(1), data, 1) == bare.logits(bare.initial_adapter(1), data, 1));
}

TEST_CASE("evaluation of many examples has the same bits on any number of threads") {
  std::vector<Index> lengths;
  for (Index i = 0; i < 150; ++i) lengths.push_back(1 + (i * 5) % 12);
  const Dataset data = tiny_data(lengths);
  const Model model(tiny_base<Bert>(), {}, everywhere);
  const auto adapter = random_adapter<double>(model.layout());
  const std::vector<double> logits = model.logits(adapter, data, 1);
  const Evaluation one = model.evaluate(adapter, data, 1);
  for (const int threads : {2, 3, 0}) {
    CHECK(model.logits(adapter, data, threads) == logits);
    CHECK(model.evaluate(adapter, data, threads).loss == one.loss);
  }
  double loss = 0;
  Index right = 0;
  std::vector<std::vector<Index>> confusion(3, std::vector<Index>(3, 0));
  for (Index i = 0; i < data.size(); ++i) {
    const auto row = part_of(logits, i);
    const auto label = static_cast<std::size_t>(data.labels[static_cast<std::size_t>(i)]);
    loss += std::log(std::exp(row[0]) + std::exp(row[1]) + std::exp(row[2])) - row[label];
    const auto predicted = static_cast<std::size_t>(std::max_element(row.begin(), row.end()) - row.begin());
    right += predicted == label ? 1 : 0;
    ++confusion[label][predicted];
  }
  CHECK(one.examples == 150);
  CHECK(one.loss == doctest::Approx(loss / 150).epsilon(1e-12));
  CHECK(one.accuracy == doctest::Approx(static_cast<double>(right) / 150));
  CHECK(one.confusion == confusion);
  const Evaluation empty = model.evaluate(adapter, Dataset{}, 1);
  CHECK(empty.examples == 0);
  CHECK(std::isnan(empty.loss));
}

TEST_CASE("evaluation batches hold every example once, within about a thousand rows") {
  std::vector<Index> lengths(200, 12);
  const Dataset data = tiny_data(lengths);
  const std::vector<Index> starts = evaluation_batches(data);
  CHECK(starts.front() == 0);
  CHECK(starts.back() == 200);
  CHECK(std::is_sorted(starts.begin(), starts.end()));
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    CHECK(starts[i + 1] > starts[i]);
    CHECK(starts[i + 1] - starts[i] <= 64);
    CHECK((starts[i + 1] - starts[i]) * 12 <= 1024);
  }
  CHECK(evaluation_batches(Dataset{}) == std::vector<Index>{0});
}

TEST_CASE("a head comes from the checkpoint where it fits, and from the seed where it does not") {
  const auto base = tiny_base<Bert>();
  const Model fits(base, {}, everywhere);
  CHECK(fits.labels() == std::vector<std::string>{"a", "b", "c"});
  CHECK(fits.notes().empty());
  const auto adapter = fits.initial_adapter(1);
  const auto saved = [](const Model& model, const Adapter<double>& from, const std::string& name) {
    const SavedTensor& tensor = *model.layout()->find_saved(name);
    return std::vector<double>(from.values().begin() + tensor.offset,
                               from.values().begin() + tensor.offset + tensor.size());
  };
  const auto weight = saved(fits, adapter, "classifier.weight");
  const MatrixView<const double> stored = base.head.at("classifier.weight").view<double>();
  CHECK(std::equal(weight.begin(), weight.end(), stored.data));
  CHECK(fits.layout()->find_saved("bert.pooler.dense.weight") == nullptr);

  std::vector<std::string> many;
  for (int i = 0; i < 200; ++i) many.push_back("label " + std::to_string(i));
  const Model more(base, {.labels = many}, everywhere);  // more labels than the head has
  REQUIRE(more.notes().size() == 1);
  CHECK(more.notes()[0].find("classifier: the checkpoint tiny has it for 'a', 'b', 'c', not for 'label 0', ") == 0);
  const auto drawn = saved(more, more.initial_adapter(1), "classifier.weight");
  double square = 0;
  for (const double value : drawn) square += value * value;
  CHECK(std::sqrt(square / 1600) == doctest::Approx(0.02).epsilon(0.1));  // initializer_range's default
  for (const double value : saved(more, more.initial_adapter(1), "classifier.bias")) CHECK(value == 0);
  CHECK(drawn == saved(more, more.initial_adapter(1), "classifier.weight"));
  CHECK(drawn != saved(more, more.initial_adapter(2), "classifier.weight"));

  auto headless = base;
  headless.head.clear();
  const Model none(headless, {.labels = {"x", "y"}}, everywhere);
  CHECK(none.notes().size() == 2);
  CHECK(none.layout()->find_saved("bert.pooler.dense.weight") != nullptr);
  const Model mean(headless, {.labels = {"x", "y"}, .pooling = Pooling::mean}, everywhere);
  CHECK(mean.notes().size() == 1);  // the pooler is for the first token
}

TEST_CASE("every label takes its own row of the checkpoint's head, whatever order the labels come in") {
  const auto base = tiny_base<Bert>();
  const MatrixView<const double> weight = base.head.at("classifier.weight").view<double>();
  const MatrixView<const double> bias = base.head.at("classifier.bias").view<double>();
  const auto check_rows = [&](const Model& model, const std::vector<Index>& rows) {
    const auto adapter = model.initial_adapter(1);
    const SavedTensor &w = *model.layout()->find_saved("classifier.weight"),
                      &b = *model.layout()->find_saved("classifier.bias");
    for (Index row = 0; row < 3; ++row) {
      const Index from = rows[static_cast<std::size_t>(row)];
      CHECK(std::equal(weight.row(from), weight.row(from) + 8, adapter.values().begin() + w.offset + row * 8));
      CHECK(adapter.values()[static_cast<std::size_t>(b.offset + row)] == bias(0, from));
    }
    CHECK(model.layout()->id2label == model.labels());
  };
  const Model turned(base, {.labels = {"c", "a", "b"}}, everywhere);
  check_rows(turned, {2, 0, 1});
  CHECK(turned.notes().empty());
  const Model folded(base, {.labels = {"B", "C", "A"}}, everywhere);
  check_rows(folded, {1, 2, 0});
  CHECK(folded.notes() ==
        std::vector<std::string>{"classifier of tiny: 'B' = row 1 (b), 'C' = row 2 (c), 'A' = row 0 (a)"});
  const Model numbered(base, {.labels = {"0", "1", "2"}}, everywhere);
  check_rows(numbered, {0, 1, 2});
  REQUIRE(numbered.notes().size() == 1);

  auto unnamed = tiny_base<Bert>(1, {{"id2label", nullptr}});
  const Model ordered(unnamed, {.labels = {"spam", "ham", "eggs"}}, everywhere);
  check_rows(ordered, {0, 1, 2});
  REQUIRE(ordered.notes().size() == 1);
  CHECK(ordered.notes()[0].ends_with("'eggs' = row 2 (LABEL_2); by order, as nothing tells which is which"));
  CHECK(Model(unnamed, {}, everywhere).labels() == std::vector<std::string>{"LABEL_0", "LABEL_1", "LABEL_2"});

  const Model other(base, {.labels = {"x", "y", "z"}}, everywhere);  // as many, and none of them the head's
  REQUIRE(other.notes().size() == 1);
  CHECK(other.notes()[0] ==
        "classifier: the checkpoint tiny has it for 'a', 'b', 'c', not for 'x', 'y', 'z'; initialised, "
        "trained and sent whole");
  const auto drawn = other.initial_adapter(1);
  const SavedTensor& tensor = *other.layout()->find_saved("classifier.weight");
  CHECK_FALSE(std::equal(weight.data, weight.data + weight.size(), drawn.values().begin() + tensor.offset));
  CHECK(drawn.values()[static_cast<std::size_t>(other.layout()->find_saved("classifier.bias")->offset)] == 0);
}

TEST_CASE("the layout says how the model around the adapter reads texts; a merged base says it for the model") {
  auto base = tiny_base<Bert>();
  base.digest = "feed";
  const Model model(base, {.pooling = Pooling::mean, .max_tokens = 7}, everywhere);
  CHECK(model.layout()->context == AdapterContext{Pooling::mean, 7, model.layout()->context.problem_type, "feed"});
  CHECK(model.layout()->output_layer == "classifier");
  CHECK(model.layout()->base_id2label == std::vector<std::string>{"a", "b", "c"});

  base.context = {Pooling::mean, 5, {}, {}};
  const Model merged(base, {}, everywhere);
  CHECK(merged.pooling() == Pooling::mean);
  CHECK(merged.max_tokens() == 5);
  const Model asked(base, {.pooling = Pooling::first_token, .max_tokens = 6}, everywhere);
  CHECK(asked.pooling() == Pooling::first_token);
  CHECK(asked.max_tokens() == 6);
}

TEST_CASE("bad input is refused, and the message says where") {
  const Model model(tiny_base<Bert>(), {}, everywhere);
  const auto adapter = random_adapter<double>(model.layout());
  Dataset data = tiny_data({4, 2});
  const auto trained = [&] { train(model, adapter, data, all_of(data)); };
  const auto evaluated = [&] { model.evaluate(adapter, data, 1); };
  for (const std::int32_t label : {3, -1, 1000}) {
    data.labels[1] = label;
    check_error<ShapeError>(trained, {"label of example 1", "[0, 3)", std::to_string(label)});
    check_error<ShapeError>(evaluated, {"label of example 1", "[0, 3)", std::to_string(label)});
  }
  data.labels.clear();
  check_error<ShapeError>(trained, {"labels", "2", "0"});
  check_error<ShapeError>(evaluated, {"labels", "2", "0"});
  data.labels = {0, 1};
  for (const std::int32_t token : {-1, 11, 30522}) {
    data.tokens[5] = token;
    check_error<ShapeError>(trained, {"row 5", "[0, 11)", std::to_string(token)});
    check_error<ShapeError>(evaluated, {"row 5", "[0, 11)", std::to_string(token)});
  }
  data.tokens[5] = 0;
  for (const std::int32_t type : {-1, 2}) {
    data.token_types[3] = type;
    check_error<ShapeError>(trained, {"row 3", "token type in [0, 2)", std::to_string(type)});
  }
  data = tiny_data({4, 13});
  check_error<ShapeError>(trained, {"sequence 1", "1 to 12 tokens", "13"});
  data = tiny_data({4, 2});
  check_error<ShapeError>([&] { train(model, adapter, data, {0, 2}); }, {"[0, 2)", "2"});

  const Model other(tiny_base<Bert>(), {}, {.rank = 2, .alpha = 4, .target_modules = {"all-linear"}});
  check_error<ShapeError>([&] { model.evaluate(random_adapter<double>(other.layout()), data, 1); }, {"layout"});
  check_error<ConfigError>([] { Model(tiny_base<Bert>(), {.max_tokens = 13}, everywhere); },
                           {"max_tokens", "1 to 12", "13"});
  check_error<ConfigError>([] { Model(tiny_base<Bert>(), {.max_tokens = -1}, everywhere); }, {"max_tokens", "-1"});
  CHECK(model.max_tokens() == 12);
  CHECK(Model(tiny_base<Bert>(), {.max_tokens = 5}, everywhere).max_tokens() == 5);
  check_error<ConfigError>(
      [] {
        auto headless = tiny_base<Bert>(1, {{"id2label", nullptr}});
        headless.head.clear();
        Model(headless, {}, everywhere);
      },
      {"at least one label"});
  LoraConfig without_head = everywhere;  // as of an adapter that brings none
  without_head.freeze_head = true;
  for (const Json& names : {Json(nullptr), Json{{"0", "a"}, {"1", "b"}}})
    check_error<ConfigError>(
        [&] {
          auto headless = tiny_base<Bert>(1, {{"id2label", names}});
          headless.head.clear();
          Model(headless, {}, without_head);
        },
        {"classifier of tiny", "a head, in the adapter or in the base", "modules_to_save", "in either"});
  check_error<ConfigError>(
      [&] {
        Model(tiny_base<Bert>(), {.labels = {"x", "y"}}, without_head);
      },
      {"none in the adapter, and in the base one for 'a', 'b', 'c'"});
  CHECK_NOTHROW(Model(tiny_base<Bert>(), {}, without_head));
  Table table;
  table.text = {"a"};
  check_error<ConfigError>([&] { model.encode(table); }, {"tiny", "tokenizer"});

  Model::Workspace workspace(model.backend());
  std::vector<double> gradient(adapter.values().size()), small(3);
  check_error<ShapeError>([&] { model.accumulate_gradient(workspace, data, all_of(data), small, gradient, 1, {}); },
                          {"parameters", "3"});
  check_error<ShapeError>(
      [&] { model.accumulate_gradient(workspace, data, all_of(data), adapter.values(), small, 1, {}); },
      {"gradient", "3"});
}

}  // namespace fedlora::tests
