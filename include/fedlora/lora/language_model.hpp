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
  using T = typename B::Scalar;
  using Base::base;
  using Base::layout;
  using Base::max_tokens;

  /// Working memory of one worker.
  struct Workspace : Base::Workspace {
    using Base::Workspace::Workspace;
    std::vector<std::int32_t> rows, targets;
  };

  /// \throws ConfigError for a configuration that fits nothing in the base, or a base without an output layer.
  LanguageModel(Pretrained<Arch, B> pretrained, LanguageModelOptions options, const LoraConfig& lora)
      : Base(std::move(pretrained), options.max_tokens, options.base_dropout) {
    if (base().lm_head.empty())
      fail<ConfigError>(base().name,
                        "an output layer (" + std::string(Arch::names.lm_head) + ".weight) or tied embeddings",
                        "neither");
    this->place_adapter(lora, TaskType::causal_lm, {}, {}, {});
  }

  /// A drawn from `seed`, B zero.
  Adapter<T> initial_adapter(std::uint64_t seed) const {
    Adapter<T> adapter(layout());
    initialise_low_rank(this->plan(), seed, adapter);
    return adapter;
  }

  /// Tokenised texts; labels are not read.
  Dataset encode(const Table& table, int threads = 0) const {
    return encode_texts(require_tokenizer(base()), table, max_tokens(), threads);
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
    const SlotTerms<T> slot = this->training_slot(parameters, gradient, address);
    PassOptions<T> pass = this->pass_of(slot, true);
    const typename Base::LastHidden last = this->forward(workspace, pass, {});
    const MatrixView<T> d_hidden = workspace.arena.matrix(last.after.rows, last.after.cols);
    B::fill_zero(d_hidden);
    double loss = 0;
    for_predicted_chunks(
        workspace, last.after,
        [&](std::span<const std::int32_t> rows, Index first, MatrixView<T> hidden, MatrixView<T> logits) {
          loss += B::cross_entropy(logits, workspace.targets.data() + first, static_cast<T>(weight));
          B::linear_backward(logits, base().lm_head, hidden, false);
          B::scatter_rows_add(hidden, rows, d_hidden);
        });
    this->backward(d_hidden, last, pass, workspace);
    return loss;
  }

  /// Negative log-likelihood of one sequence, and the number of tokens it predicts.
  struct SequenceLoss {
    double nll = 0;  ///< Σ over predicted tokens, nats
    Index tokens = 0;
    Index right = 0;  ///< predicted tokens that had the largest logit
  };

  /// Losses of every example, without dropout.
  std::vector<SequenceLoss> losses(const Adapter<T>& adapter, const Dataset& data, int threads = 0) const {
    std::vector<SequenceLoss> result(static_cast<std::size_t>(data.size()));
    this->template for_evaluation_batches<Workspace>(
        adapter, data, threads, [&](Workspace& workspace, PassOptions<T>& pass, Index first_example) {
          const MatrixView<T> states = this->forward(workspace, pass, {}).after;
          const std::vector<std::int32_t>& cu = workspace.batch.cu_seqlens;
          for_predicted_chunks(
              workspace, states,
              [&](std::span<const std::int32_t> rows, Index first, MatrixView<T>, MatrixView<T> logits) {
                for (Index i = 0; i < logits.rows; ++i) {
                  const auto sequence =
                      std::upper_bound(cu.begin(), cu.end(), rows[static_cast<std::size_t>(i)]) - cu.begin() - 1;
                  SequenceLoss& loss = result[static_cast<std::size_t>(first_example + sequence)];
                  const T* row = logits.row(i);
                  const std::int32_t target = workspace.targets[static_cast<std::size_t>(first + i)];
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
    Workspace workspace(this->backend());
    const Index first = 0;
    pack(data, {&first, 1}, workspace.batch);
    const SlotTerms<T> slot = this->evaluation_slot(adapter);
    PassOptions<T> pass = this->pass_of(slot, false);
    const MatrixView<T> hidden = this->forward(workspace, pass, {}).after;
    std::vector<T> result(tokens.size() * static_cast<std::size_t>(base().config().vocab_size));
    B::linear_forward(hidden, base().lm_head, nullptr,
                      {result.data(), static_cast<Index>(tokens.size()), base().config().vocab_size});
    return result;
  }

 private:
  static constexpr Index chunk_rows = 256;

  /// Calls `body(rows, first, hidden, logits)` for the rows that predict a token, a chunk at a time: `rows` of the
  /// batch, number `first` on of all that predict; their states `hidden` and `logits` are copies in the arena.
  template <class Body>
  void for_predicted_chunks(Workspace& workspace, MatrixView<const T> states, Body&& body) const {
    const PackedBatch& batch = workspace.batch;
    workspace.rows.clear();
    workspace.targets.clear();
    for (Index s = 0; s < batch.sequences(); ++s)
      for (std::int32_t row = batch.cu_seqlens[static_cast<std::size_t>(s)];
           row + 1 < batch.cu_seqlens[static_cast<std::size_t>(s) + 1]; ++row) {
        workspace.rows.push_back(row);
        workspace.targets.push_back(batch.tokens[static_cast<std::size_t>(row) + 1]);
      }
    const auto predicted = static_cast<Index>(workspace.rows.size());
    for (Index first = 0; first < predicted; first += chunk_rows) {
      const Index count = std::min(chunk_rows, predicted - first);
      const auto scope = workspace.arena.scope();
      const std::span<const std::int32_t> rows(workspace.rows.data() + first, static_cast<std::size_t>(count));
      const MatrixView<T> hidden = workspace.arena.matrix(count, states.cols);
      const MatrixView<T> logits = workspace.arena.matrix(count, base().config().vocab_size);
      B::gather_rows(states, rows, hidden);
      B::linear_forward(hidden, base().lm_head, nullptr, logits);
      body(rows, first, hidden, logits);
    }
  }
};

}  // namespace fedlora
