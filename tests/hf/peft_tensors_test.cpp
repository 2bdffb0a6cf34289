// SPDX-License-Identifier: Apache-2.0
// What may stand in adapter_model.safetensors beside the adapter, and what an adapter is for.
#include "fedlora/hf/peft_tensors.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "errors.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/hf/task.hpp"
#include "support.hpp"

namespace fedlora::tests {
namespace {

namespace fs = std::filesystem;

/// A tensor of single precision, row after row.
struct NamedTensor {
  std::string name;
  std::vector<Index> shape;
  std::vector<float> values;
};

void write_tensors(const fs::path& file, const std::vector<NamedTensor>& tensors, Dtype dtype = Dtype::f32) {
  std::vector<TensorToWrite> list;
  std::vector<std::vector<std::uint16_t>> halves(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    for (const float value : tensors[i].values) halves[i].push_back(float_to_bf16(value));
    list.push_back(
        {tensors[i].name, dtype, tensors[i].shape,
         dtype == Dtype::f32 ? std::as_bytes(std::span(tensors[i].values)) : std::as_bytes(std::span(halves[i]))});
  }
  write_text(file, safetensors_bytes(list, {}));
}

/// An adapter of one module of a causal model, and a base of three tokens; tensors may come beside it.
struct OneModule {
  TemporaryDirectory directory;
  fs::path base = directory.path() / "base", adapter = directory.path() / "adapter";
  std::shared_ptr<AdapterLayout> layout = std::make_shared<AdapterLayout>();
  const std::vector<float> embeddings = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f};

  OneModule() {
    layout->config.rank = 1;
    layout->config.alpha = 1;
    layout->task = TaskType::causal_lm;
    layout->base_model = base.string();
    layout->target_modules = {"q"};
    layout->add_site("q", 2, 1, 1, 1);
    save_peft(Adapter<float>(layout), adapter);
    fs::create_directory(base);
    write_tensors(base / "model.safetensors", {{"embed_tokens.weight", {3, 2}, embeddings}});
  }

  /// Loads the adapter with these tensors beside its own, or instead of them.
  std::vector<std::string> load(const std::vector<NamedTensor>& beside, Dtype dtype = Dtype::f32,
                                const std::string& a = "base_model.model.q.lora_A.weight") {
    std::vector<NamedTensor> all = {{a, {1, 2}, {1, 2}}, {"base_model.model.q.lora_B.weight", {1, 1}, {3}}};
    all.insert(all.end(), beside.begin(), beside.end());
    write_tensors(adapter / "adapter_model.safetensors", all, dtype);
    std::vector<std::string> notes;
    const auto read = load_peft<float>(adapter, layout, &notes);
    CHECK(std::vector<float>(read.values().begin(), read.values().end()) == std::vector<float>{1, 2, 3});
    return notes;
  }
};

const std::string input_key = "base_model.model.model.embed_tokens.weight",
                  output_key = "base_model.model.lm_head.weight";

}  // namespace

TEST_CASE("embeddings that are the base's own are passed over with a note") {
  OneModule one;
  CHECK(one.load({}).empty());
  const auto notes = one.load({{input_key, {3, 2}, one.embeddings}, {output_key, {3, 2}, one.embeddings}});  // tied
  REQUIRE(notes.size() == 1);
  CHECK(has(notes[0], "passes over lm_head.weight, model.embed_tokens.weight, which PEFT saved with the adapter"));
  CHECK(has(notes[0], "which are the base's own"));
}

TEST_CASE("embeddings that are the base's but for rounding are told apart") {
  OneModule one;
  const auto notes = one.load({{input_key, {3, 2}, one.embeddings}}, Dtype::bf16);
  REQUIRE(notes.size() == 1);
  CHECK(has(notes[0],
            "model.embed_tokens.weight equals the base's but for rounding to BF16: the base's is used, peft "
            "takes the rounded"));
  CHECK_FALSE(has(notes[0], "the base's own"));
}

TEST_CASE("embeddings that modules_to_save names are said to be a module saved whole") {
  OneModule one;
  Json config = Json::parse(read_text(one.adapter / "adapter_config.json"));
  config["modules_to_save"] = {"lm_head"};
  write_text(one.adapter / "adapter_config.json", config.dump());
  const std::vector<float> trained = {1, 2, 3, 4, 5, 6};
  const auto with = [&](const std::string& key) {
    return [&one, &trained, key] { one.load({{key, {3, 2}, trained}}); };
  };
  check_error<ConfigError>(with(output_key),
                           {"others: a module that was trained and saved whole, as modules_to_save says",
                            "merge it in PEFT (merge_and_unload)"});
  check_error<ConfigError>(with(input_key), {"over a resized vocabulary"});
}

TEST_CASE("an adapted embedding is refused with what to do") {
  OneModule one;
  check_error<ConfigError>(
      [&] {
        one.load({{"base_model.model.model.embed_tokens.lora_embedding_A", {1, 3}, {1, 2, 3}}});
      },
      {"tensor 'base_model.model.model.embed_tokens.lora_embedding_A'",
       "an adapted embedding, which is not supported: train without the embeddings in target_modules, or merge it in "
       "PEFT (merge_and_unload), save the result and take that as the base"});
}

TEST_CASE("other embeddings are refused, and the message says what they are") {
  OneModule one;
  std::vector<float> changed = one.embeddings, longer = one.embeddings;
  changed[5] += 0.01f;
  longer.insert(longer.end(), {7, 8});
  const auto with = [&](const std::vector<float>& values, Index rows) {
    return [&one, values, rows] { one.load({{input_key, {rows, 2}, values}}); };
  };
  check_error<ConfigError>(with(changed, 3), {"tensor 'base_model.model.model.embed_tokens.weight'", "the values in ",
                                              "others: the base's embeddings, which PEFT saves with an adapter over a "
                                              "resized vocabulary",
                                              "merge it in PEFT"});
  check_error<ConfigError>(with(longer, 4), {"shape (3, 2), as in ", "(4, 2): the base's embeddings"});
  one.layout->base_model = "org/somewhere";
  check_error<ConfigError>(with(one.embeddings, 3), {"'org/somewhere' is no directory"});
  fs::remove(one.base / "model.safetensors");
  write_tensors(one.base / "model.safetensors", {{"other.weight", {3, 2}, one.embeddings}});
  one.layout->base_model = one.base.string();
  check_error<ConfigError>(with(one.embeddings, 3), {"a tensor of ", "none of that name"});
}

TEST_CASE("PEFT's own name in a key is read as PEFT reads it; others are refused, not passed over") {
  OneModule one;
  CHECK(one.load({}, Dtype::f32, "base_model.model.q.lora_A.default.weight").empty());
  const auto named = [&](const std::string& key) { return [&one, key] { one.load({}, Dtype::f32, key); }; };
  check_error<FormatError>(named("base_model.model.q.lora_A.client7.weight"),
                           {"tensor 'base_model.model.q.lora_A.client7.weight'", "under the name 'client7'"});
  check_error<FormatError>(named("q.lora_A.weight"), {"tensor 'q.lora_A.weight'", "starts with base_model.model."});
  check_error<FormatError>(
      [&] {
        one.load({{"base_model.model.q.lora_A.default.weight", {1, 2}, {1, 2}}});
      },
      {"every tensor once", "'base_model.model.q.lora_A.weight' too"});
  check_error<ConfigError>(
      [&] {
        one.load({{"base_model.model.classifier.modules_to_save.default.weight", {1}, {1}}});
      },
      {"a state dict of PEFT's wrappers, which is not supported: write it with save_pretrained"});
  check_error<ConfigError>(
      [&] {
        one.load({{"base_model.model.q.base_layer.bias", {1}, {1}}});
      },
      {"of the base itself"});
}

TEST_CASE("what an adapter is for is told by task_type, auto_mapping, then the base's architectures") {
  ModelConfig config;
  const FileSet model = FileSet::memory("base", {});
  std::optional<PeftConfig> adapter;
  const auto task = [&](bool causal = true, bool has_head = false) {
    return task_of(config, model, causal, has_head, adapter, "adapter");
  };
  check_error<ConfigError>(task, {"base/config.json, field architectures", "an adapter whose task_type says"});
  CHECK(task(true, true) == TaskType::sequence_classification);
  config.architectures = {"LlamaModel", "LlamaForCausalLM"};
  CHECK(task() == TaskType::causal_lm);
  adapter.emplace();
  CHECK(task() == TaskType::causal_lm);
  adapter->base_class = "LlamaForSequenceClassification";
  CHECK(task() == TaskType::sequence_classification);
  adapter->task = TaskType::causal_lm;
  CHECK(task() == TaskType::causal_lm);
  check_error<ConfigError>([&] { task(false); },
                           {"adapter/adapter_config.json, field task_type", "base is an encoder", "CAUSAL_LM"});
  adapter->task.reset();
  for (const char* other : {"BertForTokenClassification", "BertForQuestionAnswering", "BertModel"}) {
    adapter->base_class = other;
    check_error<ConfigError>(task, {"field auto_mapping.base_model_class", other});
  }
  adapter->base_class.clear();
  config.architectures = {"BertForMaskedLM"};
  check_error<ConfigError>([&] { task(false, true); },  // a head for tokens has the same name
                           {"base/config.json, field architectures",
                            "task_type SEQ_CLS or CAUSAL_LM in adapter/adapter_config.json", "BertForMaskedLM"});
  config.architectures = {"BertLMHeadModel"};
  check_error<ConfigError>([&] { task(false); }, {"base/config.json, field architectures", "encoder"});
}

TEST_CASE("an adapter over the checkpoint's own head has no task_type, as PEFT would look for the head in it") {
  const TemporaryDirectory directory;
  auto layout = std::make_shared<AdapterLayout>();
  layout->config.freeze_head = true;
  layout->target_modules = {"q"};
  layout->add_site("q", 2, 1, 8, 8);
  save_peft(Adapter<float>(layout), directory.path());
  CHECK(Json::parse(read_text(directory.path() / "adapter_config.json"))["task_type"].is_null());
  CHECK(read_peft_config(directory.path()).lora.freeze_head);
  layout->task = TaskType::causal_lm;
  save_peft(Adapter<float>(layout), directory.path());
  CHECK(read_peft_config(directory.path()).task == TaskType::causal_lm);
  CHECK_FALSE(read_peft_config(directory.path()).lora.freeze_head);
}

}  // namespace fedlora::tests
