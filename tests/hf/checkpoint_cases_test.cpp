// SPDX-License-Identifier: Apache-2.0
// Checkpoints that people reported: what transformers answers for each (golden/public_cases), or what is said.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "errors.hpp"
#include "fedlora/backend/cpu.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/lora/language_model.hpp"
#include "support.hpp"

namespace fedlora::tests {
namespace {

using CaseBackend = CpuBackend<double>;

std::filesystem::path case_directory(const std::string& name) {
  return std::filesystem::path(FEDLORA_TEST_DIR) / "golden" / "public_cases" / name;
}

/// The largest difference between what a case's base answers to its texts and what transformers does.
double case_error(const std::string& name) {
  const std::filesystem::path directory = case_directory(name);
  const Table texts = read_table(directory / "texts.jsonl", {.text = {"text"}});
  const Json answers = parse_json(map_file(directory / "reference.json")).at("answer");
  const Json config = detail::read_model_config(FileSet::directory(directory / "base"));
  const LoraConfig none{.rank = 1, .alpha = 1};
  double error = 0;
  const auto compare = [&](double got, const Json& expected) {
    error = std::max(error, std::abs(got - expected.get<double>()));
  };
  if (config["model_type"] == "llama") {
    const LanguageModel<Llama, CaseBackend> model(
        load_pretrained<Llama>(CaseBackend{}, FileSet::directory(directory / "base")), {}, none);
    const auto losses = model.losses(model.initial_adapter(1), model.encode(texts, 1), 1);
    for (std::size_t i = 0; i < losses.size(); ++i)
      compare(losses[i].nll / static_cast<double>(losses[i].tokens), answers.at(i));
  } else {
    const SequenceClassifier<Bert, CaseBackend> model(
        load_pretrained<Bert>(CaseBackend{}, FileSet::directory(directory / "base")), {}, none);
    const auto logits = model.logits(model.initial_adapter(1), model.encode(texts, 1), 1);
    for (std::size_t i = 0; i < logits.size(); ++i) compare(logits[i], answers.at(i / 2).at(i % 2));
  }
  return error;
}

/// The message about a case's base.
std::string case_message(const std::string& name) {
  return message_of<Error>([&] {
    with_pretrained(CaseBackend{}, FileSet::directory(case_directory(name) / "base"), [](const auto&) { return 0; });
  });
}

}  // namespace

TEST_CASE("reported checkpoints answer as in transformers") {
  for (const char* name : {"gelu_python", "json_as_python_writes_it/dup_key", "json_as_python_writes_it/json_nan"}) {
    CAPTURE(name);
    CHECK(case_error(name) < 1e-12);
  }
  for (const char* name : {"rope_dynamic_within_positions", "tied_embeddings_under_lm_head"}) {
    CAPTURE(name);
    CHECK(case_error(name) < 2e-6);  // the reference computes norms and rotary tables in float32
  }
}

TEST_CASE("a pointer in place of a file is called one, whichever file it is") {
  for (const auto& [name, file] :
       {std::pair{"config", "config.json"}, {"tokenizer", "tokenizer.json"}, {"weights", "model.safetensors"}}) {
    const std::string message = case_message("lfs_pointer_message/lfs_" + std::string(name));
    INFO(message);
    CHECK(has(message, file));
    CHECK(has(message, "a Git LFS pointer in its place (`git lfs pull` fetches the file)"));
  }
}

TEST_CASE("a quantised base is refused first, with its format and what to take instead") {
  for (const auto& [name, format] : {std::pair{"bnb4", "bitsandbytes, in 4 bits"}, {"gptq", "gptq, in 4 bits"}}) {
    const std::string message = case_message("quantised_base_message/" + std::string(name));
    INFO(message);
    CHECK(has(message, "config.json, field quantization_config"));
    CHECK(has(message, std::string("quantised by ") + format));
    CHECK(has(message, "unquantised original"));
  }
}

}  // namespace fedlora::tests
