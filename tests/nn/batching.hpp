// SPDX-License-Identifier: Apache-2.0
// A whole training pass over a packed batch of several clients, written out at the level of layers: what a runner that
// batches clients does.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/lora/binding.hpp"
#include "fedlora/lora/sites.hpp"
#include "fedlora/nn/head.hpp"
#include "tiny.hpp"

namespace fedlora::tests {

/// One client: its adapter, its examples, its randomness.
struct BatchClient {
  LoraConfig lora;
  std::vector<Index> lengths;
  StepAddress address;
  std::uint64_t draw = static_cast<std::uint64_t>(address.client);  ///< its adapter and its texts
};

/// What came out of a pass.
struct PassResult {
  std::vector<double> logits;
  std::vector<std::vector<double>> gradients;  ///< by client
};

/// Base and head of a tiny model, and a pass over them.
template <class Arch, class B = CpuBackend<double>>
struct Batching {
  using T = typename B::Scalar;
  using Workspace = TransformerWorkspace<B>;

  Pretrained<Arch, B> base = tiny_base<Arch, B>();
  std::vector<HeadLayer> layers;
  ClassificationHead<B> head;

  Batching() {
    layers = Arch::head(base.config());
    std::vector<FrozenLinear> frozen;
    for (HeadLayer& layer : layers) {
      if (layer.out == 0) layer.out = 3;
      const auto bias = base.head.find(layer.name + ".bias");
      frozen.push_back({base.head.at(layer.name + ".weight"), bias == base.head.end() ? FrozenMatrix{} : bias->second});
    }
    head = ClassificationHead<B>(layers, frozen);
  }

  AdapterPlan plan(const LoraConfig& lora) const {
    return plan_adapter<Arch>(base.config(), layers, lora, TaskType::sequence_classification, {},
                              [&](Index layer, LayerLinear which) {
                                const FrozenLinear& linear = base.transformer->linear(layer, which);
                                return std::pair{linear.out(), linear.in()};
                              });
  }

  /// Forward and backward of Σ loss over all clients' examples in one batch.
  PassResult run(const std::vector<BatchClient>& clients, const BaseDropouts& dropouts, bool pooled_only,
                 Workspace& workspace) const {
    std::vector<AdapterPlan> plans;
    std::vector<Adapter<T>> adapters;
    std::vector<std::vector<T>> gradients;
    for (const BatchClient& client : clients) {
      plans.push_back(plan(client.lora));
      adapters.push_back(random_adapter<T>(plans.back().layout, client.draw));
      gradients.emplace_back(adapters.back().values().size(), T(0));
    }
    std::vector<SlotTerms<T>> slots;
    PassOptions<T> options;
    options.lowest_adapted = base.config().layers;
    workspace.run.reset();
    std::vector<Segment> segments;
    std::vector<std::int32_t> tokens, types, labels, cu = {0};
    for (std::size_t c = 0; c < clients.size(); ++c) {
      slots.push_back(bind_adapter<T, T>(plans[c], layers, std::as_const(adapters[c]).values(), gradients[c],
                                      clients[c].address, clients[c].lora.dropout));
      options.lowest_adapted = std::min(options.lowest_adapted, plans[c].lowest_adapted);
      const Dataset data = tiny_data(clients[c].lengths, clients[c].draw);
      const auto first = static_cast<std::int32_t>(cu.size()) - 1;
      for (Index s = 0; s < data.size(); ++s) cu.push_back(cu.back() + static_cast<std::int32_t>(data.length(s)));
      segments.push_back({first, static_cast<std::int32_t>(cu.size()) - 1, static_cast<std::int32_t>(c)});
      tokens.insert(tokens.end(), data.tokens.begin(), data.tokens.end());
      types.insert(types.end(), data.token_types.begin(), data.token_types.end());
      labels.insert(labels.end(), data.labels.begin(), data.labels.end());
    }
    const auto sequences = static_cast<Index>(labels.size());
    std::vector<std::int32_t> rows;
    for (std::size_t s = 0; s < labels.size(); ++s)
      rows.push_back(Arch::pooling == Pooling::last_token ? cu[s + 1] - 1 : cu[s]);
    workspace.tables.build(cu, segments,
                           pooled_only ? std::span<const std::int32_t>(rows) : std::span<const std::int32_t>());
    options.slots = slots;
    options.training = true;
    options.dropouts = dropouts;
    options.pooled_only = pooled_only;

    const Transformer<Arch, B>& transformer = *base.transformer;
    auto& run = workspace.run;
    const Index hidden = base.config().hidden_size;
    transformer.prepare(tokens, types, options, workspace);
    const std::int32_t* const numbers = workspace.tables.placed_sequence_numbers;
    const MatrixView<T> last = transformer.forward(options, workspace);
    MatrixView<T> selected = last;
    if (!pooled_only) {
      selected = run.matrix(sequences, hidden);
      run.gather_rows(last, run.place(rows), selected);
    }
    const MatrixView<T> statistics = run.statistics(sequences);
    MatrixView<T> normed = selected;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      normed = run.matrix(sequences, hidden);
      transformer.final_norm(selected, normed, statistics, workspace);
    }
    std::vector<typename ClassificationHead<B>::State> states;
    const MatrixView<T> logits = head.forward(normed, segments, numbers, options, states, run);
    PassResult result;
    result.logits.assign(logits.data, logits.data + logits.size());
    run.cross_entropy(logits, run.place(labels), 1.0);
    const MatrixView<T> d_normed = run.matrix(sequences, hidden);
    head.backward(logits, segments, numbers, options, states, d_normed, run);
    MatrixView<T> d_selected = d_normed;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      d_selected = run.matrix(sequences, hidden);
      transformer.final_norm_backward(d_normed, selected, statistics, d_selected, workspace);
    }
    MatrixView<T> d_last = d_selected;
    if (!pooled_only) {
      d_last = run.matrix(last.rows, hidden);
      run.fill_zero(d_last);
      run.scatter_rows_add(d_selected, run.place(rows), d_last);
    }
    transformer.backward(d_last, options, workspace);
    for (const std::vector<T>& gradient : gradients) result.gradients.emplace_back(gradient.begin(), gradient.end());
    return result;
  }
};

/// Clients with other ranks, sites, dropouts and lengths than each other.
template <class Arch>
std::vector<BatchClient> different_clients() {
  const std::string query(Arch::names.linears[0]), down(Arch::names.linears[6]);
  LoraConfig everywhere{.rank = 3, .alpha = 5, .dropout = 0.3, .target_modules = {"all-linear"}};
  LoraConfig few{.rank = 1, .alpha = 2, .target_modules = {query}};
  LoraConfig top{.rank = 5, .alpha = 2, .dropout = 0.1, .target_pattern = ".*layers?\\.1\\..*" + down};
  LoraConfig none{.head_only = true};
  return {{everywhere, {3, 1, 5}, {1, 2, 11, 0, 0}},
          {few, {2}, {1, 2, 12, 4, 0}},
          {top, {4, 4}, {1, 2, 13, 0, 1}},
          {none, {1, 6}, {9, 2, 14, 0, 0}}};
}

}  // namespace fedlora::tests
