// SPDX-License-Identifier: Apache-2.0
// Which modules of a base carry a low-rank term, and which are trained whole: PEFT's rules.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/name_pattern.hpp"
#include "fedlora/nn/concepts.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

/// The layout of an adapter over one base, and the way from a place in the network to a place in the layout.
struct AdapterPlan {
  std::shared_ptr<const AdapterLayout> layout;
  std::vector<Index> layer_sites;  ///< site of layer * layer_linears + LayerLinear, or -1
  std::vector<Index> head_sites;   ///< site of each head layer, or -1
  std::vector<bool> head_saved;    ///< whether a head layer is trained whole
  Index lowest_adapted = 0;        ///< first block with a site; the number of blocks when there is none
};

namespace detail {

/// PEFT's test for modules_to_save: some ancestor's (or the module's own) whole name ends in the entry.
inline bool is_saved(const std::string& module, const std::vector<std::string>& entries) {
  for (std::size_t end = module.find('.');; end = module.find('.', end + 1)) {
    const std::string_view ancestor = std::string_view(module).substr(0, end);
    for (const std::string& entry : entries)
      if (ancestor.ends_with(entry)) return true;
    if (end == std::string::npos) return false;
  }
}

}  // namespace detail

/// Plans an adapter: low-rank terms in the order transformers lists the modules, then the whole tensors of the head.
/// `linear_shape(layer, which)` gives (out, in). \throws ConfigError naming what matched nothing, and what there is.
template <Architecture Arch, class LinearShape>
AdapterPlan plan_adapter(const ModelConfig& model, const std::vector<HeadLayer>& head, const LoraConfig& config,
                         TaskType task, const std::vector<std::string>& always_saved, LinearShape&& linear_shape) {
  if (config.rank <= 0 || config.rank > 65536)
    fail<ConfigError>("LoRA rank", "at least 1 and at most 65536", std::to_string(config.rank));
  if (!(config.dropout >= 0 && config.dropout < 1))
    fail<ConfigError>("LoRA dropout", "a probability in [0, 1)", std::to_string(config.dropout));
  if (!(config.alpha > 0)) fail<ConfigError>("LoRA alpha", "a positive number", std::to_string(config.alpha));

  AdapterPlan plan;
  auto layout = std::make_shared<AdapterLayout>();
  layout->config = config;
  layout->task = task;

  // What is trained whole: PEFT's own entries for the task, the user's, and what the checkpoint does not have.
  std::vector<std::string> saved = config.modules_to_save;
  if (task == TaskType::sequence_classification && !config.freeze_head)
    saved.insert(saved.end(), {"classifier", "score"});
  saved.insert(saved.end(), always_saved.begin(), always_saved.end());
  std::sort(saved.begin(), saved.end());
  saved.erase(std::unique(saved.begin(), saved.end()), saved.end());
  plan.head_saved.resize(head.size());
  for (std::size_t i = 0; i < head.size(); ++i) plan.head_saved[i] = detail::is_saved(head[i].name, saved);
  for (const std::string& entry : config.modules_to_save) {
    const bool any = std::any_of(head.begin(), head.end(),
                                 [&](const HeadLayer& layer) { return detail::is_saved(layer.name, {entry}); });
    if (any || entry == "classifier" || entry == "score") continue;
    std::string known;
    for (const HeadLayer& layer : head) known += (known.empty() ? "" : ", ") + layer.name;
    fail<ConfigError>(
        "LoRA modules_to_save",
        "modules of the head, as no others can be trained whole: " + (known.empty() ? "none here" : known),
        "'" + entry + "'");
  }
  layout->modules_to_save = saved;

  const bool all_linear = config.target_modules.size() == 1 && config.target_modules[0] == "all-linear";
  const std::vector<std::string> targets =
      config.target_modules.empty() ? Arch::default_targets() : config.target_modules;
  std::vector<bool> hit(targets.size(), false);
  std::optional<detail::NamePattern> expression;
  if (!config.target_pattern.empty())
    expression.emplace(config.target_pattern, detail::NamePattern::Place::whole, "LoRA target_modules");
  const auto wanted = [&](const std::string& name) {
    if (config.head_only) return false;
    if (all_linear) return true;
    bool named = false;
    for (std::size_t t = 0; t < targets.size(); ++t)
      if (detail::is_named(name, targets[t])) named = hit[t] = true;
    return expression ? expression->matches(name) : named;
  };
  const detail::PatternValues<Index> ranks(config.rank_pattern, "LoRA rank_pattern");
  const detail::PatternValues<double> alphas(config.alpha_pattern, "LoRA alpha_pattern");
  const auto add = [&](const std::string& name, Index in, Index out) {
    layout->add_site(name, in, out, ranks.find(name).value_or(config.rank), alphas.find(name).value_or(config.alpha));
    return static_cast<Index>(layout->sites.size()) - 1;
  };

  plan.layer_sites.assign(static_cast<std::size_t>(model.layers) * layer_linears, -1);
  plan.lowest_adapted = model.layers;
  std::string examples;
  for (Index layer = 0; layer < model.layers; ++layer) {
    for (std::size_t i = 0; i < layer_linears; ++i) {
      if (Arch::names.linears[i].empty()) continue;
      const std::string name = Arch::names.linear(layer, static_cast<LayerLinear>(i));
      if (layer == 0) examples += (examples.empty() ? "" : ", ") + std::string(Arch::names.linears[i]);
      if (!wanted(name)) continue;
      const auto [out, in] = linear_shape(layer, static_cast<LayerLinear>(i));
      plan.layer_sites[static_cast<std::size_t>(layer) * layer_linears + i] = add(name, in, out);
      plan.lowest_adapted = std::min(plan.lowest_adapted, layer);
    }
  }
  plan.head_sites.assign(head.size(), -1);
  for (std::size_t i = 0; i < head.size(); ++i)
    if (!plan.head_saved[i] && wanted(head[i].name)) plan.head_sites[i] = add(head[i].name, head[i].in, head[i].out);

  if (layout->sites.empty() && !config.head_only) {
    std::string asked = config.target_pattern;
    if (asked.empty())
      for (const std::string& target : targets) asked += (asked.empty() ? "" : ", ") + target;
    fail<ConfigError>("LoRA target_modules",
                      "the names of linear layers of " + std::string(Arch::model_type) + " (" + examples + ")",
                      "'" + asked + "', which matches none");
  }
  if (all_linear || !config.target_pattern.empty()) {
    for (const AdapterSite& site : layout->sites) {
      std::string last = site.name.substr(site.name.rfind('.') + 1);
      if (std::find(layout->target_modules.begin(), layout->target_modules.end(), last) == layout->target_modules.end())
        layout->target_modules.push_back(std::move(last));
    }
  } else if (!config.head_only) {
    for (std::size_t t = 0; t < targets.size(); ++t) {
      if (!hit[t])
        fail<ConfigError>("LoRA target_modules",
                          "the names of linear layers of " + std::string(Arch::model_type) + " (" + examples + ")",
                          "'" + targets[t] + "', which matches none");
      layout->target_modules.push_back(targets[t]);
    }
  }
  std::sort(layout->target_modules.begin(), layout->target_modules.end());

  for (std::size_t i = 0; i < head.size(); ++i) {
    if (!plan.head_saved[i]) continue;
    layout->add_saved(head[i].name + ".weight", {head[i].out, head[i].in});
    if (head[i].bias) layout->add_saved(head[i].name + ".bias", {head[i].out});
  }
  plan.layout = std::move(layout);
  return plan;
}

}  // namespace fedlora
