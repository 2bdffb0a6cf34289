// SPDX-License-Identifier: Apache-2.0
// From a flat array of adapter parameters to the terms that a pass reads.
#pragma once

#include <cmath>
#include <span>
#include <string>
#include <type_traits>

#include "fedlora/core/random.hpp"
#include "fedlora/core/step.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/sites.hpp"
#include "fedlora/nn/batch.hpp"

namespace fedlora {

/// The terms of one slot: views into `parameters` and, in training, into `gradient` (empty otherwise), both where the
/// backend's operations read them. \throws ShapeError when either has another size than the layout.
template <class T, class Sum = T>
SlotTerms<T, Sum> bind_adapter(const AdapterPlan& plan, const std::vector<HeadLayer>& head,
                               std::type_identity_t<std::span<const T>> parameters,
                               std::type_identity_t<std::span<Sum>> gradient, const StepAddress& address,
                               double adapter_dropout) {
  const AdapterLayout& layout = *plan.layout;
  const auto size = static_cast<std::size_t>(layout.size);
  if (parameters.size() != size)
    fail<ShapeError>("parameters", std::to_string(size) + " values, the adapter's", std::to_string(parameters.size()));
  if (!gradient.empty() && gradient.size() != size)
    fail<ShapeError>("gradient", std::to_string(size) + " values, the adapter's", std::to_string(gradient.size()));
  const auto term = [&](Index index) {
    LowRankTerm<T, Sum> result;
    if (index < 0) return result;
    const AdapterSite& site = layout.sites[static_cast<std::size_t>(index)];
    result.a = {parameters.data() + site.a_offset, site.rank, site.in};
    result.b = {parameters.data() + site.b_offset, site.out, site.rank};
    result.scale = static_cast<Sum>(site.scale);
    if (!gradient.empty()) {
      result.grad_a = {gradient.data() + site.a_offset, site.rank, site.in};
      result.grad_b = {gradient.data() + site.b_offset, site.out, site.rank};
    }
    return result;
  };
  SlotTerms<T, Sum> slot;
  slot.address = address;
  slot.adapter_dropout = adapter_dropout;
  slot.layers.reserve(plan.layer_sites.size());
  for (const Index site : plan.layer_sites) slot.layers.push_back(term(site));
  for (const Index site : plan.head_sites) slot.head.push_back(term(site));
  std::size_t next = 0;
  for (std::size_t i = 0; i < head.size(); ++i) {
    DenseTerm<T, Sum> dense;
    if (plan.head_saved[i]) {
      const SavedTensor& weight = layout.saved[next++];
      dense.weight = {parameters.data() + weight.offset, weight.shape[0], weight.shape[1]};
      if (!gradient.empty()) dense.grad_weight = {gradient.data() + weight.offset, weight.shape[0], weight.shape[1]};
      if (head[i].bias) {
        const SavedTensor& bias = layout.saved[next++];
        dense.bias = parameters.data() + bias.offset;
        if (!gradient.empty()) dense.grad_bias = gradient.data() + bias.offset;
      }
    }
    slot.dense.push_back(dense);
  }
  return slot;
}

/// Draws A of every site (B stays zero): uniform in ±1/sqrt(in), or normal with deviation 1/rank.
template <class T>
void initialise_low_rank(const AdapterPlan& plan, std::uint64_t seed, Adapter<T>& adapter) {
  const AdapterLayout& layout = *plan.layout;
  for (std::size_t i = 0; i < layout.sites.size(); ++i) {
    const AdapterSite& site = layout.sites[i];
    RandomSequence draws(derive_key(seed, Purpose::initialise_adapter, i));
    const double bound = 1.0 / std::sqrt(static_cast<double>(site.in));
    for (T& value : adapter.values().subspan(static_cast<std::size_t>(site.a_offset),
                                             static_cast<std::size_t>(site.rank * site.in)))
      value = static_cast<T>(layout.config.init == LoraInit::kaiming ? bound * (2.0 * draws.uniform() - 1.0)
                                                                     : draws.normal() / static_cast<double>(site.rank));
  }
}

}  // namespace fedlora
