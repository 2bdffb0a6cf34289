// SPDX-License-Identifier: Apache-2.0
// The reference values of tests/golden/models: tiny checkpoints, adapters, logits, gradients and optimizer steps made
// by transformers and peft.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/io/file.hpp"
#include "fedlora/io/json.hpp"
#include "fedlora/io/safetensors.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/config.hpp"
#include "fedlora/lora/pretrained.hpp"
#include "fedlora/lora/state_dict.hpp"
#include "fedlora/nn/arch/bert.hpp"
#include "fedlora/nn/arch/distilbert.hpp"
#include "fedlora/nn/arch/llama.hpp"
#include "fedlora/nn/arch/roberta.hpp"

namespace fedlora::tests {

/// One family's reference files.
struct Golden {
  std::filesystem::path directory;
  Json cases;
  SafetensorsFile reference;

  explicit Golden(const std::string& family)
      : Golden(family, "models/" + family + "/cases.json", "models/" + family + "/reference.safetensors") {}

  /// Other references over the family's checkpoint: files of golden/.
  Golden(const std::string& family, const std::string& cases_file, const std::string& reference_file)
      : directory(std::filesystem::path(FEDLORA_TEST_DIR) / "golden/models" / family),
        cases(parse_json(map_file(std::filesystem::path(FEDLORA_TEST_DIR) / "golden" / cases_file))),
        reference(map_file(std::filesystem::path(FEDLORA_TEST_DIR) / "golden" / reference_file)) {}

  std::vector<double> tensor(const std::string& name) const {
    const TensorView* found = reference.find(name);
    REQUIRE_MESSAGE(found != nullptr, name);
    std::vector<double> values(static_cast<std::size_t>(found->size()));
    copy_tensor<double>(*found, values);
    return values;
  }

  /// The inputs, and what case `name` is to predict of them: a label each, unless it says otherwise.
  Dataset dataset(const std::string& name = "") const {
    Dataset data;
    const auto& ids = cases["input_ids"];
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto tokens = ids[i].get<std::vector<std::int32_t>>();
      const Json types = cases.contains("token_type_ids") ? cases["token_type_ids"] : Json();
      data.append(tokens, types.is_array() ? types[i].get<std::vector<std::int32_t>>()
                                           : std::vector<std::int32_t>(tokens.size(), 0));
    }
    if (name.empty() || !cases["cases"][name].contains("targets")) {
      data.labels = cases["labels"].get<std::vector<std::int32_t>>();
      return data;
    }
    const bool sets = cases["cases"][name]["problem_type"] == "multi_label_classification";
    if (sets) data.label_offsets.push_back(0);
    for (const Json& row : cases["cases"][name]["targets"]) {
      for (std::size_t i = 0; i < row.size(); ++i)
        if (!sets)
          data.targets.push_back(row[i].get<double>());
        else if (row[i] == 1)
          data.labels.push_back(static_cast<std::int32_t>(i));
      if (sets) data.label_offsets.push_back(static_cast<Index>(data.labels.size()));
    }
    return data;
  }

  LoraConfig lora(const std::string& name) const {
    const Json& c = cases["cases"][name];
    LoraConfig config;
    config.rank = c["r"].get<Index>();
    config.alpha = c["lora_alpha"].get<double>();
    config.use_rslora = c["use_rslora"].get<bool>();
    if (c["target_modules"].is_string())
      config.target_modules = {c["target_modules"].get<std::string>()};
    else
      config.target_modules = c["target_modules"].get<std::vector<std::string>>();
    config.rank_pattern = c["rank_pattern"].get<std::map<std::string, Index>>();
    config.alpha_pattern = c["alpha_pattern"].get<std::map<std::string, double>>();
    config.modules_to_save = c["modules_to_save"].get<std::vector<std::string>>();
    return config;
  }

  /// The base, loaded without hf/, which costs every file that includes it seconds to compile (pretrained_test.cpp
  /// looks at that loader).
  template <class Arch, class B>
  Pretrained<Arch, B> base() const {
    const SafetensorsFile weights(map_file(directory / "model.safetensors"));
    WeightLoader<B> load(
        B{}, [&](const std::string& name) { return weights.find(name); }, directory.string(), Arch::names.prefix);
    const ModelConfig config = Arch::read_config(parse_json(map_file(directory / "config.json")), "config.json");
    Pretrained<Arch, B> result;
    result.name = directory.string();
    result.transformer = std::make_shared<const Transformer<Arch, B>>(config, load);
    for (const HeadLayer& layer : Arch::head(config))
      for (const char* part : {".weight", ".bias"}) {
        const std::string name = layer.name + part;
        const TensorView* tensor = weights.find(name);
        if (tensor == nullptr && name.starts_with(Arch::names.prefix))
          tensor = weights.find(name.substr(Arch::names.prefix.size()));
        if (tensor != nullptr) result.head.emplace(name, load.optional(tensor->name, tensor->shape));
      }
    if (!Arch::names.lm_head.empty())
      result.lm_head =
          load.optional(std::string(Arch::names.lm_head) + ".weight", {config.vocab_size, config.hidden_size});
    return result;
  }

  /// The adapter whose tensors are called `prefix` + PEFT's key.
  template <class T>
  Adapter<T> adapter(const std::shared_ptr<const AdapterLayout>& layout, const std::string& prefix) const {
    Adapter<T> result(layout);
    for (const StateEntry& entry : state_entries(*layout)) {
      const std::vector<double> values = tensor(prefix + entry.key);
      REQUIRE_MESSAGE(static_cast<Index>(values.size()) == entry.size(), entry.key);
      std::copy(values.begin(), values.end(), result.values().begin() + entry.offset);
    }
    return result;
  }
};

/// Largest |got - expected| over the largest |expected|.
template <class A, class E>
double relative_error(const A& got, const E& expected) {
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
    size = std::max(size, std::abs(static_cast<double>(expected[i])));
  }
  return size > 0 ? difference / size : difference;
}

/// What a comparison with the reference allows: the bounds.
template <class T>
inline constexpr double golden_tolerance = sizeof(T) == 8 ? 1e-9 : 1e-5;

}  // namespace fedlora::tests
