// SPDX-License-Identifier: Apache-2.0
// A frozen causal base with LoRA, trained to predict the next token: transformers' ForCausalLM under PEFT.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/core/parallel.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/binding.hpp"
#include "fedlora/lora/encode.hpp"
#include "fedlora/lora/evaluation.hpp"
#include "fedlora/lora/pretrained.hpp"
#include "fedlora/lora/sites.hpp"

namespace fedlora {

/// What a language model is, apart from its adapter.
struct LanguageModelOptions {
  Index max_tokens = 0;                     ///< longest sequence in tokens; 0: all the base has positions for
  std::optional<double> base_dropout = {};  ///< instead of every dropout of config.json
};

/// A next-token model. The output layer is frozen; logits exist for a few hundred rows at a time, never for all.
template <Architecture Arch, Backend B>
requires(Arch::causal) class LanguageModel {
 public:
  using Backend = B;
  using Scalar = typename B::Scalar;
  using T = Scalar;

  /// Working memory of one worker.
  struct Workspace : TransformerWorkspace<B> {
    explicit Workspace(const B&) {}
    PackedBatch batch;
    std::vector<std::int32_t> rows, targets;
  };

  /// \throws ConfigError for a configuration that fits nothing in the base, or a base without an output layer.
  LanguageModel(Pretrained<Arch, B> base, LanguageModelOptions options, const LoraConfig& lora)
      : base_(std::move(base)) {
    const ModelConfig& config = base_.config();
    if (base_.lm_head.empty())
      fail<ConfigError>(base_.name,
                        "an output layer (" + std::string(Arch::names.lm_head) + ".weight) or tied embeddings",
                        "neither");
    max_tokens_ = checked_max_tokens(options.max_tokens, config, base_.name);
    dropouts_ = {options.base_dropout.value_or(config.hidden_dropout),
                 options.base_dropout.value_or(config.attention_dropout), 0};
    const auto shape = [&](Index layer, LayerLinear which) {
      const FrozenLinear& linear = base_.transformer->linear(layer, which);
      return std::pair{linear.out(), linear.in()};
    };
    plan_ = plan_adapter<Arch>(config, {}, lora, TaskType::causal_lm, {}, shape);
    auto layout = std::make_shared<AdapterLayout>(*plan_.layout);
    layout->base_model = base_.name;
    plan_.layout = std::move(layout);
  }

  const B& backend() const { return base_.backend; }
  const Pretrained<Arch, B>& base() const { return base_; }
  const std::shared_ptr<const AdapterLayout>& layout() const { return plan_.layout; }
  Index max_tokens() const { return max_tokens_; }

  /// A drawn from `seed`, B zero.
  Adapter<T> initial_adapter(std::uint64_t seed) const {
    Adapter<T> adapter(plan_.layout);
    initialise_low_rank(plan_, seed, adapter);
    return adapter;
  }

  /// Tokenised texts; labels are not read.
  Dataset encode(const Table& table, int threads = 0) const {
    return encode_texts(require_tokenizer(base_), table, max_tokens_, threads);
  }

  /// Predicted tokens: all but the first of every example.
  Index loss_count(const Dataset& data, std::span<const Index> examples) const {
    Index count = 0;
    for (const Index example : examples) count += data.length(example) - 1;
    return count;
  }

  /// Adds to `gradient` the gradient of weight · Σ loss over predicted tokens; returns Σ loss.
  double accumulate_gradient(Workspace& workspace, const Dataset& data, std::span<const Index> examples,
                             std::span<const T> parameters, std::span<T> gradient, double weight,
                             const StepAddress& address) const {
    pack(data, examples, workspace.batch);
    const SlotTerms<T> slot = bind_adapter<T>(plan_, {}, parameters, gradient, address, plan_.layout->config.dropout);
    PassOptions<T> pass;
    pass.slots = {&slot, 1};
    pass.training = true;
    pass.dropouts = dropouts_;
    return run(workspace, pass, weight, [](Index, MatrixView<const T>, double) {});
  }

  /// Negative log-likelihood of one sequence, and the number of tokens it predicts.
  struct SequenceLoss {
    double nll = 0;  ///< Σ over predicted tokens, nats
    Index tokens = 0;
    Index right = 0;  ///< predicted tokens that had the largest logit
  };

  /// Losses of every example, without dropout.
  std::vector<SequenceLoss> losses(const Adapter<T>& adapter, const Dataset& data, int threads = 0) const {
    if (!same_places(adapter.layout(), *plan_.layout))
      fail<ShapeError>("evaluation", "an adapter of this model's layout", "another layout");
    std::vector<SequenceLoss> result(static_cast<std::size_t>(data.size()));
    const std::vector<Index> starts = evaluation_batches(data);
    std::vector<std::unique_ptr<Workspace>> workspaces(static_cast<std::size_t>(worker_count(threads)));
    const SlotTerms<T> slot = bind_adapter<T>(plan_, {}, adapter.values(), {}, {}, 0.0);
    parallel_for(starts.size() - 1, threads, [&](int worker, std::size_t chunk) {
      [[maybe_unused]] const typename B::ThreadScope scope{};
      auto& workspace = workspaces[static_cast<std::size_t>(worker)];
      if (!workspace) workspace = std::make_unique<Workspace>(base_.backend);
      std::vector<Index> examples;
      for (Index i = starts[chunk]; i < starts[chunk + 1]; ++i) examples.push_back(i);
      pack(data, examples, workspace->batch);
      PassOptions<T> pass;
      pass.slots = {&slot, 1};
      const std::vector<std::int32_t>& cu = workspace->batch.cu_seqlens;
      run(*workspace, pass, 0, [&](Index first, MatrixView<const T> logits, double) {
        for (Index i = 0; i < logits.rows; ++i) {
          const auto at = static_cast<std::size_t>(first + i);
          const auto sequence = std::upper_bound(cu.begin(), cu.end(), workspace->rows[at]) - cu.begin() - 1;
          SequenceLoss& loss = result[static_cast<std::size_t>(starts[chunk] + sequence)];
          const T* row = logits.row(i);
          const std::int32_t target = workspace->targets[at];
          loss.nll += B::cross_entropy_loss({row, 1, logits.cols}, &target);
          loss.right += std::max_element(row, row + logits.cols) - row == target ? 1 : 0;
          ++loss.tokens;
        }
      });
    });
    return result;
  }

  /// Mean loss per predicted token, and how often the largest logit was right. The same bits on any number of threads.
  Evaluation evaluate(const Adapter<T>& adapter, const Dataset& data, int threads = 0) const {
    Evaluation result;
    Index right = 0;
    for (const SequenceLoss& loss : losses(adapter, data, threads)) {
      result.loss += loss.nll;
      result.examples += loss.tokens;
      right += loss.right;
    }
    result.loss /= static_cast<double>(result.examples);
    result.accuracy = static_cast<double>(right) / static_cast<double>(result.examples);
    return result;
  }

  /// Logits (tokens, vocabulary) of every position of one sequence, without dropout.
  std::vector<T> logits(const Adapter<T>& adapter, std::span<const std::int32_t> tokens) const {
    [[maybe_unused]] const typename B::ThreadScope scope{};
    Dataset data;
    data.append(tokens, std::vector<std::int32_t>(tokens.size(), 0));
    Workspace workspace(base_.backend);
    const Index first = 0;
    pack(data, {&first, 1}, workspace.batch);
    const SlotTerms<T> slot = bind_adapter<T>(plan_, {}, adapter.values(), {}, {}, 0.0);
    PassOptions<T> pass;
    pass.slots = {&slot, 1};
    const MatrixView<T> hidden = hidden_states(workspace, pass).second;
    std::vector<T> result(tokens.size() * static_cast<std::size_t>(base_.config().vocab_size));
    B::linear_forward(hidden, base_.lm_head, nullptr,
                      {result.data(), static_cast<Index>(tokens.size()), base_.config().vocab_size});
    return result;
  }

 private:
  static constexpr Index chunk_rows = 256;

  /// {last hidden states, the same through the final normalisation}; statistics go to `workspace.arena` in between.
  std::pair<MatrixView<T>, MatrixView<T>> hidden_states(Workspace& workspace, PassOptions<T>& pass,
                                                        MatrixView<T>* statistics = nullptr) const {
    const PackedBatch& batch = workspace.batch;
    base_.transformer->check(batch.tokens, batch.token_types, batch.cu_seqlens);
    workspace.arena.reset();
    workspace.segments.clear();
    for (const Segment& segment : batch.segments)
      workspace.segments.push_back({segment.first_sequence, segment.last_sequence, segment.slot});
    workspace.tables.build(batch.cu_seqlens, workspace.segments, {});
    pass.lowest_adapted = plan_.lowest_adapted;
    const MatrixView<T> last = base_.transformer->forward(batch.tokens, batch.token_types, pass, workspace);
    if constexpr (!Transformer<Arch, B>::has_final_norm) return {last, last};
    const MatrixView<T> normed = workspace.arena.matrix(last.rows, last.cols);
    const MatrixView<T> moments = workspace.arena.matrix(last.rows, 2);
    base_.transformer->final_norm(last, normed, moments);
    if (statistics != nullptr) *statistics = moments;
    return {last, normed};
  }

  /// Forward over all rows that predict a token, in chunks; `see(first, logits, 0)` gets each chunk's logits in
  /// evaluation.
  template <class See>
  double run(Workspace& workspace, PassOptions<T>& pass, double weight, See&& see) const {
    MatrixView<T> statistics;
    const auto [last, normed] = hidden_states(workspace, pass, &statistics);
    const PackedBatch& batch = workspace.batch;
    workspace.rows.clear();
    workspace.targets.clear();
    for (Index s = 0; s < batch.sequences(); ++s)
      for (std::int32_t row = batch.cu_seqlens[static_cast<std::size_t>(s)];
           row + 1 < batch.cu_seqlens[static_cast<std::size_t>(s) + 1]; ++row) {
        workspace.rows.push_back(row);
        workspace.targets.push_back(batch.tokens[static_cast<std::size_t>(row) + 1]);
      }
    auto& arena = workspace.arena;
    const auto predicted = static_cast<Index>(workspace.rows.size());
    MatrixView<T> d_normed;
    if (pass.training) {
      d_normed = arena.matrix(normed.rows, normed.cols);
      B::fill_zero(d_normed);
    }
    double loss = 0;
    for (Index first = 0; first < predicted; first += chunk_rows) {
      const Index count = std::min(chunk_rows, predicted - first);
      const auto scope = arena.scope();
      const std::span<const std::int32_t> rows(workspace.rows.data() + first, static_cast<std::size_t>(count));
      const MatrixView<T> hidden = arena.matrix(count, normed.cols);
      const MatrixView<T> logits = arena.matrix(count, base_.config().vocab_size);
      B::gather_rows(normed, rows, hidden);
      B::linear_forward(hidden, base_.lm_head, nullptr, logits);
      if (!pass.training) {
        see(first, logits, 0.0);
        continue;
      }
      loss += B::cross_entropy(logits, workspace.targets.data() + first, static_cast<T>(weight));
      B::linear_backward(logits, base_.lm_head, hidden, false);
      B::scatter_rows_add(hidden, rows, d_normed);
    }
    if (!pass.training) return loss;
    MatrixView<T> d_last = d_normed;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      d_last = arena.matrix(last.rows, last.cols);
      base_.transformer->final_norm_backward(d_normed, last, statistics, d_last);
    }
    base_.transformer->backward(d_last, pass, workspace);
    return loss;
  }

  Pretrained<Arch, B> base_;
  Index max_tokens_ = 0;
  BaseDropouts dropouts_;
  AdapterPlan plan_;
};

}  // namespace fedlora
