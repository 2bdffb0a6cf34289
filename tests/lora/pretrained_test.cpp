// SPDX-License-Identifier: Apache-2.0
// Checkpoints as people have them: every family, with and without prefix, sharded, in 16 bits, with buffers and tensors
// nobody needs; and what is said when one is broken.
#include "fedlora/hf/pretrained.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "errors.hpp"
#include "fedlora/lora/classifier.hpp"
#include "lora/golden.hpp"
#include "support.hpp"

namespace fedlora::tests {
namespace {

using B = CpuBackend<double>;

std::filesystem::path models() { return std::filesystem::path(FEDLORA_TEST_DIR) / "golden" / "models"; }

/// The base's last hidden states (rows, hidden) of the reference inputs, without adapter.
template <class Arch>
std::vector<double> hidden_states(const Pretrained<Arch, B>& base, const Dataset& data) {
  TransformerWorkspace<B> workspace(base.backend);
  std::vector<std::int32_t> cu;
  for (const Index offset : data.offsets) cu.push_back(static_cast<std::int32_t>(offset));
  const Segment everything{0, static_cast<std::int32_t>(data.size()), 0};
  workspace.tables.build(cu, {&everything, 1}, {});
  SlotTerms<double> slot;
  slot.layers.resize(static_cast<std::size_t>(base.config().layers) * layer_linears);
  PassOptions<double> options;
  options.slots = {&slot, 1};
  base.transformer->prepare(data.tokens, data.token_types, options, workspace);
  MatrixView<double> last = base.transformer->forward(options, workspace);
  if constexpr (Transformer<Arch, B>::has_final_norm)
    base.transformer->final_norm(last, last, workspace.run.statistics(last.rows), workspace);
  return {last.data, last.data + last.size()};
}

/// Copies a directory of models/ into `target`.
std::filesystem::path copy_of(const std::string& family, const TemporaryDirectory& target) {
  for (const char* file : {"config.json", "model.safetensors"})
    std::filesystem::copy_file(models() / family / file, target.path() / file);
  return target.path();
}

Json config_in(const std::filesystem::path& directory) { return parse_json(map_file(directory / "config.json")); }

}  // namespace

TEST_CASE("every family is found by its model type, and its last hidden states are those of transformers") {
  for (const char* family : {"bert", "distilbert", "roberta", "llama"}) {
    CAPTURE(family);
    const Golden golden(family);
    const auto hidden = with_pretrained(B{}, FileSet::directory(golden.directory), [&](const auto& base) {
      CHECK(base.name == golden.directory.string());
      CHECK(base.tokenizer == nullptr);
      return hidden_states(base, golden.dataset());
    });
    CHECK(relative_error(hidden, golden.tensor("base.last_hidden_state")) <= 1e-9);
  }
}

TEST_CASE("a sharded checkpoint with a prefix has the same base, and one warning for what is not used") {
  const Golden golden("bert");
  const auto base = load_pretrained<Bert>(B{}, FileSet::directory(models() / "bert" / "sharded"));
  CHECK(relative_error(hidden_states(base, golden.dataset()), golden.tensor("base.last_hidden_state")) <= 1e-9);
  REQUIRE(base.warnings.size() == 1);
  CHECK(base.warnings[0].find("cls.") != std::string::npos);
  CHECK(base.warnings[0].find("bert.") == std::string::npos);
  CHECK(base.head.contains("bert.pooler.dense.weight"));
}

TEST_CASE("a head that config.json only counts has transformers' names for its labels") {
  Json config = config_in(models() / "bert");
  config["num_labels"] = 1;
  CHECK(Bert::read_config(config, "config.json").id2label == std::vector<std::string>{"LABEL_0"});
  config["id2label"] = {{"0", "no"}, {"1", "yes"}};
  CHECK(Bert::read_config(config, "config.json").id2label == std::vector<std::string>{"no", "yes"});
}

TEST_CASE("a base's digest tells weights apart, and nothing else") {
  const auto digest = [](const std::filesystem::path& directory) {
    return load_pretrained<Bert>(B{}, FileSet::directory(directory)).digest;
  };
  const std::string bert = digest(models() / "bert");
  CHECK(bert.size() == 16);
  CHECK(digest(models() / "bert" / "sharded") == bert);  // in shards, with a prefix, beside tensors of another task
  CHECK(digest(models() / "bert" / "bf16") == bert);

  const TemporaryDirectory target;
  const auto directory = copy_of("bert", target);
  const auto with = [&](const char* name, Index element, float value) {
    std::string bytes = read_text(models() / "bert" / "model.safetensors");
    const SafetensorsFile file(bytes_of(bytes, "model.safetensors"));
    const TensorView& tensor = *file.find(name);
    const auto header = 8 + *reinterpret_cast<const std::uint64_t*>(bytes.data());
    std::size_t offset = header;
    for (const auto& [other, view] : file.tensors())
      if (view.bytes.data() < tensor.bytes.data()) offset += view.bytes.size();
    std::memcpy(bytes.data() + offset + 4 * static_cast<std::size_t>(element), &value, 4);
    write_text(directory / "model.safetensors", bytes);
    return digest(directory);
  };
  CHECK(with("embeddings.word_embeddings.weight", 0, 3.0f) != bert);
  CHECK(with("encoder.layer.1.output.dense.weight", 1535, 3.0f) != bert);  // the last of its numbers
  CHECK(with("encoder.layer.0.attention.self.query.bias", 31, 3.0f) != bert);
  CHECK(with("pooler.dense.weight", 0, 3.0f) == bert);  // of the head
}

TEST_CASE("a checkpoint's problem type is read, under the names of transformers") {
  const auto read = [](const Json& problem_type) {
    Json config = config_in(models() / "bert");
    config["problem_type"] = problem_type;
    return Bert::read_config(config, "config.json").problem_type;
  };
  CHECK(read("single_label_classification") == ProblemType::single_label);
  CHECK(read("regression") == ProblemType::regression);
  CHECK(read("multi_label_classification") == ProblemType::multi_label);
  CHECK(read(nullptr) == std::nullopt);
}

TEST_CASE("weights in 16 bits are widened exactly, and an integer buffer is passed over") {
  const Golden golden("bert");
  for (const char* kind : {"f16", "bf16"}) {
    CAPTURE(kind);
    const auto base = load_pretrained<Bert>(B{}, FileSet::directory(models() / "bert" / kind));
    CHECK(base.warnings.empty());
    const SafetensorsFile file(map_file(models() / "bert" / kind / "model.safetensors"));
    const std::string name = "embeddings.word_embeddings.weight";
    std::vector<double> expected(static_cast<std::size_t>(file.find(name)->size()));
    copy_tensor<double>(*file.find(name), expected);
    const MatrixView<const double> words = base.transformer->word_embeddings().view<double>();
    CHECK(std::equal(expected.begin(), expected.end(), words.data));
    const SequenceClassifier<Bert, B> model(base, {.labels = {"0", "1", "2"}}, golden.lora("a"));
    const std::vector<double> logits =
        model.logits(golden.adapter<double>(model.layout(), "adapter.a."), golden.dataset(), 1);
    CHECK(relative_error(logits, golden.tensor(std::string(kind) + ".logits.a")) <= 1e-9);
    CHECK(relative_error(logits, golden.tensor("logits.a")) > 1e-7);  // the weights are rounded
  }
}

TEST_CASE("a Llama without prefix is the same base; without lm_head it has none unless it is tied") {
  const Golden golden("llama");
  const auto bare = load_pretrained<Llama>(B{}, FileSet::directory(models() / "llama" / "bare"));
  CHECK(relative_error(hidden_states(bare, golden.dataset()), golden.tensor("base.last_hidden_state")) <= 1e-9);
  CHECK(bare.lm_head.empty());
  const auto untied = load_pretrained<Llama>(B{}, FileSet::directory(models() / "llama"));
  CHECK_FALSE(untied.lm_head.empty());
  CHECK(untied.lm_head.data != untied.transformer->word_embeddings().data);
  CHECK(untied.warnings.empty());
}

TEST_CASE("tied, biased and untied Llamas give transformers' next-token logits") {
  const Golden golden("llama");
  const Dataset data = golden.dataset();
  for (const auto& variant : {std::pair{"untied", models() / "llama"},
                              {"tied", models() / "llama" / "tied"},
                              {"biased", models() / "llama" / "biased"}}) {
    const std::string name = variant.first;  // clang 14 does not capture structured bindings
    const std::filesystem::path& directory = variant.second;
    CAPTURE(name);
    const auto base = load_pretrained<Llama>(B{}, FileSet::directory(directory));
    const std::vector<double> hidden = hidden_states(base, data);
    const Index width = base.config().hidden_size;
    const MatrixView<const double> rows(hidden.data(), static_cast<Index>(hidden.size()) / width, width);
    std::vector<double> logits(static_cast<std::size_t>(rows.rows * base.config().vocab_size));
    B::Runner run;
    run.linear_forward(rows, base.lm_head, nullptr, {logits.data(), rows.rows, base.config().vocab_size});
    CHECK(relative_error(logits, golden.tensor(name + ".lm_logits")) <= 1e-9);
    std::vector<double> losses;
    for (Index i = 0; i < data.size(); ++i)
      for (Index row = data.offsets[static_cast<std::size_t>(i)];
           row + 1 < data.offsets[static_cast<std::size_t>(i) + 1]; ++row)
        losses.push_back(cpu::cross_entropy_loss<double>(
            {logits.data() + row * base.config().vocab_size, 1, base.config().vocab_size},
            &data.tokens[static_cast<std::size_t>(row) + 1]));
    CHECK(relative_error(losses, golden.tensor(name + ".lm_losses")) <= 1e-9);
  }
}

TEST_CASE("a missing tensor, and one of another shape, are named with their file") {
  const TemporaryDirectory target;
  const auto directory = copy_of("bert", target);
  Json config = config_in(directory);
  config["num_hidden_layers"] = 3;
  write_text(directory / "config.json", config.dump());
  check_error<FormatError>(
      [&] { load_pretrained<Bert>(B{}, FileSet::directory(directory)); },
      {directory.string(), "tensor encoder.layer.2.attention.self.query.weight", "(32, 32)", "no such tensor"});
  config["num_hidden_layers"] = 2;
  config["intermediate_size"] = 64;
  write_text(directory / "config.json", config.dump());
  check_error<FormatError>([&] { load_pretrained<Bert>(B{}, FileSet::directory(directory)); },
                           {"model.safetensors", "encoder.layer.0.intermediate.dense.weight", "(64, 32)", "(48, 32)"});
}

TEST_CASE("a model type nobody knows, or another family's, is refused with the types there are") {
  const TemporaryDirectory target;
  const auto directory = copy_of("bert", target);
  check_error<ConfigError>([&] { load_pretrained<Llama>(B{}, FileSet::directory(directory)); },
                           {"config.json, field model_type", "\"llama\"", "\"bert\""});
  Json config = config_in(directory);
  config["model_type"] = "mamba";
  write_text(directory / "config.json", config.dump());
  const auto any = [&] { with_pretrained(B{}, FileSet::directory(directory), [](const auto&) { return 0; }); };
  check_error<ConfigError>(any, {"config.json, field model_type", "bert, distilbert, roberta, llama", "\"mamba\""});
  config.erase("model_type");
  write_text(directory / "config.json", config.dump());
  check_error<FormatError>(any, {"config.json", "model_type"});
}

TEST_CASE("fields of config.json that cannot be are refused by name") {
  const auto refuse = [](const char* family, const Json& patch, std::initializer_list<std::string_view> parts) {
    const TemporaryDirectory target;
    const auto directory = copy_of(family, target);
    Json config = config_in(directory);
    config.update(patch);
    write_text(directory / "config.json", config.dump());
    INFO(patch.dump());
    check_error<ConfigError>(
        [&] { with_pretrained(B{}, FileSet::directory(directory), [](const auto&) { return 0; }); }, parts);
  };
  refuse("bert", {{"hidden_size", 0}}, {"field hidden_size", "0"});
  refuse("bert", {{"num_hidden_layers", 100000}}, {"field num_hidden_layers", "100000"});
  refuse("bert", {{"num_attention_heads", 5}}, {"32 and 5"});
  refuse("bert", {{"hidden_act", "mish"}}, {"field hidden_act", "gelu", "mish"});
  refuse("bert", {{"hidden_dropout_prob", 1.0}}, {"field hidden_dropout_prob", "[0, 1)"});
  refuse("bert", {{"position_embedding_type", "relative_key"}}, {"field position_embedding_type", "relative_key"});
  refuse("bert", {{"id2label", {{"0", "a"}, {"2", "b"}}}}, {"field id2label", "2"});
  refuse("bert", {{"num_labels", 1000000000}}, {"field num_labels", "1000000000"});
  refuse("bert", {{"problem_type", "ranking"}}, {"field problem_type", "multi_label_classification", "'ranking'"});
  refuse("bert", {{"problem_type", "single_label_classification"}, {"id2label", {{"0", "LABEL_0"}}}},
         {"field problem_type", "regression"});
  refuse("roberta", {{"pad_token_id", 4000}}, {"field pad_token_id", "4000"});
  refuse("llama", {{"num_key_value_heads", 3}}, {"4 and 3"});
  refuse("llama", {{"head_dim", 7}}, {"field head_dim", "even", "7"});
  refuse("llama", {{"rope_parameters", {{"rope_type", "yarn"}}}}, {"rope_parameters.rope_type", "yarn"});
  refuse("llama", {{"rope_parameters", {{"rope_theta", -1.0}}}}, {"theta"});
}

}  // namespace fedlora::tests
