// SPDX-License-Identifier: Apache-2.0
// Adapter directories that peft wrote, over the checkpoints they were made for: the same logits as transformers and
// peft, and directories that say the same when this library has written them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/lora/classifier.hpp"
#include "lora/golden.hpp"
#include "support.hpp"

using namespace fedlora;
using tests::Golden;

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

}  // namespace

TEST_CASE("an adapter for BERT is peft's") { check_family<Bert, double>("bert"); }
TEST_CASE("an adapter for DistilBERT is peft's") { check_family<DistilBert, double>("distilbert"); }
TEST_CASE("an adapter for RoBERTa is peft's") { check_family<Roberta, double>("roberta"); }
TEST_CASE("an adapter for Llama is peft's") { check_family<Llama, double>("llama"); }
