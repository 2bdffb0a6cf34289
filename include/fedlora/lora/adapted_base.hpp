// SPDX-License-Identifier: Apache-2.0
// What every task over a frozen base with LoRA does alike: it holds the base and the plan of its adapter, runs a batch
// through the base and back, and a data set through in evaluation batches.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/core/parallel.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/binding.hpp"
#include "fedlora/lora/encode.hpp"
#include "fedlora/lora/pretrained.hpp"
#include "fedlora/lora/sites.hpp"

namespace fedlora {

/// Base class of the task models. Const, shared by all clients and threads; it holds no trainable number.
template <Architecture Arch, Backend B>
class AdaptedBase {
 public:
  using Backend = B;
  using Scalar = typename B::Scalar;
  using T = Scalar;

  /// Working memory of one worker.
  struct Workspace : TransformerWorkspace<B> {
    explicit Workspace(const B&) {}
    PackedBatch batch;
  };

  const B& backend() const { return base_.backend; }
  const Pretrained<Arch, B>& base() const { return base_; }
  const std::shared_ptr<const AdapterLayout>& layout() const { return plan_.layout; }
  Index max_tokens() const { return max_tokens_; }

 protected:
  /// `max_tokens` 0: all the base has positions for. `base_dropout` stands for every dropout of config.json.
  AdaptedBase(Pretrained<Arch, B> base, Index max_tokens, std::optional<double> base_dropout)
      : base_(std::move(base)), max_tokens_(checked_max_tokens(max_tokens, base_.config(), base_.name)) {
    const ModelConfig& config = base_.config();
    dropouts_ = {base_dropout.value_or(config.hidden_dropout), base_dropout.value_or(config.attention_dropout),
                 base_dropout.value_or(config.classifier_dropout)};
  }

  /// Places the adapter, before anything is run. \throws ConfigError for a configuration that fits nothing in the base.
  void place_adapter(const LoraConfig& lora, TaskType task, std::vector<HeadLayer> head,
                     const std::vector<std::string>& always_saved, const std::vector<std::string>& labels) {
    plan_ = plan_adapter<Arch>(base_.config(), head, lora, task, always_saved, [&](Index layer, LayerLinear which) {
      const FrozenLinear& linear = base_.transformer->linear(layer, which);
      return std::pair{linear.out(), linear.in()};
    });
    auto layout = std::make_shared<AdapterLayout>(*plan_.layout);
    layout->base_model = base_.name;
    layout->id2label = labels;
    plan_.layout = std::move(layout);
    head_layers_ = std::move(head);
  }

  const AdapterPlan& plan() const { return plan_; }

  /// The terms of a training step: `parameters` as they are, `gradient` to add to.
  SlotTerms<T> training_slot(std::span<const T> parameters, std::span<T> gradient, const StepAddress& address) const {
    return bind_adapter<T>(plan_, head_layers_, parameters, gradient, address, plan_.layout->config.dropout);
  }

  /// The terms of an evaluation: no gradient, no dropout. \throws ShapeError when the adapter is of another layout.
  SlotTerms<T> evaluation_slot(const Adapter<T>& adapter) const {
    if (!same_places(adapter.layout(), *plan_.layout))
      fail<ShapeError>("evaluation", "an adapter of this model's layout", "another layout");
    return bind_adapter<T>(plan_, head_layers_, adapter.values(), {}, {}, 0.0);
  }

  /// A pass of one slot. In training the dropouts are on and backward may follow.
  PassOptions<T> pass_of(const SlotTerms<T>& slot, bool training) const {
    PassOptions<T> pass;
    pass.slots = {&slot, 1};
    pass.training = training;
    if (training) pass.dropouts = dropouts_;
    pass.lowest_adapted = plan_.lowest_adapted;
    return pass;
  }

  /// The last block's output before and behind the final normalisation (the same for families without one).
  struct LastHidden {
    MatrixView<T> before, after, statistics;
  };

  /// Runs the workspace's batch through the base; of the last block only `pooled_rows`, unless that is empty.
  LastHidden forward(Workspace& workspace, PassOptions<T>& pass, std::span<const std::int32_t> pooled_rows) const {
    const PackedBatch& batch = workspace.batch;
    base_.transformer->check(batch.tokens, batch.token_types, batch.cu_seqlens);
    workspace.arena.reset();
    workspace.tables.build(batch.cu_seqlens, batch.segments, pooled_rows);
    pass.pooled_only = !pooled_rows.empty();
    LastHidden last;
    last.before = base_.transformer->forward(batch.tokens, batch.token_types, pass, workspace);
    last.after = last.before;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      last.after = workspace.arena.matrix(last.before.rows, last.before.cols);
      last.statistics = workspace.arena.matrix(last.before.rows, 2);
      base_.transformer->final_norm(last.before, last.after, last.statistics);
    }
    return last;
  }

  /// From the gradient of `last.after` to the gradients of all low-rank terms in the base.
  void backward(MatrixView<T> d_after, const LastHidden& last, const PassOptions<T>& pass, Workspace& workspace) const {
    MatrixView<T> d_before = d_after;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      d_before = workspace.arena.matrix(last.before.rows, last.before.cols);
      base_.transformer->final_norm_backward(d_after, last.before, last.statistics, d_before);
    }
    base_.transformer->backward(d_before, pass, workspace);
  }

  /// Calls `body(workspace, pass, first)` on up to `threads` threads with the examples from `first` on packed in the
  /// workspace's batch, for every evaluation batch of the data.
  template <class W, class Body>
  void for_evaluation_batches(const Adapter<T>& adapter, const Dataset& data, int threads, Body&& body) const {
    const SlotTerms<T> slot = evaluation_slot(adapter);
    const std::vector<Index> starts = evaluation_batches(data);
    std::vector<std::unique_ptr<W>> workspaces(static_cast<std::size_t>(worker_count(threads)));
    parallel_for(starts.size() - 1, threads, [&](int worker, std::size_t chunk) {
      [[maybe_unused]] const typename B::ThreadScope scope{};
      auto& workspace = workspaces[static_cast<std::size_t>(worker)];
      if (!workspace) workspace = std::make_unique<W>(base_.backend);
      std::vector<Index> examples;
      for (Index i = starts[chunk]; i < starts[chunk + 1]; ++i) examples.push_back(i);
      pack(data, examples, workspace->batch);
      PassOptions<T> pass = pass_of(slot, false);
      body(*workspace, pass, starts[chunk]);
    });
  }

 private:
  Pretrained<Arch, B> base_;
  Index max_tokens_ = 0;
  BaseDropouts dropouts_;
  AdapterPlan plan_;
  std::vector<HeadLayer> head_layers_;
};

}  // namespace fedlora
