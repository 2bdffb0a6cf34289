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
  using Scalar = typename B::Scalar;    ///< of adapters
  using Element = typename B::Element;  ///< of activations
  using Slot = SlotTerms<Element, Scalar>;
  using Pass = PassOptions<Element, Scalar>;

  /// Working memory of one worker.
  struct Workspace : TransformerWorkspace<B> {
    using TransformerWorkspace<B>::TransformerWorkspace;
    PackedBatch batch;
    Slot slot;  ///< what the pass reads
    Pass pass;
  };

  const B& backend() const { return base_.backend; }
  const Pretrained<Arch, B>& base() const { return base_; }
  const std::shared_ptr<const AdapterLayout>& layout() const { return plan_.layout; }
  Index max_tokens() const { return max_tokens_; }

 protected:
  /// `max_tokens` 0: those of an adapter that was merged into the base, else all it has positions for. `base_dropout`
  /// stands for every dropout of config.json.
  AdaptedBase(Pretrained<Arch, B> base, Index max_tokens, std::optional<double> base_dropout)
      : base_(std::move(base)),
        max_tokens_(
            checked_max_tokens(max_tokens == 0 ? base_.context.max_tokens : max_tokens, base_.config(), base_.name)) {
    const ModelConfig& config = base_.config();
    dropouts_ = {base_dropout.value_or(config.hidden_dropout), base_dropout.value_or(config.attention_dropout),
                 base_dropout.value_or(config.classifier_dropout)};
  }

  /// Places the adapter, before anything is run. `head` ends in the layer that has a row for each of `labels`;
  /// `context` is what the task adds to it. \throws ConfigError for a configuration that fits nothing in the base.
  void place_adapter(const LoraConfig& lora, TaskType task, std::vector<HeadLayer> head,
                     const std::vector<std::string>& always_saved, const std::vector<std::string>& labels,
                     AdapterContext context) {
    plan_ = plan_adapter<Arch>(base_.config(), head, lora, task, always_saved, [&](Index layer, LayerLinear which) {
      const FrozenLinear& linear = base_.transformer->linear(layer, which);
      return std::pair{linear.out(), linear.in()};
    });
    auto layout = std::make_shared<AdapterLayout>(*plan_.layout);
    layout->base_model = base_.name;
    layout->id2label = labels;
    if (!head.empty()) {
      layout->output_layer = head.back().name;
      layout->base_id2label = base_.config().id2label;
    }
    layout->context = std::move(context);
    layout->context.max_tokens = max_tokens_;
    layout->context.base_digest = base_.digest;
    plan_.layout = std::move(layout);
    head_layers_ = std::move(head);
  }

  const AdapterPlan& plan() const { return plan_; }

  /// Whether the base makes the same of a text in every step: nothing in it is adapted, and nothing dropped.
  bool base_is_fixed() const {
    return plan_.lowest_adapted >= base_.config().layers && dropouts_.hidden == 0 && dropouts_.attention == 0;
  }

  /// Binds a training step to the workspace: `parameters` as operations read them, and `gradient` where they add to it.
  void bind_training(Workspace& workspace, std::span<const Element> parameters, std::span<Scalar> gradient,
                     const StepAddress& address) const {
    workspace.slot =
        bind_adapter<Element, Scalar>(plan_, head_layers_, parameters, gradient, address, plan_.layout->config.dropout);
    set_pass(workspace, true);
  }

  /// Binds an evaluation: no gradient, no dropout. \throws ShapeError when the adapter is of another layout.
  void bind_evaluation(Workspace& workspace, const Adapter<Scalar>& adapter) const {
    if (!same_places(adapter.layout(), *plan_.layout))
      fail<ShapeError>("evaluation", "an adapter of this model's layout", "another layout");
    workspace.slot =
        bind_adapter<Element, Scalar>(plan_, head_layers_, workspace.run.parameters(adapter.values()), {}, {}, 0.0);
    set_pass(workspace, false);
  }

  /// The last block's output before and behind the final normalisation (the same for families without one).
  struct LastHidden {
    MatrixView<Element> before, after;
    MatrixView<Scalar> statistics;
  };

  /// Puts the workspace's batch where the runner reads it. Of the last block only `pooled_rows` will be computed,
  /// unless that is empty.
  void prepare_base(Workspace& workspace, std::span<const std::int32_t> pooled_rows) const {
    const PackedBatch& batch = workspace.batch;
    base_.transformer->check(batch.tokens, batch.token_types, batch.cu_seqlens);
    workspace.tables.build(batch.cu_seqlens, batch.segments, pooled_rows);
    workspace.pass.pooled_only = !pooled_rows.empty();
    base_.transformer->prepare(batch.tokens, batch.token_types, workspace.pass, workspace);
  }

  /// Runs the batch that was prepared through the base.
  LastHidden forward(Workspace& workspace) const {
    LastHidden last;
    last.before = base_.transformer->forward(workspace.pass, workspace);
    last.after = last.before;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      last.after = workspace.run.operand(last.before.rows, last.before.cols);
      last.statistics = workspace.run.statistics(last.before.rows);
      base_.transformer->final_norm(last.before, last.after, last.statistics, workspace);
    }
    return last;
  }

  /// From the gradient of `last.after` to the gradients of all low-rank terms in the base.
  void backward(MatrixView<Element> d_after, const LastHidden& last, Workspace& workspace) const {
    MatrixView<Element> d_before = d_after;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      d_before = workspace.run.matrix(last.before.rows, last.before.cols);
      base_.transformer->final_norm_backward(d_after, last.before, last.statistics, d_before, workspace);
    }
    base_.transformer->backward(d_before, workspace.pass, workspace);
  }

  /// Calls `body(workspace, first)` on up to `threads` threads with the examples from `first` on packed in the
  /// workspace's batch and the adapter bound, for every evaluation batch of the data.
  template <class W, class Body>
  void for_evaluation_batches(const Adapter<Scalar>& adapter, const Dataset& data, int threads, Body&& body) const {
    const std::vector<Index> starts = evaluation_batches(data);
    const int workers = runner_threads(base_.backend, threads);
    std::vector<std::unique_ptr<W>> workspaces(static_cast<std::size_t>(workers));
    parallel_for(starts.size() - 1, workers, [&](int worker, std::size_t chunk) {
      [[maybe_unused]] const typename B::ThreadScope scope{};
      auto& workspace = workspaces[static_cast<std::size_t>(worker)];
      if (!workspace) workspace = std::make_unique<W>(base_.backend);
      std::vector<Index> examples;
      for (Index i = starts[chunk]; i < starts[chunk + 1]; ++i) examples.push_back(i);
      pack(data, examples, workspace->batch);
      workspace->run.reset();
      bind_evaluation(*workspace, adapter);
      body(*workspace, starts[chunk]);
    });
  }

 private:
  /// A pass of the workspace's slot. In training the dropouts are on and backward may follow.
  void set_pass(Workspace& workspace, bool training) const {
    workspace.pass = {};
    workspace.pass.slots = {&workspace.slot, 1};
    workspace.pass.training = training;
    if (training) workspace.pass.dropouts = dropouts_;
    workspace.pass.lowest_adapted = plan_.lowest_adapted;
  }

  Pretrained<Arch, B> base_;
  Index max_tokens_ = 0;
  BaseDropouts dropouts_;
  AdapterPlan plan_;
  std::vector<HeadLayer> head_layers_;
};

}  // namespace fedlora
