// SPDX-License-Identifier: Apache-2.0
// A frozen causal base with LoRA, trained to predict the next token: transformers' ForCausalLM under PEFT.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/data/dataset.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/lora/adapted_base.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/lora/binding.hpp"
#include "fedlora/lora/encode.hpp"
#include "fedlora/lora/evaluation.hpp"
#include "fedlora/lora/pretrained.hpp"

namespace fedlora {

/// What a language model is, apart from its adapter.
struct LanguageModelOptions {
  Index max_tokens = 0;                     ///< longest sequence in tokens; 0: all the base has positions for
  std::optional<double> base_dropout = {};  ///< instead of every dropout of config.json
};

/// A next-token model. The output layer is frozen; logits exist for a few hundred rows at a time, never for all.
template <Architecture Arch, Backend B>
requires(Arch::causal) class LanguageModel : public AdaptedBase<Arch, B> {
  using Base = AdaptedBase<Arch, B>;

 public:
  using Scalar = typename B::Scalar;
  using Element = typename B::Element;
  using Base::base;
  using Base::layout;
  using Base::max_tokens;

  /// Working memory of one worker.
  struct Workspace : Base::Workspace {
    using Base::Workspace::Workspace;
    std::vector<std::int32_t> rows, targets;  ///< rows that predict a token, and which
    const std::int32_t* placed_rows = nullptr;
    const std::int32_t* placed_targets = nullptr;
  };

  /// \throws ConfigError for a configuration that fits nothing in the base, or a base without an output layer.
  LanguageModel(Pretrained<Arch, B> pretrained, LanguageModelOptions options, const LoraConfig& lora)
      : Base(std::move(pretrained), options.max_tokens, options.base_dropout) {
    if (base().lm_head.empty()) {
      const std::string layer = std::string(Arch::names.lm_head) + ".weight";
      std::string got = "neither";
      for (const std::string& warning : base().warnings)  // one of another shape
        if (warning.find(layer + " has") != warning.npos) got = warning;
      fail<ConfigError>(base().name, "an output layer (" + layer + ") or tied embeddings", got);
    }
    this->place_adapter(lora, TaskType::causal_lm, {}, {}, {}, {});
  }

  /// A drawn from `seed`, B zero.
  Adapter<Scalar> initial_adapter(std::uint64_t seed) const {
    Adapter<Scalar> adapter(layout());
    initialise_low_rank(this->plan(), seed, adapter);
    return adapter;
  }

  /// Tokenised texts; labels are not read.
  Dataset encode(const Table& table, int threads = 0) const {
    return encode_texts(require_tokenizer(base()), table, max_tokens(), base().config().vocab_size, threads);
  }

  /// Predicted tokens: all but the first of every example.
  Index loss_count(const Dataset& data, std::span<const Index> examples) const {
    Index count = 0;
    for (const Index example : examples) count += data.length(example) - 1;
    return count;
  }

  /// Adds to `gradient` the gradient of weight · Σ loss over predicted tokens; returns Σ loss.
  double accumulate_gradient(Workspace& workspace, const Dataset& data, std::span<const Index> examples,
                             std::span<const Scalar> parameters, std::span<Scalar> gradient, double weight,
                             const StepAddress& address) const {
    workspace.run.reset();
    prepare_training(workspace, data, examples, workspace.run.parameters(parameters),
                     workspace.run.open_gradient(gradient), address);
    run_training(workspace, weight);
    workspace.run.close_gradient(gradient);
    return workspace.run.take_loss();
  }

  /// The first half of a training step; see SequenceClassifier.
  void prepare_training(Workspace& workspace, const Dataset& data, std::span<const Index> examples,
                        std::span<const Element> parameters, std::span<Scalar> gradient,
                        const StepAddress& address) const {
    pack(data, examples, workspace.batch);
    this->bind_training(workspace, parameters, gradient, address);
    prepare(workspace);
  }

  /// The second half.
  void run_training(Workspace& workspace, double weight) const {
    auto& run = workspace.run;
    const typename Base::LastHidden last = this->forward(workspace);
    const MatrixView<Element> d_hidden = run.matrix(last.after.rows, last.after.cols);
    run.fill_zero(d_hidden);
    for_predicted_chunks(workspace, last.after, [&](const Chunk& chunk) {
      run.cross_entropy(chunk.logits, chunk.targets, weight);
      run.linear_backward(chunk.logits, base().lm_head, chunk.hidden, false);
      run.scatter_rows_add(chunk.hidden, chunk.rows, d_hidden);
    });
    this->backward(d_hidden, last, workspace);
  }

  /// Negative log-likelihood of one sequence, and the number of tokens it predicts.
  struct SequenceLoss {
    double nll = 0;  ///< Σ over predicted tokens, nats
    Index tokens = 0;
    Index right = 0;  ///< predicted tokens that had the largest logit
  };

  /// Losses of every example, without dropout.
  std::vector<SequenceLoss> losses(const Adapter<Scalar>& adapter, const Dataset& data, int threads = 0) const {
    std::vector<SequenceLoss> result(static_cast<std::size_t>(data.size()));
    this->template for_evaluation_batches<Workspace>(
        adapter, data, threads, [&](Workspace& workspace, Index first_example) {
          prepare(workspace);
          const MatrixView<Element> states = this->forward(workspace).after;
          const std::vector<std::int32_t>& cu = workspace.batch.cu_seqlens;
          std::vector<RowLoss> losses;
          for_predicted_chunks(workspace, states, [&](const Chunk& chunk) {
            losses.resize(static_cast<std::size_t>(chunk.logits.rows));
            workspace.run.row_losses(chunk.logits, chunk.targets, losses);
            for (std::size_t i = 0; i < losses.size(); ++i) {
              const std::size_t predicting = static_cast<std::size_t>(chunk.first) + i;
              const auto sequence =
                  std::upper_bound(cu.begin(), cu.end(), workspace.rows[predicting]) - cu.begin() - 1;
              SequenceLoss& loss = result[static_cast<std::size_t>(first_example + sequence)];
              loss.nll += losses[i].nll;
              loss.right += losses[i].best == workspace.targets[predicting] ? 1 : 0;
              ++loss.tokens;
            }
          });
        });
    return result;
  }

  /// Mean loss per predicted token, and how often the largest logit was right. The same bits on any number of threads.
  Evaluation evaluate(const Adapter<Scalar>& adapter, const Dataset& data, int threads = 0) const {
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
  std::vector<Scalar> logits(const Adapter<Scalar>& adapter, std::span<const std::int32_t> tokens) const {
    [[maybe_unused]] const typename B::ThreadScope scope{};
    Dataset data;
    data.append(tokens, std::vector<std::int32_t>(tokens.size(), 0));
    Workspace workspace(this->backend());
    const Index first = 0;
    pack(data, {&first, 1}, workspace.batch);
    this->bind_evaluation(workspace, adapter);
    prepare(workspace);
    const MatrixView<Element> hidden = this->forward(workspace).after;
    const MatrixView<Element> logits = workspace.run.matrix(hidden.rows, base().config().vocab_size);
    workspace.run.linear_forward(hidden, base().lm_head, nullptr, logits);
    std::vector<Scalar> result(tokens.size() * static_cast<std::size_t>(base().config().vocab_size));
    workspace.run.download(logits, result.data());
    return result;
  }

 private:
  static constexpr Index chunk_rows = 256;

  /// Rows that predict a token: number `first` on of all of the batch that do.
  struct Chunk {
    Index first;
    const std::int32_t* rows;              ///< of the batch, placed
    const std::int32_t* targets;           ///< what they predict, placed
    MatrixView<Element> hidden, logits;  ///< their states, and what the output layer makes of them
  };

  /// Puts the workspace's batch where operations read it.
  void prepare(Workspace& workspace) const {
    this->prepare_base(workspace, {});
    const PackedBatch& batch = workspace.batch;
    workspace.rows.clear();
    workspace.targets.clear();
    for (Index s = 0; s < batch.sequences(); ++s)
      for (std::int32_t row = batch.cu_seqlens[static_cast<std::size_t>(s)];
           row + 1 < batch.cu_seqlens[static_cast<std::size_t>(s) + 1]; ++row) {
        workspace.rows.push_back(row);
        workspace.targets.push_back(batch.tokens[static_cast<std::size_t>(row) + 1]);
      }
    workspace.placed_rows = workspace.run.place(workspace.rows);
    workspace.placed_targets = workspace.run.place(workspace.targets);
    workspace.run.flush();
  }

  /// Calls `body(chunk)` for the rows that predict a token, a chunk at a time.
  template <class Body>
  void for_predicted_chunks(Workspace& workspace, MatrixView<const Element> states, Body&& body) const {
    auto& run = workspace.run;
    const auto predicted = static_cast<Index>(workspace.rows.size());
    for (Index first = 0; first < predicted; first += chunk_rows) {
      const Index count = std::min(chunk_rows, predicted - first);
      const auto scope = run.scope();
      const Chunk chunk = {first, workspace.placed_rows + first, workspace.placed_targets + first,
                           run.operand(count, states.cols), run.matrix(count, base().config().vocab_size)};
      run.gather_rows(states, chunk.rows, chunk.hidden);
      run.linear_forward(chunk.hidden, base().lm_head, nullptr, chunk.logits);
      body(chunk);
    }
  }
};

}  // namespace fedlora
