// SPDX-License-Identifier: Apache-2.0
// Adapter directories that peft wrote, over the checkpoints they were made for: the same answers as transformers and
// peft, and directories that say the same when this library has written them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <type_traits>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/hf/task.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/lora/language_model.hpp"
#include "lora/golden.hpp"
#include "support.hpp"

using namespace fedlora;
using tests::Golden;
namespace fs = std::filesystem;

namespace {

Json sorted_lists(Json config) {
  for (auto& [field, value] : config.items())
    if (value.is_array()) std::sort(value.begin(), value.end());
  return config;
}

template <class Arch, class T>
void check_family(const std::string& family) {
  using B = CpuBackend<T, EigenGemm>;
  const Golden golden(family);
  const auto written = golden.directory / "peft_adapter";
  const PeftConfig config = read_peft_config(written);
  CHECK(config.task == TaskType::sequence_classification);
  REQUIRE(config.num_labels == 3);

  auto base = load_pretrained<Arch>(B{}, FileSet::directory(golden.directory));
  base.name = config.base_model;  // where peft found it
  const SequenceClassifier<Arch, B> model(base, {.labels = {"x", "y", "z"}, .base_dropout = 0.0}, config.lora);
  const Adapter<T> adapter = load_peft<T>(written, model.layout());
  const auto expected = golden.tensor("peft.logits");
  const auto logits = model.logits(adapter, golden.dataset(), 1);
  REQUIRE(logits.size() == expected.size());
  CHECK(tests::relative_error(logits, expected) <= tests::golden_tolerance<T>);

  const tests::TemporaryDirectory directory;
  save_peft(adapter, directory.path() / "adapter");
  const Adapter<T> back = load_peft<T>(directory.path() / "adapter", model.layout());
  CHECK(std::memcmp(back.values().data(), adapter.values().data(), adapter.values().size_bytes()) == 0);
  CHECK(read_peft_config(directory.path() / "adapter").id2label == std::vector<std::string>{"x", "y", "z"});
  const Json before = sorted_lists(Json::parse(tests::read_text(written / "adapter_config.json")));
  const Json after = sorted_lists(Json::parse(tests::read_text(directory.path() / "adapter" / "adapter_config.json")));
  for (const auto& [field, value] : before.items())
    if (field != "peft_version") CHECK(after.at(field) == value);
  CHECK(after.size() == before.size());
}

/// What the base with the adapter answers to the family's inputs: logits, or the mean loss of every row of a language
/// model that predicts something. The task is told as the programs tell it.
template <class Base>
std::vector<double> answers(const Base& base, const FileSet& files, const fs::path& adapter, const Dataset& data,
                            std::vector<std::string>& notes) {
  using Arch = typename std::remove_cvref_t<decltype(*base.transformer)>::Arch;
  using B = CpuBackend<double, EigenGemm>;
  const PeftConfig config = read_peft_config(adapter);
  const TaskType task = task_of(base, files, config, adapter.string());
  std::vector<double> result;
  if (task == TaskType::sequence_classification) {
    const SequenceClassifier<Arch, B> model(base, {.labels = adapter_labels(config, {}), .base_dropout = 0.0},
                                            config.lora);
    return model.logits(load_peft<double>(adapter, model.layout(), &notes), data, 1);
  }
  if constexpr (Arch::causal) {
    const LanguageModel<Arch, B> model(base, {.base_dropout = 0.0}, config.lora);
    for (const auto& loss : model.losses(load_peft<double>(adapter, model.layout(), &notes), data, 1))
      if (loss.tokens > 0) result.push_back(loss.nll / static_cast<double>(loss.tokens));
  }
  return result;
}

}  // namespace

TEST_CASE("RoBERTa gives a padding token in a text no position of its own, and counts on without it") {
  using B = CpuBackend<double, EigenGemm>;
  const Golden golden("roberta");
  const fs::path written = golden.directory / "peft_adapter";
  const SequenceClassifier<Roberta, B> model(load_pretrained<Roberta>(B{}, FileSet::directory(golden.directory)),
                                             {.labels = {"x", "y", "z"}, .base_dropout = 0.0},
                                             read_peft_config(written).lora);
  Dataset data;
  const std::vector<std::int32_t> within = {0, 5, 1, 7, 1, 1, 9, 2}, first = {1, 4, 5, 2};
  for (const auto& ids : {within, first}) data.append(ids, std::vector<std::int32_t>(ids.size(), 0));
  // By transformers 5.24 and peft 0.21, with an attention mask of ones, as their tokenizers give it.
  const std::vector<double> expected = {-0.0402067382919455, -0.266949245875964, -0.113872363451104,
                                        -0.116135189958571,  0.240640219355275,  0.214451693342652};
  std::vector<std::string> notes;
  CHECK(tests::relative_error(model.logits(load_peft<double>(written, model.layout(), &notes), data, 1), expected) <
        1e-12);
}

TEST_CASE("an adapter for BERT is peft's") { check_family<Bert, double>("bert"); }
TEST_CASE("an adapter for DistilBERT is peft's") { check_family<DistilBert, double>("distilbert"); }
TEST_CASE("an adapter for RoBERTa is peft's") { check_family<Roberta, double>("roberta"); }
TEST_CASE("an adapter for Llama is peft's") { check_family<Llama, double>("llama"); }

TEST_CASE("adapters whose configuration says it in other ways answer what peft answers") {
  const fs::path directory = fs::path(FEDLORA_TEST_DIR) / "golden" / "adapters";
  const Json cases = parse_json(map_file(directory / "cases.json"));
  REQUIRE(cases.size() == 21);
  for (const auto& entry : cases.items()) {
    const std::string name = entry.key();
    const Json& expected = entry.value();
    CAPTURE(name);
    const Golden golden(expected["family"].get<std::string>());
    const FileSet files =
        FileSet::directory(fs::path(FEDLORA_TEST_DIR) / "golden" / expected["base"].get<std::string>());
    std::vector<std::string> notes;
    const std::vector<double> got = with_pretrained(CpuBackend<double, EigenGemm>{}, files, [&](const auto& base) {
      return answers(base, files, directory / name, golden.dataset(), notes);
    });
    std::vector<double> wanted;
    for (const Json& row : expected["answer"])
      for (const Json& value : row.is_array() ? row : Json::array({row})) wanted.push_back(value.get<double>());
    REQUIRE(got.size() == wanted.size());
    CHECK(tests::relative_error(got, wanted) <= 1e-12);

    PeftConfig config = read_peft_config(directory / name);
    CHECK(config.notes.size() == (name == "fan_in_fan_out" || name == "written_by_peft_0_2" ? 1 : 0));
    CHECK(notes.size() == config.notes.size() + (name.starts_with("embeddings_") ? 1 : 0));
  }
}
