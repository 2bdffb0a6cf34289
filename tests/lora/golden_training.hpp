// SPDX-License-Identifier: Apache-2.0
// A family against transformers and peft: logits, losses, gradients and AdamW steps, on rows of different length, so
// that packing is shown to equal padding.
#pragma once

#include <doctest/doctest.h>

#include <numeric>
#include <string>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/optim/adamw.hpp"
#include "golden.hpp"

namespace fedlora::tests {

template <class Model>
void check_training(const Golden& golden, const std::string& name, const Model& model) {
  using T = typename Model::Scalar;
  const Json& c = golden.cases["cases"][name];
  std::vector<std::string> modules;
  for (const AdapterSite& site : model.layout()->sites) modules.push_back(site.name);
  CHECK(modules == c["modules"].get<std::vector<std::string>>());

  const Dataset data = golden.dataset(name);
  std::vector<Index> examples(static_cast<std::size_t>(data.size()));
  std::iota(examples.begin(), examples.end(), 0);
  Adapter<T> adapter = golden.adapter<T>(model.layout(), "adapter." + name + ".");
  const double tolerance = golden_tolerance<T>;

  const AdamW optimizer{.lr = golden.cases["optimizer"]["lr"].get<double>(),
                        .weight_decay = golden.cases["optimizer"]["weight_decay"].get<double>()};
  AdamW::State<T> state;
  typename Model::Workspace workspace(model.backend());
  const auto losses = c["losses"].get<std::vector<double>>();
  const auto count = static_cast<double>(model.loss_count(data, examples));
  for (std::size_t step = 0; step < losses.size(); ++step) {
    std::vector<T> gradient(adapter.values().size(), T(0));
    const double loss =
        model.accumulate_gradient(workspace, data, examples, adapter.values(), gradient, 1.0 / count, {}) / count;
    CHECK(loss == doctest::Approx(losses[step]).epsilon(sizeof(T) == 8 ? 1e-10 : 1e-4));
    if (step == 0) {
      for (const StateEntry& entry : state_entries(*model.layout())) {
        const std::span<const T> got(gradient.data() + entry.offset, static_cast<std::size_t>(entry.size()));
        const double error = relative_error(got, golden.tensor("grad." + name + "." + entry.key));
        CHECK_MESSAGE(error <= tolerance, "gradient of " << entry.key << ": " << error);
      }
    }
    optimizer.step(state, adapter.values(), gradient, optimizer.lr);
    for (const StateEntry& entry : state_entries(*model.layout())) {
      const std::span<const T> got(adapter.values().data() + entry.offset, static_cast<std::size_t>(entry.size()));
      const double error =
          relative_error(got, golden.tensor("step" + std::to_string(step + 1) + "." + name + "." + entry.key));
      // AdamW divides by the gradient's own size: in float32 an entry whose gradient is rounding noise may step either
      // way.
      CHECK_MESSAGE(error <= (sizeof(T) == 8 ? 1e-8 : 2e-2),
                    "step " << step + 1 << " of " << entry.key << ": " << error);
    }
  }
}

template <class Arch, class T>
void check_family(const std::string& family) {
  using B = CpuBackend<T>;
  const Golden golden(family);
  const auto base = golden.base<Arch, B>();
  for (const char* name : {"a", "b", "c"}) {
    CAPTURE(name);
    SequenceClassifier<Arch, B> model(base, {.labels = {"x", "y", "z"}, .base_dropout = 0.0}, golden.lora(name));
    const Dataset data = golden.dataset();
    const Adapter<T> adapter = golden.adapter<T>(model.layout(), std::string("adapter.") + name + ".");
    CHECK(relative_error(model.logits(adapter, data, 1), golden.tensor(std::string("logits.") + name)) <=
          golden_tolerance<T>);
    check_training(golden, name, model);
  }
}

}  // namespace fedlora::tests
