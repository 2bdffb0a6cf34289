// SPDX-License-Identifier: Apache-2.0
// The gradient of a whole classifier, against central differences of its own loss, in every way it can be configured.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "../nn/tiny.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/testing/gradient_check.hpp"

namespace fedlora::tests {

template <class Arch>
using TinyClassifier = SequenceClassifier<Arch, CpuBackend<double>>;

/// Checks the gradient at a random adapter.
template <class Model>
void check_gradient_of(const Model& model, const std::string& what, Index every = 1) {
  const Dataset data = tiny_data({4, 1, 7, 2});
  const auto adapter = random_adapter<double>(model.layout());
  const StepAddress address{5, 2, 3, 1, 0};
  const auto report = testing::check_model_gradient(model, data, all_of(data), adapter.values(), address,
                                                    {.step = 1e-5, .every = every});
  CHECK_MESSAGE(report.within(2e-7), what << ": " << report.text());
  CHECK(report.compared >= model.layout()->size / every);
}

/// The gradient of a model's loss at `adapter`, on the same data.
template <class Model>
std::pair<std::vector<double>, double> gradient_at(const Model& model, const Adapter<double>& adapter,
                                                   const Dataset& data, const StepAddress& address = {}) {
  typename Model::Workspace workspace(model.backend());
  std::vector<double> gradient(adapter.values().size(), 0.0);
  const double loss =
      model.accumulate_gradient(workspace, data, all_of(data), adapter.values(), gradient, 0.25, address);
  return {gradient, loss};
}

template <class Arch>
void check_all_gradients() {
  const auto base = tiny_base<Arch>();
  const LoraConfig everywhere{.rank = 2, .alpha = 3, .target_modules = {"all-linear"}};

  LoraConfig dropped = everywhere;
  dropped.dropout = 0.25;
  const TinyClassifier<Arch> with_dropout(base, {}, dropped);
  CHECK(with_dropout.layout()->sites.size() >= 2 * 6);
  check_gradient_of(with_dropout, "all linear layers, every dropout on");
  check_gradient_of(TinyClassifier<Arch>(base, {.base_dropout = 0.0}, everywhere), "all linear layers, no dropout", 3);
  check_gradient_of(TinyClassifier<Arch>(base, {.pooling = Pooling::mean}, dropped), "mean pooling", 5);
  check_gradient_of(TinyClassifier<Arch>(base, {}, {.rank = 1, .alpha = 1, .head_only = true}), "head alone");

  const Json three = Arch::model_type == "distilbert" ? Json{{"n_layers", 3}} : Json{{"num_hidden_layers", 3}};
  check_gradient_of(TinyClassifier<Arch>(tiny_base<Arch>(2, three), {}, everywhere), "three blocks", 7);

  // Where backward stops early: at each linear layer of the top block, and of the lower one, alone.
  for (const Index layer : {0, 1})
    for (std::size_t i = 0; i < layer_linears; ++i) {
      if (Arch::names.linears[i].empty()) continue;
      const std::string name = Arch::names.linear(layer, static_cast<LayerLinear>(i));
      LoraConfig one{.rank = 3, .alpha = 2, .dropout = 0.25, .target_modules = {name}};
      check_gradient_of(TinyClassifier<Arch>(base, {}, one), name, 5);
    }
}

/// An adapter on some sites is an adapter on all sites whose other B are zero: same loss, same gradients where both
/// have a site. Backward may stop early only where nothing is lost.
template <class Arch>
void check_early_stop() {
  const auto base = tiny_base<Arch>();
  const Dataset data = tiny_data({4, 1, 7, 2});
  const StepAddress address{5, 2, 3, 1, 0};
  LoraConfig everywhere{.rank = 2, .alpha = 3, .dropout = 0.25, .target_modules = {"all-linear"}};
  const TinyClassifier<Arch> whole(base, {}, everywhere);
  std::vector<std::string> patterns = {".*layers?\\.1\\..*", ".*layers?\\.0\\..*"};
  for (std::size_t i = 0; i < layer_linears; ++i)
    if (!Arch::names.linears[i].empty()) patterns.push_back(".*layers?\\.1\\..*" + std::string(Arch::names.linears[i]));
  for (const std::string& pattern : patterns) {
    CAPTURE(pattern);
    LoraConfig some = everywhere;
    some.target_modules = {};
    some.target_pattern = pattern;
    const TinyClassifier<Arch> part(base, {}, some);
    const auto adapter = random_adapter<double>(part.layout());
    auto padded = random_adapter<double>(whole.layout(), 8);
    const auto partial_entries = state_entries(*part.layout());
    const auto find = [&](const std::string& key) -> const StateEntry* {
      for (const StateEntry& entry : partial_entries)
        if (entry.key == key) return &entry;
      return nullptr;
    };
    for (const StateEntry& entry : state_entries(*whole.layout())) {
      const auto to =
          padded.values().subspan(static_cast<std::size_t>(entry.offset), static_cast<std::size_t>(entry.size()));
      if (const StateEntry* from = find(entry.key))
        std::copy_n(adapter.values().begin() + from->offset, from->size(), to.begin());
      else if (entry.key.ends_with("lora_B.weight"))
        std::fill(to.begin(), to.end(), 0.0);
    }
    const auto [gradient, loss] = gradient_at(part, adapter, data, address);
    const auto [expected, expected_loss] = gradient_at(whole, padded, data, address);
    CHECK(loss == doctest::Approx(expected_loss).epsilon(1e-13));
    for (const StateEntry& entry : state_entries(*whole.layout()))
      if (const StateEntry* mine = find(entry.key)) {
        const auto size = static_cast<std::size_t>(entry.size());
        const std::span<const double> got(gradient.data() + mine->offset, size);
        CHECK_MESSAGE(difference(got, std::span<const double>(expected.data() + entry.offset, size)) <= 1e-11,
                      entry.key);
      }
  }
}

/// Where the hidden dropout acts in training, as in transformers: on the embeddings, after the attention's output layer
/// (not in DistilBERT), after the MLP. Each place is looked at alone, with zeros at the others.
template <class Arch>
void check_dropout_places(bool after_attention) {
  const Json only_hidden = Arch::model_type == "distilbert"
                               ? Json{{"attention_dropout", 0.0}, {"seq_classif_dropout", 0.0}}
                               : Json{{"attention_probs_dropout_prob", 0.0}, {"classifier_dropout", 0.0}};
  const auto acts = [&](bool embeddings, bool attention, bool mlp) {
    const auto base = tiny_base<Arch>(1, only_hidden, [&](TinyTensors& tensors) {
      const auto clear = [&](const std::string& name) {
        for (const char* part : {".weight", ".bias"}) {
          auto& values = tensors.at(name + part).second;
          std::fill(values.begin(), values.end(), 0.0);
        }
      };
      if (!embeddings) clear(std::string(Arch::names.prefix) + std::string(Arch::names.embedding_norm));
      for (const Index layer : {0, 1}) {
        if (!attention) clear(Arch::names.linear(layer, LayerLinear::output));
        if (!mlp) clear(Arch::names.linear(layer, LayerLinear::down));
      }
    });
    const LoraConfig head{.head_only = true};
    const TinyClassifier<Arch> noisy(base, {}, head), quiet(base, {.base_dropout = 0.0}, head);
    const auto adapter = random_adapter<double>(noisy.layout());
    const Dataset data = tiny_data({4, 1, 7, 2});
    return gradient_at(noisy, adapter, data).second != gradient_at(quiet, adapter, data).second;
  };
  CHECK_FALSE(acts(false, false, false));
  CHECK(acts(true, false, false));
  CHECK(acts(false, true, false) == after_attention);
  CHECK(acts(false, false, true));
}

}  // namespace fedlora::tests
