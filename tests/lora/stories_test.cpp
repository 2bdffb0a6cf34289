// SPDX-License-Identifier: Apache-2.0
// stories260K, a real pretrained Llama, against an independent forward pass in double precision.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/language_model.hpp"
#include "fedlora/nn/arch/llama.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE("stories260K: greedy story, logits and losses", T, float, double) {
  using B = CpuBackend<T>;
  const auto directory = std::filesystem::path(FEDLORA_TEST_DIR) / ".." / "examples" / "data" / "stories260K";
  const Json golden = parse_json(map_file(directory / "golden.json"));
  const SafetensorsFile weights(map_file(directory / "model.safetensors"));
  WeightLoader<B> load(
      B{}, [&](const std::string& name) { return weights.find(name); }, directory.string(), "model.");
  Pretrained<Llama, B> base;
  base.transformer = std::make_shared<const Transformer<Llama, B>>(
      Llama::read_config(parse_json(map_file(directory / "config.json")), "config.json"), load);
  base.lm_head = base.transformer->word_embeddings();  // tied
  const LanguageModel<Llama, B> model(base, {}, {});
  const Adapter<T> adapter = model.initial_adapter(1);
  const double bound = sizeof(T) == 8 ? 1e-5 : 1e-3;  // the reference is written with few digits
  const auto vocabulary = static_cast<std::size_t>(base.config().vocab_size);

  const auto story = golden["greedy_ids_from_bos"].get<std::vector<std::int32_t>>();
  const std::vector<T> logits = model.logits(adapter, story);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i + 1 < story.size(); ++i) {
    const T* row = logits.data() + i * vocabulary;
    wrong += std::max_element(row, row + vocabulary) - row == story[i + 1] ? 0u : 1u;
  }
  CHECK(wrong == 0);
  for (const auto& item : golden["logits_of_greedy_ids_at_position"].items()) {
    const std::string position = item.key();  // clang 14 does not capture structured bindings
    const Json& expected = item.value();
    const T* row = logits.data() + static_cast<std::size_t>(std::stoi(position)) * vocabulary;
    double worst = 0;
    for (std::size_t j = 0; j < vocabulary; ++j)
      worst = std::max(worst, std::abs(static_cast<double>(row[j]) - expected[j].template get<double>()));
    CHECK_MESSAGE(worst <= 10 * bound, "position " << position << ": " << worst);
  }
  Dataset data;
  for (const Json& text : golden["cases"]) {
    const auto ids = text["ids_with_bos"].get<std::vector<std::int32_t>>();
    data.append(ids, std::vector<std::int32_t>(ids.size(), 0));
  }
  const auto losses = model.losses(adapter, data, 1);
  for (std::size_t i = 0; i < losses.size(); ++i)
    CHECK(losses[i].nll / static_cast<double>(losses[i].tokens) ==
          doctest::Approx(golden["cases"][i]["mean_nll_nats"].get<double>()).epsilon(bound));
}

}  // namespace fedlora::tests
