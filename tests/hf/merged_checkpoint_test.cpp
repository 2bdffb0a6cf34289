// SPDX-License-Identifier: Apache-2.0
// Merged checkpoints have transformers' names, however the base had them, and its configuration.
#include "fedlora/hf/merged_checkpoint.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "errors.hpp"
#include "fedlora/backend/cpu.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/lora/language_model.hpp"
#include "support.hpp"

namespace fedlora::tests {
namespace {

using MergeBackend = CpuBackend<double>;

LoraConfig one_rank(const char* target) { return {.rank = 1, .alpha = 1, .target_modules = {target}}; }

/// A golden checkpoint with its tensors under other names (empty: left out) and other fields, in memory.
template <class Rename>
FileSet base_with(const std::string& family, Rename&& rename, const std::string& fields) {
  const auto directory = std::filesystem::path(FEDLORA_TEST_DIR) / "golden/models" / family;
  const SafetensorsFile file(map_file(directory / "model.safetensors"));
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, tensor] : file.tensors())
    if (const std::string now = rename(name); !now.empty())
      tensors.push_back({now, tensor.dtype, tensor.shape, tensor.bytes});
  Json config = parse_json(map_file(directory / "config.json"));
  config.update(parse_json(bytes_of(fields, "fields")));
  return FileSet::memory("model", {{"config.json", bytes_of(json_text(config), "")},
                                   {"model.safetensors", bytes_of(safetensors_bytes(tensors, {}), "")}});
}

/// The merged checkpoint's tensors, with an adapter that changes nothing.
Checkpoint merged_llama(const FileSet& base, const TemporaryDirectory& out) {
  const LanguageModel<Llama, MergeBackend> model(load_pretrained<Llama>(MergeBackend{}, base), {}, one_rank("q_proj"));
  save_merged<Llama>(base, model.initial_adapter(1), out.path());
  return Checkpoint(FileSet::directory(out.path()));
}

Checkpoint merged_bert(const FileSet& base, const TemporaryDirectory& out) {
  const SequenceClassifier<Bert, MergeBackend> model(load_pretrained<Bert>(MergeBackend{}, base),
                                                     {.labels = {"a", "b"}}, one_rank("query"));
  save_merged<Bert>(base, model.initial_adapter(1), out.path());
  return Checkpoint(FileSet::directory(out.path()));
}

bool same_values(const TensorView& one, const TensorView& other) {
  std::vector<float> left(static_cast<std::size_t>(one.size())), right(static_cast<std::size_t>(other.size()));
  copy_tensor<float>(one, left);
  copy_tensor<float>(other, right);
  return left == right;
}

}  // namespace

TEST_CASE("a merged checkpoint has transformers' names, whatever the base's were") {
  const auto as_is = [](const std::string& name) { return name; };
  const TemporaryDirectory plain_bert, plain_llama;
  const Checkpoint bert = merged_bert(base_with("bert", as_is, "{}"), plain_bert);
  const Checkpoint llama = merged_llama(base_with("llama", as_is, "{}"), plain_llama);
  CHECK(bert.find("bert.encoder.layer.1.output.dense.weight") != nullptr);
  CHECK(bert.find("bert.pooler.dense.weight") != nullptr);
  CHECK(bert.find("classifier.weight") != nullptr);
  CHECK(llama.find("lm_head.weight") != nullptr);

  for (const std::string prefix : {"bert.", "bert.bert."}) {
    const TemporaryDirectory out;
    const Checkpoint again = merged_bert(base_with(
                                             "bert", [&](const auto& name) { return prefix + name; }, "{}"),
                                         out);
    CHECK(again.names() == bert.names());
  }
  const auto wrapped = [](const std::string& name) { return "model." + name; };
  const auto bare = [](const std::string& name) { return name.starts_with("model.") ? name.substr(6) : name; };
  const TemporaryDirectory out_wrapped, out_bare;
  CHECK(merged_llama(base_with("llama", wrapped, "{}"), out_wrapped).names() == llama.names());
  CHECK(merged_llama(base_with("llama", bare, "{}"), out_bare).names() == llama.names());
}

TEST_CASE("embeddings that the base keeps under the output layer's name have their own in the merged checkpoint") {
  const std::string own = "model.embed_tokens.weight";
  const FileSet base = base_with(
      "llama",
      [&](const std::string& name) { return name == "lm_head.weight" ? ""
                                            : name == own            ? "lm_head.weight"
                                                                     : name; },
      R"({"tie_word_embeddings": true})");
  const TemporaryDirectory out, decoder_out;
  const Checkpoint merged = merged_llama(base, out);
  REQUIRE(merged.find(own) != nullptr);
  CHECK(same_values(*merged.find(own), *Checkpoint(base).find("lm_head.weight")));
  CHECK(merged.find("lm_head.weight") == nullptr);

  const std::string decoder = "cls.predictions.decoder.weight", words = "embeddings.word_embeddings.weight";
  const Checkpoint bert =
      merged_bert(base_with(
                      "bert", [&](const auto& name) { return name == words ? decoder : name; }, "{}"),
                  decoder_out);
  CHECK(bert.find("bert." + words) != nullptr);
  CHECK(bert.find(decoder) == nullptr);
}

TEST_CASE("a merged checkpoint keeps numbers that JSON has no word for, and a quantised base is refused") {
  const auto as_is = [](const std::string& name) { return name; };
  const TemporaryDirectory out;
  merged_bert(base_with("bert", as_is, R"({"extra": NaN, "bound": -Infinity})"), out);
  const std::string config = read_text(out.path() / "config.json");
  CHECK(has(config, "\"extra\": NaN"));
  CHECK(has(config, "\"bound\": -Infinity"));
  const FileSet plain = base_with("bert", as_is, "{}");
  const SequenceClassifier<Bert, MergeBackend> model(load_pretrained<Bert>(MergeBackend{}, plain),
                                                     {.labels = {"a", "b"}}, one_rank("query"));
  const FileSet quantised = base_with("bert", as_is, R"({"quantization_config": {"quant_method": "awq"}})");
  check_error<ConfigError>([&] { save_merged<Bert>(quantised, model.initial_adapter(1), out.path()); },
                           {"quantised by awq"});
}

TEST_CASE("a merge for which there is no room leaves nothing") {
  const FileSet base = base_with(
      "bert", [](const std::string& name) { return name; }, "{}");
  const SequenceClassifier<Bert, MergeBackend> model(load_pretrained<Bert>(MergeBackend{}, base),
                                                     {.labels = {"a", "b"}}, one_rank("query"));
  const TemporaryDirectory scratch;
  std::filesystem::create_directory(scratch.path() / "theirs");
  write_text(scratch.path() / "theirs/notes.txt", "kept");
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const char* const out : {"new", "theirs"}) {
    const rlimit small{4096, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    std::string said;
    try {
      save_merged<Bert>(base, model.initial_adapter(1), scratch.path() / out);
    } catch (const IoError& error) {
      said = error.what();
    }
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK(has(said, "model.safetensors"));
  }
  std::signal(SIGXFSZ, handler);
  CHECK_FALSE(std::filesystem::exists(scratch.path() / "new"));
  CHECK(FileSet::directory(scratch.path() / "theirs").listing() == "'notes.txt'");
}

}  // namespace fedlora::tests
