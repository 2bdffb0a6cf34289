// SPDX-License-Identifier: Apache-2.0
#include "fedlora/hf/peft.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "support.hpp"

using namespace fedlora;
using tests::has;
using tests::read_text;
using tests::TemporaryDirectory;
using tests::write_text;
namespace fs = std::filesystem;

namespace {

std::shared_ptr<AdapterLayout> small_layout() {
  auto layout = std::make_shared<AdapterLayout>();
  layout->config.rank = 2;
  layout->config.alpha = 4;
  layout->config.dropout = 0.1;
  layout->base_model = "org/tiny";
  layout->target_modules = {"query", "value"};
  layout->modules_to_save = {"classifier"};
  layout->id2label = {"negative", "positive \"!\""};
  layout->add_site("bert.layer.0.query", 3, 3, 2, 4);
  layout->add_site("bert.layer.0.value", 3, 5, 2, 4);
  layout->add_saved("classifier.weight", {2, 5});
  layout->add_saved("classifier.bias", {2});
  return layout;
}

template <class T>
Adapter<T> numbered(std::shared_ptr<const AdapterLayout> layout) {
  Adapter<T> adapter(std::move(layout));
  T next = T(0.1);
  for (T& value : adapter.values()) value = (next += T(0.37));
  return adapter;
}

/// Saves the small adapter, changes one field of its configuration, and returns what reading it says.
std::string refusal(const TemporaryDirectory& directory, const std::string& field, const Json& value) {
  const auto path = directory.path() / "adapter";
  save_peft(numbered<float>(small_layout()), path);
  Json config = Json::parse(read_text(path / "adapter_config.json"));
  config[field] = value;
  write_text(path / "adapter_config.json", config.dump());
  try {
    load_peft<float>(path, small_layout());
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// Overwrites the tensors with those of another layout and returns what loading says.
std::string mismatch(const TemporaryDirectory& directory, const std::shared_ptr<const AdapterLayout>& other) {
  const auto path = directory.path() / "adapter";
  save_peft(numbered<float>(other), path);
  try {
    load_peft<float>(path, small_layout());
  } catch (const FormatError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE_TEMPLATE("an adapter survives PEFT's format bit for bit", T, float, double) {
  const TemporaryDirectory directory;
  const auto layout = small_layout();
  const auto adapter = numbered<T>(layout);
  save_peft(adapter, directory.path() / "deep" / "adapter");
  const auto back = load_peft<T>(directory.path() / "deep" / "adapter", layout);
  CHECK(std::memcmp(back.values().data(), adapter.values().data(), adapter.values().size_bytes()) == 0);

  CHECK(read_text(directory.path() / "deep" / "adapter" / "adapter_model.safetensors") == peft_tensor_bytes(adapter));
  const SafetensorsFile file(map_file(directory.path() / "deep" / "adapter" / "adapter_model.safetensors"));
  CHECK(file.metadata().at("format") == "pt");
  const TensorView* a = file.find("base_model.model.bert.layer.0.query.lora_A.weight");
  REQUIRE(a != nullptr);
  CHECK(a->shape == std::vector<Index>{2, 3});
  const TensorView* b = file.find("base_model.model.bert.layer.0.value.lora_B.weight");
  REQUIRE(b != nullptr);
  CHECK(b->shape == std::vector<Index>{5, 2});
  CHECK(file.find("base_model.model.classifier.weight") != nullptr);
  CHECK(file.tensors().size() == 6);
}

TEST_CASE("the configuration comes back, labels too") {
  const TemporaryDirectory directory;
  save_peft(numbered<float>(small_layout()), directory.path() / "adapter");
  const PeftConfig config = read_peft_config(directory.path() / "adapter");
  CHECK(config.lora.rank == 2);
  CHECK(config.lora.alpha == 4);
  CHECK(config.lora.dropout == 0.1);
  CHECK_FALSE(config.lora.use_rslora);
  CHECK(config.lora.target_modules == std::vector<std::string>{"query", "value"});
  CHECK(config.lora.init == LoraInit::kaiming);
  CHECK(config.modules_to_save == std::vector<std::string>{"classifier"});
  CHECK(config.lora.modules_to_save.empty());
  CHECK(config.task == TaskType::sequence_classification);
  CHECK(config.base_model == "org/tiny");
  CHECK(config.id2label == std::vector<std::string>{"negative", "positive \"!\""});
  CHECK(config.num_labels == 2);
}

TEST_CASE("the variants of the configuration come back") {
  const TemporaryDirectory directory;
  auto layout = std::make_shared<AdapterLayout>();
  layout->config.rank = 4;
  layout->config.alpha = 1.5;
  layout->config.use_rslora = true;
  layout->config.init = LoraInit::gaussian;
  layout->config.target_pattern = ".*\\.(up|down)";
  layout->config.rank_pattern = {{"layer\\.0\\.up", 2}};
  layout->config.alpha_pattern = {{"down", 3.0}};
  layout->task = TaskType::causal_lm;
  layout->add_site("layer.0.up", 3, 3, 2, 1.5);
  layout->add_site("layer.0.down", 3, 3, 4, 3);
  save_peft(numbered<float>(layout), directory.path() / "adapter");
  const PeftConfig config = read_peft_config(directory.path() / "adapter");
  CHECK(config.lora.target_pattern == layout->config.target_pattern);
  CHECK(config.lora.target_modules.empty());
  CHECK(config.lora.rank_pattern == layout->config.rank_pattern);
  CHECK(config.lora.alpha_pattern == layout->config.alpha_pattern);
  CHECK(config.lora.alpha == 1.5);
  CHECK(config.lora.use_rslora);
  CHECK(config.lora.init == LoraInit::gaussian);
  CHECK(config.task == TaskType::causal_lm);
  CHECK(config.base_model.empty());
  CHECK(config.id2label.empty());
  CHECK_FALSE(config.num_labels.has_value());
  CHECK_NOTHROW(load_peft<float>(directory.path() / "adapter", layout));

  const Json json = Json::parse(read_text(directory.path() / "adapter" / "adapter_config.json"));
  CHECK(json["base_model_name_or_path"].is_null());
  CHECK(json["modules_to_save"].is_null());
  CHECK(json["alpha_pattern"]["down"].is_number_integer());
}

TEST_CASE("ranks that no pattern explains are written module by module; a head alone has PEFT's dummy target") {
  const TemporaryDirectory directory;
  auto layout = std::make_shared<AdapterLayout>();
  layout->config.rank = 4;
  layout->config.alpha = 8;
  layout->add_site("layer.0.up", 3, 3, 2, 4);
  layout->add_site("layer.1.up", 3, 3, 4, 8);
  save_peft(numbered<float>(layout), directory.path() / "ranks");
  const PeftConfig ranks = read_peft_config(directory.path() / "ranks");
  CHECK(ranks.lora.rank_pattern == std::map<std::string, Index>{{"layer.0.up", 2}});
  CHECK(ranks.lora.alpha_pattern == std::map<std::string, double>{{"layer.0.up", 4.0}});
  CHECK(ranks.lora.target_modules == std::vector<std::string>{"layer.0.up", "layer.1.up"});

  auto head = std::make_shared<AdapterLayout>();
  head->modules_to_save = {"score"};
  head->add_saved("score.weight", {4, 3});
  save_peft(numbered<float>(head), directory.path() / "head");
  const PeftConfig config = read_peft_config(directory.path() / "head");
  CHECK(config.lora.head_only);
  CHECK(config.num_labels == 4);
  CHECK_NOTHROW(load_peft<float>(directory.path() / "head", head));
}

TEST_CASE("a module inside a saved module is not named a second time") {
  CHECK(detail::outermost_modules({"classifier", "classifier.dense", "classifiers", "score"}) ==
        Json({"classifier", "classifiers", "score"}));
  CHECK(detail::outermost_modules({"classifier.dense"}) == Json::array({"classifier.dense"}));
  CHECK(detail::outermost_modules({}).is_null());
}

TEST_CASE("half-precision tensors are widened") {
  const TemporaryDirectory directory;
  auto layout = std::make_shared<AdapterLayout>();
  layout->config.rank = 1;
  layout->config.alpha = 1;
  layout->add_site("q", 2, 1, 1, 1);
  save_peft(numbered<float>(layout), directory.path());
  const std::uint16_t halves[2] = {0x3C00, 0xC100}, brain[1] = {0x3FC0};
  const TensorToWrite tensors[] = {
      {"base_model.model.q.lora_A.weight", Dtype::f16, {1, 2}, std::as_bytes(std::span(halves))},
      {"base_model.model.q.lora_B.weight", Dtype::bf16, {1, 1}, std::as_bytes(std::span(brain))}};
  write_text(directory.path() / "adapter_model.safetensors", safetensors_bytes(tensors, {}));
  const auto adapter = load_peft<float>(directory.path(), layout);
  CHECK(std::vector<float>(adapter.values().begin(), adapter.values().end()) == std::vector<float>{1.0f, -2.5f, 1.5f});
}

TEST_CASE("what PEFT can do and this library cannot is refused by name") {
  const TemporaryDirectory directory;
  CHECK(
      has(refusal(directory, "peft_type", "LOHA"), "adapter_config.json, field peft_type] expected LORA, got 'LOHA'"));
  CHECK(has(refusal(directory, "bias", "lora_only"), "field bias] expected none"));
  CHECK(has(refusal(directory, "use_dora", true), "field use_dora]"));
  CHECK(has(refusal(directory, "lora_bias", true), "field lora_bias]"));
  CHECK(has(refusal(directory, "layer_replication", {{0, 1}}), "field layer_replication]"));
  CHECK(has(refusal(directory, "target_parameters", {"experts"}), "field target_parameters]"));
  CHECK(has(refusal(directory, "enable_lora", {true, false}), "field enable_lora]"));
  CHECK(has(refusal(directory, "init_lora_weights", "pissa"), "field init_lora_weights]"));
  CHECK(has(refusal(directory, "task_type", "TOKEN_CLS"), "field task_type] expected SEQ_CLS, CAUSAL_LM or null"));
  CHECK(
      has(refusal(directory, "a_field_of_tomorrow", 1),
          "field a_field_of_tomorrow] expected a field of PEFT up to 0.21 (this one may change what the tensors mean"));
  for (const Json& off : {Json(nullptr), Json(false), Json(0), Json(""), Json::array(), Json::object()})
    CHECK(refusal(directory, "a_field_of_tomorrow", off) == "nothing was thrown");
  CHECK(refusal(directory, "task_type", nullptr) == "nothing was thrown");
}

TEST_CASE("a malformed configuration names file and field") {
  const TemporaryDirectory directory;
  CHECK(has(refusal(directory, "r", 0), "adapter_config.json, field r] expected a whole number in [1, 65536], got 0"));
  CHECK(has(refusal(directory, "r", 1e30), "field r]"));
  CHECK(has(refusal(directory, "r", "8"), "field r]"));
  CHECK(has(refusal(directory, "lora_dropout", 1.5), "field lora_dropout]"));
  CHECK(has(refusal(directory, "lora_alpha", "x"), "field lora_alpha]"));
  CHECK(has(refusal(directory, "rank_pattern", {{"q", -1}}), "field rank_pattern, 'q']"));
  CHECK(has(refusal(directory, "alpha_pattern", Json::array({1})), "field alpha_pattern]"));
  CHECK(has(refusal(directory, "target_modules", {1, 2}), "target_modules"));
  CHECK(has(refusal(directory, "modules_to_save", 3), "modules_to_save"));
  CHECK(has(refusal(directory, "lora_alpha", 16),
            "module bert.layer.0.query] expected lora_alpha and r with the layout's scale"));
  write_text(directory.path() / "adapter" / "adapter_config.json", "[]");
  CHECK_THROWS_AS(read_peft_config(directory.path() / "adapter"), FormatError);
}

TEST_CASE("layers_to_transform names the layers that there are tensors of") {
  const TemporaryDirectory directory;
  for (const Json& layers : {Json(0), Json::array({0}), Json::array({0, 5}), Json::array(), Json(nullptr)})
    CHECK(refusal(directory, "layers_to_transform", layers) == "nothing was thrown");
  for (const Json& layers : {Json(1), Json::array({1, 2})})
    CHECK(has(refusal(directory, "layers_to_transform", layers),
              "field layers_to_transform] expected every layer that there are tensors of, got " + layers.dump() +
                  ", without that of 'bert.layer.0.query'"));
}

TEST_CASE("where PEFT has excluded modules, those that have tensors are the targets") {
  const TemporaryDirectory directory;
  CHECK(refusal(directory, "exclude_modules", Json::array()) == "nothing was thrown");
  const auto targets = [&] { return read_peft_config(directory.path() / "adapter").lora.target_modules; };
  const auto given = targets();
  CHECK(refusal(directory, "exclude_modules", {"pre_classifier"}) == "nothing was thrown");
  CHECK(targets() != given);
  for (const std::string& module : targets()) CHECK(module.starts_with("bert.layer."));
  CHECK(refusal(directory, "exclude_modules", ".*key") == "nothing was thrown");
}

TEST_CASE("targets that match nothing are passed over; patterns are refused only where their order decides") {
  const TemporaryDirectory directory;
  CHECK(refusal(directory, "target_modules", {"out_proj", "query", "value"}) == "nothing was thrown");
  CHECK(read_peft_config(directory.path() / "adapter").lora.target_modules ==
        std::vector<std::string>{"query", "value"});
  const auto with_patterns = [&](const std::string& patterns) -> std::string {
    save_peft(numbered<float>(small_layout()), directory.path() / "adapter");
    const auto file = directory.path() / "adapter" / "adapter_config.json";
    std::string text = read_text(file);
    const std::string none = "\"alpha_pattern\": {}";
    REQUIRE(text.find(none) != std::string::npos);
    write_text(file, text.replace(text.find(none), none.size(), "\"alpha_pattern\": " + patterns));
    try {
      read_peft_config(directory.path() / "adapter");
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  CHECK(with_patterns(R"({"layer.0.query": 1.5, "query": 9})") == "nothing was thrown");
  CHECK(with_patterns(R"({"value": 9, "query": 1.5})") == "nothing was thrown");
  CHECK(has(with_patterns(R"({"query": 9, "layer.0.query": 1.5})"),
            "field alpha_pattern] expected sorted patterns where several match one module, got 'query' before "
            "'layer.0.query'"));
}

TEST_CASE("tensors are checked both ways") {
  const TemporaryDirectory directory;
  auto more = std::make_shared<AdapterLayout>(*small_layout());
  more->add_saved("classifier.extra", {1});
  CHECK(has(mismatch(directory, more), "unexpected 'base_model.model.classifier.extra'"));
  auto fewer = std::make_shared<AdapterLayout>(*small_layout());
  fewer->saved.pop_back();
  fewer->size -= 2;
  CHECK(has(mismatch(directory, fewer), "missing 'base_model.model.classifier.bias'"));
  auto other = std::make_shared<AdapterLayout>(*small_layout());
  other->saved[0].shape = {10};
  other->id2label.clear();
  CHECK(has(mismatch(directory, other), "tensor base_model.model.classifier.weight] expected shape (2, 5), got (10,)"));
}

TEST_CASE("tensors of other methods are refused with the method's name") {
  const TemporaryDirectory directory;
  save_peft(numbered<float>(small_layout()), directory.path());
  const float one[1] = {1};
  for (const auto& [name, method] :
       std::map<std::string, std::string>{{"base_model.model.q.lora_magnitude_vector", "DoRA"},
                                          {"base_model.model.e.lora_embedding_A", "embedding"}}) {
    const TensorToWrite tensors[] = {{name, Dtype::f32, {1}, std::as_bytes(std::span(one))}};
    write_text(directory.path() / "adapter_model.safetensors", safetensors_bytes(tensors, {}));
    std::string message;
    try {
      read_peft_config(directory.path());
    } catch (const ConfigError& error) {
      message = error.what();
    }
    CHECK(has(message, name));
    CHECK(has(message, method));
  }
}

TEST_CASE("missing files are named, with what is there") {
  const TemporaryDirectory directory;
  CHECK_THROWS_AS(read_peft_config(directory.path() / "nowhere"), IoError);
  write_text(directory.path() / "notes.txt", "");
  std::string message;
  try {
    read_peft_config(directory.path());
  } catch (const IoError& error) {
    message = error.what();
  }
  CHECK(has(message, "adapter_config.json"));
  CHECK(has(message, "'notes.txt'"));
  save_peft(numbered<float>(small_layout()), directory.path());
  fs::rename(directory.path() / "adapter_model.safetensors", directory.path() / "adapter_model.bin");
  try {
    read_peft_config(directory.path());
  } catch (const IoError& error) {
    message = error.what();
  }
  CHECK(has(message, "pickled"));
}

TEST_CASE("saving replaces an older adapter, leaves other files alone, and nothing behind") {
  const TemporaryDirectory directory;
  const auto layout = small_layout();
  const auto path = directory.path() / "adapter";
  save_peft(Adapter<float>(layout), path);
  save_peft(numbered<float>(layout), path.string() + "/");
  CHECK(load_peft<float>(path, layout).values()[0] == numbered<float>(layout).values()[0]);
  write_text(path / "README.md", "mine");
  fs::create_directory_symlink(path, directory.path() / "link");
  save_peft(Adapter<float>(layout), directory.path() / "link");
  CHECK(load_peft<float>(path, layout).values()[0] == 0.0f);
  CHECK(read_text(path / "README.md") == "mine");
  CHECK(fs::is_symlink(directory.path() / "link"));
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(directory.path())) names.push_back(entry.path().filename());
  CHECK(names.size() == 5);  // adapter, its three files, link

  write_text(directory.path() / "file", "");
  CHECK_THROWS_AS(save_peft(Adapter<float>(layout), directory.path() / "file"), IoError);
  CHECK_THROWS_AS(save_peft(Adapter<float>(layout), directory.path() / "file" / "adapter"), IoError);
}
