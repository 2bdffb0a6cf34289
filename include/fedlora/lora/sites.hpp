// SPDX-License-Identifier: Apache-2.0
// Which modules of a base carry a low-rank term, and which are trained whole: PEFT's rules.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/lora/adapter.hpp"
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

/// The first part of an expression that Python reads and ECMAScript reads otherwise, so that it would match other
/// modules in silence; empty without one: escaped letters that Python alone knows (\A, \Z), possessive quantifiers,
/// classes that begin with ']' or hold "[:".
inline std::string_view misread_part(std::string_view pattern) {
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '\\') {
      const bool letter = (next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z');
      if (letter && std::string_view("bBdDsSwWfnrtvxu").find(next) == std::string_view::npos)
        return pattern.substr(i, 2);
      ++i;
    } else if (in_class) {
      if (c == '[' && next == ':') return pattern.substr(i, 2);
      in_class = c != ']';
    } else if (c == '[') {
      const std::size_t first = i + (next == '^' ? 2 : 1);
      if (first < pattern.size() && pattern[first] == ']') return pattern.substr(i, first + 1 - i);
      if (first + 1 < pattern.size() && pattern.substr(first, 2) == "[:") return pattern.substr(first, 2);
      in_class = true;
    } else if (std::string_view("*+?}").find(c) != std::string_view::npos && (next == '+' || next == '*')) {
      return pattern.substr(i, 2);
    }
  }
  return {};
}

/// Patterns come with adapters from anywhere: long ones are refused, and where the standard library can, matching takes
/// polynomial time whatever the pattern.
inline std::regex compile_pattern(const std::string& pattern, const std::string& field) {
  constexpr std::size_t longest = 8192;
  if (pattern.size() > longest)
    fail<ConfigError>("LoRA " + field, "a regular expression of at most " + std::to_string(longest) + " characters",
                      std::to_string(pattern.size()));
  if (const std::string_view part = misread_part(pattern); !part.empty())
    fail<ConfigError>("LoRA " + field,
                      "a regular expression without " + in_quotes(part) + ", which Python alone reads so",
                      in_quotes(pattern));
  if (std::count(pattern.begin(), pattern.end(), '(') > 256)
    fail<ConfigError>("LoRA " + field, "a regular expression with at most 256 groups", "more");
  try {
#if defined(__GLIBCXX__)
    return std::regex(pattern, std::regex::ECMAScript | std::regex_constants::__polynomial);
#else
    return std::regex(pattern, std::regex::ECMAScript);
#endif
  } catch (const std::regex_error& error) {
    fail<ConfigError>("LoRA " + field, "a regular expression", "'" + pattern + "' (" + error.what() + ")");
  }
}

/// PEFT's test for modules_to_save: some ancestor's (or the module's own) whole name ends in the entry.
inline bool is_saved(const std::string& module, const std::vector<std::string>& entries) {
  for (std::size_t end = module.find('.');; end = module.find('.', end + 1)) {
    const std::string_view ancestor = std::string_view(module).substr(0, end);
    for (const std::string& entry : entries)
      if (ancestor.ends_with(entry)) return true;
    if (end == std::string::npos) return false;
  }
}

/// The value of the first key that, as a regular expression, matches the end of the name at a dot.
template <class V>
V pattern_value(const std::map<std::string, V>& patterns, const std::string& name, V otherwise,
                const std::string& field) {
  for (const auto& [key, value] : patterns)
    if (std::regex_match(name, compile_pattern("(.*\\.)?(" + key + ")", field))) return value;
  return otherwise;
}

inline bool is_target(const LoraConfig& config, const std::vector<std::string>& targets, const std::string& name) {
  if (!config.target_pattern.empty())
    return std::regex_match(name, compile_pattern(config.target_pattern, "target_modules"));
  return std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
    return name == target ||
           (name.size() > target.size() && name.ends_with(target) && name[name.size() - target.size() - 1] == '.');
  });
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
  const auto wanted = [&](const std::string& name) {
    if (config.head_only) return false;
    if (all_linear) return true;
    for (std::size_t t = 0; t < targets.size(); ++t)
      if (detail::is_target({}, {targets[t]}, name)) hit[t] = true;
    return detail::is_target(config, targets, name);
  };
  const auto add = [&](const std::string& name, Index in, Index out) {
    layout->add_site(name, in, out, detail::pattern_value(config.rank_pattern, name, config.rank, "rank_pattern"),
                     detail::pattern_value(config.alpha_pattern, name, config.alpha, "alpha_pattern"));
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
