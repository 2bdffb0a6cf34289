// SPDX-License-Identifier: Apache-2.0
// Adapters over layouts whose labels stand in another order, and what an adapter keeps beside PEFT's fields.
#include <doctest/doctest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "fedlora/hf/adapter_metadata.hpp"
#include "fedlora/hf/peft.hpp"
#include "support.hpp"

namespace fedlora::tests {
namespace {

using Strings = std::vector<std::string>;

/// A head of two inputs with a row for each label; row i holds i + 1, and its bias too.
std::shared_ptr<AdapterLayout> head_layout(const Strings& labels) {
  auto layout = std::make_shared<AdapterLayout>();
  layout->modules_to_save = {"classifier"};
  layout->id2label = labels;
  layout->output_layer = "classifier";
  layout->add_saved("classifier.weight", {static_cast<Index>(labels.size()), 2});
  layout->add_saved("classifier.bias", {static_cast<Index>(labels.size())});
  return layout;
}

/// Writes such an adapter; unless `named`, as PEFT would: without the labels' names.
void write_head(const std::filesystem::path& path, const Strings& labels, bool named = true) {
  const auto layout = head_layout(labels);
  if (!named) layout->id2label.clear();
  Adapter<float> adapter(layout);
  const auto rows = static_cast<Index>(labels.size());
  for (Index i = 0; i < 3 * rows; ++i)
    adapter.values()[static_cast<std::size_t>(i)] = static_cast<float>(i < 2 * rows ? i / 2 + 1 : i - 2 * rows + 1);
  save_peft(adapter, path);
}

/// The rows that the labels of a layout got, by what stands in them.
Strings rows_of(const Adapter<float>& adapter) {
  const auto labels = static_cast<Index>(adapter.layout().id2label.size());
  Strings rows;
  for (Index i = 0; i < labels; ++i) {
    const auto value = [&](Index k) { return static_cast<int>(adapter.values()[static_cast<std::size_t>(k)]); };
    CHECK(value(2 * i) == value(2 * i + 1));
    CHECK(value(2 * i) == value(2 * labels + i));
    rows.push_back(std::to_string(value(2 * i)));
  }
  return rows;
}

std::shared_ptr<AdapterLayout> with_context(const AdapterContext& context) {
  auto layout = head_layout({"a", "b"});
  layout->context = context;
  return layout;
}

}  // namespace

TEST_CASE("labels in another order take their rows with them") {
  const TemporaryDirectory directory;
  write_head(directory.path(), {"no", "maybe", "yes"});
  Strings notes;
  CHECK(rows_of(load_peft<float>(directory.path(), head_layout({"yes", "no", "maybe"}), &notes)) ==
        Strings{"3", "1", "2"});
  CHECK(notes.empty());
  save_peft(load_peft<float>(directory.path(), head_layout({"yes", "no", "maybe"})), directory.path() / "again");
  CHECK(read_peft_config(directory.path() / "again").id2label == Strings{"yes", "no", "maybe"});
  CHECK(rows_of(load_peft<float>(directory.path() / "again", head_layout({"no", "maybe", "yes"}))) ==
        Strings{"1", "2", "3"});
}

TEST_CASE("a head for other labels is refused with both") {
  const TemporaryDirectory directory;
  write_head(directory.path(), {"no", "maybe", "yes"});
  const auto load = [&](const Strings& labels) {
    return [&directory, labels] { load_peft<float>(directory.path(), head_layout(labels)); };
  };
  check_error<ConfigError>(load({"no", "perhaps", "yes"}),
                           {"adapter_model.safetensors, metadata id2label",
                            "the labels 'no', 'perhaps', 'yes', in any order", "got 'no', 'maybe', 'yes'"});
  check_error<ConfigError>(load({"no", "yes"}), {"the labels 'no', 'yes'", "got 'no', 'maybe', 'yes'"});
  check_error<ConfigError>(load({"0", "1", "2"}), {"the labels '0', '1', '2'"});
  write_head(directory.path(), {"no", "no", "yes"});
  check_error<FormatError>(load({"no", "yes"}), {"metadata id2label", "every label once", "'no' twice"});
  write_head(directory.path(), {"", "", ""}, false);
  check_error<ConfigError>(load({"no", "yes"}), {"a head for the labels 'no', 'yes'", "one of 3 rows"});
}

TEST_CASE("an adapter that names no labels has the base's where they fit, and a note says which row is which") {
  const TemporaryDirectory directory;
  write_head(directory.path(), {"1", "2"}, false);
  const auto load = [&](const Strings& labels, const Strings& base) {
    const auto layout = head_layout(labels);
    layout->base_id2label = base;
    Strings notes;
    const Strings rows = rows_of(load_peft<float>(directory.path(), layout, &notes));
    return std::pair{rows, notes.empty() ? "" : notes[0].substr(notes[0].find(" does not"))};
  };
  CHECK(load({"negative", "positive"}, {"positive", "negative"}) == std::pair{Strings{"2", "1"}, std::string()});
  CHECK(
      load({"Negative", "Positive"}, {"positive", "negative"}) ==
      std::pair{Strings{"2", "1"}, std::string(" does not name its labels: 'Negative' = row 1 (negative), 'Positive' = "
                                               "row 0 (positive)")});
  // Nothing says that the base's other names are this head's.
  CHECK(load({"spam", "ham"}, {"positive", "negative"}).first == Strings{"1", "2"});
  CHECK(load({"ham", "spam"}, {}).second ==
        " does not name its labels: 'ham' = row 0 (LABEL_0), 'spam' = row 1 (LABEL_1)");
  CHECK(load({"1", "0"}, {}).first == Strings{"2", "1"});
}

TEST_CASE("what PEFT has no field for is kept in the tensors' metadata") {
  const AdapterContext context{Pooling::mean, 128, ProblemType::regression, "0123456789abcdef", true};
  const TemporaryDirectory directory;
  save_peft(Adapter<float>(with_context(context)), directory.path());
  CHECK(read_peft_config(directory.path()).context == context);
  const SafetensorsFile file(map_file(directory.path() / "adapter_model.safetensors"));
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.metadata().at("id2label") == R"(["a","b"])");
  CHECK(Json::parse(file.metadata().at("fedlora")) == Json({{"version", 1},
                                                            {"pooling", "mean"},
                                                            {"max_tokens", 128},
                                                            {"problem_type", "regression"},
                                                            {"base_digest", "0123456789abcdef"},
                                                            {"text_pairs", true}}));
  CHECK_FALSE(adapter_metadata(*with_context({})).contains("fedlora"));
  for (const Pooling pooling : {Pooling::first_token, Pooling::last_token, Pooling::mean})
    CHECK(adapter_context_of(adapter_metadata(*with_context({pooling, 0, {}, {}})), "f").pooling == pooling);
}

TEST_CASE("tensors that another pooling has no use for are missing, and the message says why") {
  const TemporaryDirectory directory;
  save_peft(Adapter<float>(with_context({Pooling::mean, 0, {}, "aa"})), directory.path());
  const auto layout = with_context({Pooling::first_token, 0, {}, "bb"});
  layout->add_saved("bert.pooler.dense.bias", {2});
  Strings notes;
  check_error<FormatError>([&] { load_peft<float>(directory.path(), layout, &notes); },
                           {"missing 'base_model.model.bert.pooler.dense.bias'",
                            "was trained with pooling mean, the model here has cls", "over a base with digest aa"});
}

TEST_CASE("metadata that is not understood is refused by name") {
  const auto read = [](const std::string& json) { return [json] { adapter_context_of({{"fedlora", json}}, "f"); }; };
  CHECK(adapter_context_of({{"fedlora", R"({"version":1})"}}, "f") == AdapterContext{});
  check_error<FormatError>(read(R"({"version":2})"), {"f, metadata fedlora, field version", "a newer fedlora"});
  check_error<FormatError>(read(R"({"version":1,"temperature":2})"), {"field temperature", "does not know"});
  check_error<FormatError>(read(R"({"version":1,"pooling":"max"})"), {"field pooling", "cls, last or mean", "'max'"});
  check_error<FormatError>(read(R"({"version":1,"problem_type":"x"})"), {"field problem_type", "'x'"});
  check_error<FormatError>(read(R"({"version":1,"max_tokens":-1})"), {"field max_tokens", "-1"});
  check_error<FormatError>(read(R"({"version":1,"text_pairs":"both"})"), {"field text_pairs"});
  check_error<FormatError>(read("{}"), {"version"});
  check_error<FormatError>(read("[]"), {"an object"});
  check_error<FormatError>(read("{"), {"JSON"});
}

TEST_CASE("a model that reads texts otherwise than the adapter's is told of it, or refused") {
  const TemporaryDirectory directory;
  save_peft(Adapter<float>(with_context({Pooling::mean, 128, ProblemType::single_label, "aa"})), directory.path());
  const auto notes_for = [&](const AdapterContext& here) {
    Strings notes;
    load_peft<float>(directory.path(), with_context(here), &notes);
    return notes;
  };
  CHECK(notes_for({}).empty());
  CHECK(notes_for({.text_pairs = true}).empty());  // the file does not say
  CHECK(notes_for({Pooling::mean, 128, ProblemType::single_label, "aa"}).empty());
  const Strings told = notes_for({Pooling::first_token, 64, ProblemType::single_label, "bb"});
  REQUIRE(told.size() == 3);
  CHECK(has(told[0], "was trained with pooling mean, the model here has cls"));
  CHECK(has(told[1], "texts of up to 128 tokens, here they are cut at 64"));
  CHECK(has(told[2], "warning: "));
  CHECK(has(told[2], "over a base with digest aa"));
  CHECK(has(told[2], " has bb"));
  check_error<ConfigError>(
      [&] {
        load_peft<float>(directory.path(), with_context({Pooling::last_token, 0, {}, {}}));
      },
      {"metadata pooling", "last, the model's", "with `notes`", "mean"});
  check_error<ConfigError>(
      [&] {
        load_peft<float>(directory.path(), with_context({Pooling::mean, 64, {}, "bb"}));
      },
      {"metadata base_digest", "bb, that of", "with `notes`", "aa, an adapter for another base"});
  CHECK_NOTHROW(load_peft<float>(directory.path(), with_context({Pooling::mean, 64, {}, "aa"})));
  check_error<ConfigError>(
      [&] {
        notes_for({{}, 0, ProblemType::regression, {}});
      },
      {"metadata problem_type", "regression", "single_label_classification"});
  for (const bool pairs : {false, true}) {
    save_peft(Adapter<float>(with_context({.text_pairs = pairs})), directory.path());
    CHECK(notes_for({.text_pairs = pairs}).empty());
    const Strings other = notes_for({.text_pairs = !pairs});
    REQUIRE(other.size() == 1);
    CHECK(has(other[0], pairs ? "was trained on pairs of texts, here each example has one text"
                              : "was trained on single texts, here they come in pairs"));
    CHECK_NOTHROW(load_peft<float>(directory.path(), with_context({.text_pairs = !pairs})));
  }
}

}  // namespace fedlora::tests
