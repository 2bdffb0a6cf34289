// SPDX-License-Identifier: Apache-2.0
// Checkpoints as people have them: every family, with and without prefix, sharded, in 16 bits, with buffers and tensors
// nobody needs; and what is said when one is broken.
#include "fedlora/hf/pretrained.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
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
  config["id2label"] = {{"0", "no"}, {"1", "yes"}};  // transformers then goes by the number
  CHECK(Bert::read_config(config, "config.json").id2label == std::vector<std::string>{"LABEL_0"});
  config["num_labels"] = 2;
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
  refuse("bert", {{"hidden_act", "gelux"}}, {"field hidden_act", "gelu_python, gelu_new", "sqrtsoftplus", "'gelux'"});
  refuse("bert", {{"hidden_act", "prelu"}}, {"field hidden_act", "'prelu', which has trained parameters"});
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

TEST_CASE("a field of config.json that is another one changes what it changes in transformers, or is refused by name") {
  for (const Json& entry : parse_json(map_file(FEDLORA_TEST_DIR "/golden/config_fields.json"))) {
    const auto family = entry.at("family").get<std::string>();
    INFO(family, " ", json_text(entry.at("set")), " without ", entry.at("drop").dump());
    const Golden golden(family);
    Json config = config_in(golden.directory);
    for (const Json& field : entry.at("drop")) config.erase(field.get<std::string>());
    config.update(entry.at("set"));
    const FileSet files =
        FileSet::memory("model", {{"config.json", bytes_of(json_text(config), "")},
                                  {"model.safetensors", map_file(golden.directory / "model.safetensors")}});
    if (entry.contains("refused")) {
      const auto what = entry["refused"].get<std::string>();
      CHECK(has(tests::message_of<Error>([&] { with_pretrained(B{}, files, [](const auto&) { return 0; }); }), what));
      continue;
    }
    const Dataset data = golden.dataset();
    const auto hidden = with_pretrained(B{}, files, [&](const auto& base) { return hidden_states(base, data); });
    const auto expected = entry.at("last").get<std::vector<double>>();
    Index longest = 0;
    for (Index i = 1; i < data.size(); ++i)
      if (data.length(i) > data.length(longest)) longest = i;
    const auto end = hidden.begin() + data.offsets[static_cast<std::size_t>(longest) + 1] * 32;
    CHECK(relative_error(std::vector<double>(end - 32, end), expected) <= (family == "llama" ? 2e-6 : 1e-9));
  }
}

namespace {

/// A golden checkpoint with its tensors under other names; one whose new name is empty is left out.
template <class Rename>
FileSet renamed(const std::string& family, Rename&& rename, const Json& fields = Json::object()) {
  const SafetensorsFile file(map_file(models() / family / "model.safetensors"));
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, tensor] : file.tensors())
    if (const std::string now = rename(name); !now.empty())
      tensors.push_back({now, tensor.dtype, tensor.shape, tensor.bytes});
  Json config = config_in(models() / family);
  config.update(fields);
  return FileSet::memory("model", {{"config.json", bytes_of(config.dump(), "")},
                                   {"model.safetensors", bytes_of(safetensors_bytes(tensors, {}), "")}});
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  if (const std::size_t at = text.find(from); at != text.npos) text.replace(at, from.size(), to);
  return text;
}

void check_same_base(const std::string& family, const FileSet& files) {
  const Golden golden(family);
  const auto hidden = with_pretrained(B{}, files, [&](const auto& base) {
    for (const std::string& warning : base.warnings) CHECK_MESSAGE(!has(warning, "layer."), warning);
    return hidden_states(base, golden.dataset());
  });
  CHECK(relative_error(hidden, golden.tensor("base.last_hidden_state")) <= 1e-9);
}

}  // namespace

TEST_CASE("names are taken with the family's prefix, without, twice, mixed, and as older versions spelled them") {
  const auto with = [](const char* prefix) { return [prefix](const std::string& name) { return prefix + name; }; };
  check_same_base("bert", renamed("bert", with("bert.")));
  check_same_base("bert", renamed("bert", with("bert.bert.")));
  check_same_base("llama", renamed("llama", with("model.")));  // a wrapper that calls its model "model"
  check_same_base("distilbert", renamed("distilbert", with("distilbert.")));
  check_same_base("bert", renamed("bert", [](const std::string& name) {
                    return has(name, "layer.1") || has(name, "word") ? "bert." + name : name;
                  }));
  for (const char* family : {"bert", "distilbert", "roberta"})
    check_same_base(family, renamed(family, [](const std::string& name) {
                      return replaced(replaced(name, "LayerNorm.weight", "LayerNorm.gamma"), "LayerNorm.bias",
                                      "LayerNorm.beta");
                    }));
  const auto wrapped = load_pretrained<Llama>(B{}, renamed("llama", with("model.")));
  CHECK_FALSE(wrapped.lm_head.empty());
}

TEST_CASE("names that are none of the family's are shown, with what its layers begin with") {
  const auto load = [](const FileSet& files) {
    return [&files] { with_pretrained(B{}, files, [](const auto&) { return 0; }); };
  };
  for (const std::string prefix : {"module.", "_orig_mod.", "base_model.model.", "0.auto_model.", "roberta."}) {
    CAPTURE(prefix);
    const FileSet files = renamed("bert", [&](const std::string& name) { return prefix + name; });
    check_error<FormatError>(load(files), {"model/model.safetensors", "for bert, with or without 'bert.'",
                                           "'" + prefix + "embeddings.LayerNorm.bias', '", " more",
                                           "; its layers begin with '" + prefix + "'"});
  }
  const FileSet gpt2 =
      renamed("llama", [](const std::string& name) { return replaced(name, "model.layers", "transformer.h"); });
  with_pretrained(B{}, renamed("bert", [](const std::string& name) { return name; }), [](const auto&) { return 0; });
  check_error<FormatError>(load(gpt2), {"tensor model.layers.0.self_attn.q_proj.weight", "no such tensor"});
  const FileSet none =
      renamed("llama", [](const std::string& name) { return has(name, "layers.0.") ? "h." + name.substr(13) : ""; });
  check_error<FormatError>(load(none), {"for llama", "'h.0.input_layernorm.weight'"});
  const FileSet empty = renamed("bert", [](const std::string&) { return ""; });
  check_error<FormatError>(load(empty), {"no tensor"});
}

TEST_CASE("a tensor under two names is the same under both") {
  const SafetensorsFile file(map_file(models() / "bert" / "model.safetensors"));
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, tensor] : file.tensors()) {
    tensors.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
    tensors.push_back({"bert." + name, tensor.dtype, tensor.shape, tensor.bytes});
  }
  const auto files = [&] {
    return FileSet::memory("model", {{"config.json", map_file(models() / "bert" / "config.json")},
                                     {"model.safetensors", bytes_of(safetensors_bytes(tensors, {}), "")}});
  };
  load_pretrained<Bert>(B{}, files());
  std::vector<float> other(32, 0.5f);
  for (TensorToWrite& tensor : tensors)
    if (tensor.name == "bert.embeddings.LayerNorm.bias") tensor.bytes = std::as_bytes(std::span(other));
  check_error<FormatError>([&] { load_pretrained<Bert>(B{}, files()); },
                           {"tensor bert.embeddings.LayerNorm.bias", "embeddings.LayerNorm.bias", "two that differ"});
}

TEST_CASE("embeddings that are kept under the output layer's name count for both where they are tied") {
  const Json tied = {{"tie_word_embeddings", true}}, untied = {{"tie_word_embeddings", false}};
  const auto under = [](const char* output) {
    return [output](const std::string& name) {
      if (name == "lm_head.weight") return std::string();
      return has(name, "word_embeddings") || has(name, "embed_tokens") ? std::string(output) : name;
    };
  };
  check_same_base("llama", renamed("llama", under("lm_head.weight"), tied));
  check_same_base("llama", renamed("llama", under("model.lm_head.weight"), tied));
  check_same_base("bert", renamed("bert", under("cls.predictions.decoder.weight")));
  check_same_base("distilbert", renamed("distilbert", under("vocab_projector.weight")));
  check_same_base("roberta", renamed("roberta", under("lm_head.decoder.weight")));
  const auto base = load_pretrained<Llama>(B{}, renamed("llama", under("lm_head.weight"), tied));
  CHECK(base.lm_head.data == base.transformer->word_embeddings().data);
  CHECK(base.warnings.empty());
  const FileSet untied_llama = renamed("llama", under("lm_head.weight"), untied);
  check_error<FormatError>([&] { load_pretrained<Llama>(B{}, untied_llama); },
                           {"tensor model.embed_tokens.weight",
                            "no such tensor (there is lm_head.weight, but tie_word_embeddings is false"});
  const FileSet untied_bert = renamed("bert", under("cls.predictions.decoder.weight"), untied);
  check_error<FormatError>([&] { load_pretrained<Bert>(B{}, untied_bert); },
                           {"there is cls.predictions.decoder.weight"});

  // Both, and different: transformers ties nothing then.
  const auto both = load_pretrained<Llama>(B{}, renamed(
                                                    "llama", [](const std::string& name) { return name; }, tied));
  CHECK(both.lm_head.data != both.transformer->word_embeddings().data);
  CHECK(std::memcmp(both.lm_head.data, load_pretrained<Llama>(B{}, FileSet::directory(models() / "llama")).lm_head.data,
                    96 * 32 * 8) == 0);
}

TEST_CASE("what lies beside the weights and is not used is said") {
  const auto warnings_of = [](const std::map<std::string, Bytes>& more, const Json& fields = Json::object()) {
    Json config = config_in(models() / "bert");
    config.update(fields);
    std::map<std::string, Bytes> files = {{"config.json", bytes_of(config.dump(), "")},
                                          {"model.safetensors", map_file(models() / "bert" / "model.safetensors")}};
    files.insert(more.begin(), more.end());
    return load_pretrained<Bert>(B{}, FileSet::memory("model", files)).warnings;
  };
  CHECK(warnings_of({}).empty());
  const auto own_code = warnings_of({}, {{"auto_map", {{"AutoModel", "modeling_mine.Mine"}}}});
  REQUIRE(own_code.size() == 1);
  CHECK(has(own_code[0], "auto_map names code of the model's own, which is not run"));
  const auto adapter = warnings_of({{"adapter_config.json", bytes_of("{}", "")}});
  REQUIRE(adapter.size() == 1);
  CHECK(has(adapter[0], "model/adapter_config.json: an adapter lies beside the base"));
  const auto shallow = warnings_of({}, {{"num_hidden_layers", 1}});
  REQUIRE(shallow.size() == 1);
  CHECK(has(shallow[0], "tensors that bert does not use: encoder.layer.1.attention.output.LayerNorm.bias, "));
  CHECK(has(shallow[0], " and 4 more"));
}

TEST_CASE("an adapter's directory in place of the base's is called one") {
  const FileSet adapter = FileSet::memory("out/adapter", {{"adapter_config.json", bytes_of("{}", "")}});
  check_error<IoError>([&] { with_pretrained(B{}, adapter, [](const auto&) { return 0; }); },
                       {"[out/adapter] expected a base model", "got an adapter", "adapter_config.json"});
}

}  // namespace fedlora::tests
