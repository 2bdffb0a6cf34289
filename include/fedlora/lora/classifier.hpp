// SPDX-License-Identifier: Apache-2.0
// A frozen base with LoRA and a classification head: transformers' ForSequenceClassification under PEFT.
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
#include "fedlora/nn/head.hpp"

namespace fedlora {

/// What a classifier is, apart from its adapter.
struct ClassifierOptions {
  std::vector<std::string> labels = {};     ///< names, by number; empty: the checkpoint's id2label
  std::optional<Pooling> pooling = {};      ///< the family's own when absent
  Index max_tokens = 0;                     ///< longest sequence in tokens; 0: all the base has positions for
  std::optional<double> base_dropout = {};  ///< instead of every dropout of config.json (not the adapter's)
};

/// A sequence classifier: const, shared by all clients and threads. It holds no trainable number; adapters are passed
/// in.
template <Architecture Arch, Backend B>
class SequenceClassifier : public AdaptedBase<Arch, B> {
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
    std::vector<std::int32_t> pooled_rows;
    const std::int32_t* labels = nullptr;      ///< of every sequence, placed
    const std::int32_t* cu_seqlens = nullptr;  ///< placed; for mean pooling
    std::vector<typename ClassificationHead<B>::State> head;
  };

  /// \throws ConfigError for a configuration that fits nothing in the base.
  SequenceClassifier(Pretrained<Arch, B> pretrained, ClassifierOptions options, const LoraConfig& lora)
      : Base(std::move(pretrained), options.max_tokens, options.base_dropout),
        labels_(std::move(options.labels)),
        pooling_(options.pooling.value_or(Arch::pooling)) {
    if (labels_.empty()) labels_ = base().config().id2label;
    if (labels_.empty()) fail<ConfigError>("classifier of " + base().name, "at least one label", "none");
    build_head(lora);
  }

  const std::vector<std::string>& labels() const { return labels_; }
  /// What a person should be told about how the head came to be.
  const std::vector<std::string>& notes() const { return notes_; }

  /// A drawn from `seed`, B zero, the head from the checkpoint where it has one, else drawn as transformers draws it.
  Adapter<Scalar> initial_adapter(std::uint64_t seed) const {
    Adapter<Scalar> adapter(layout());
    initialise_low_rank(this->plan(), seed, adapter);
    for (std::size_t i = 0; i < layout()->saved.size(); ++i) {
      const SavedTensor& tensor = layout()->saved[i];
      const auto values =
          adapter.values().subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.size()));
      if (const FrozenMatrix* given = checkpoint_tensor(tensor.name, tensor.shape); given != nullptr) {
        std::ranges::copy(this->backend().values(*given), values.begin());
      } else if (tensor.shape.size() == 2) {
        RandomSequence draws(derive_key(seed, Purpose::initialise_head, i));
        for (Scalar& value : values) value = static_cast<Scalar>(base().config().initializer_range * draws.normal());
      }
    }
    return adapter;
  }

  /// Tokenised texts, with labels where the table has them. \throws FormatError naming file, line and label.
  Dataset encode(const Table& table, int threads = 0) const {
    Dataset data = encode_texts(require_tokenizer(base()), table, max_tokens(), threads);
    if (!table.label.empty()) data.labels = table.label_ids(labels_);
    return data;
  }

  Index loss_count(const Dataset&, std::span<const Index> examples) const {
    return static_cast<Index>(examples.size());
  }

  /// Adds to `gradient` the gradient of weight · Σ loss over the examples; returns Σ loss. In training mode: dropouts
  /// are on.
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

  /// The first half of a training step: binds the adapter (`parameters` and `gradient` where operations read and add)
  /// and puts the examples where they are read. Computes nothing.
  void prepare_training(Workspace& workspace, const Dataset& data, std::span<const Index> examples,
                        std::span<const Element> parameters, std::span<Scalar> gradient,
                        const StepAddress& address) const {
    pack(data, examples, workspace.batch);
    check_labels(workspace.batch.labels, workspace.batch.sequences(), labels_.size());
    this->bind_training(workspace, parameters, gradient, address);
    prepare(workspace);
  }

  /// The second half: adds the gradient of weight · Σ loss, and Σ loss to the runner's. Only calls operations.
  void run_training(Workspace& workspace, double weight) const {
    const Outputs outputs = forward(workspace);
    workspace.run.cross_entropy(outputs.logits, workspace.labels, weight);
    run_backward(workspace, outputs);
  }

  /// Logits (examples, labels), without dropout. Examples are packed into batches of about a thousand rows.
  std::vector<Scalar> logits(const Adapter<Scalar>& adapter, const Dataset& data, int threads = 0) const {
    const auto labels = static_cast<std::size_t>(labels_.size());
    std::vector<Scalar> result(static_cast<std::size_t>(data.size()) * labels);
    this->template for_evaluation_batches<Workspace>(
        adapter, data, threads, [&](Workspace& workspace, Index first) {
          prepare(workspace);
          workspace.run.download(forward(workspace).logits, result.data() + first * static_cast<Index>(labels));
        });
    return result;
  }

  /// Loss, accuracy, macro F1 and confusion of an adapter. The same bits on any number of threads.
  Evaluation evaluate(const Adapter<Scalar>& adapter, const Dataset& data, int threads = 0) const {
    check_labels(data.labels, data.size(), labels_.size());
    std::vector<RowLoss> losses(static_cast<std::size_t>(data.size()));
    this->template for_evaluation_batches<Workspace>(
        adapter, data, threads, [&](Workspace& workspace, Index first) {
          prepare(workspace);
          const MatrixView<Element> logits = forward(workspace).logits;
          workspace.run.row_losses(
              logits, workspace.labels,
              std::span(losses).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(logits.rows)));
        });
    std::vector<std::vector<Index>> confusion(labels_.size(), std::vector<Index>(labels_.size(), 0));
    double loss = 0;
    for (std::size_t i = 0; i < losses.size(); ++i) {
      loss += losses[i].nll;
      ++confusion[static_cast<std::size_t>(data.labels[i])][static_cast<std::size_t>(losses[i].best)];
    }
    return evaluation_from(std::move(confusion), loss);
  }

 private:
  static void check_labels(std::span<const std::int32_t> labels, Index examples, std::size_t names) {
    if (static_cast<Index>(labels.size()) != examples)
      fail<ShapeError>("labels", std::to_string(examples) + ", one per example", std::to_string(labels.size()));
    for (std::size_t i = 0; i < labels.size(); ++i)
      if (labels[i] < 0 || static_cast<std::size_t>(labels[i]) >= names)
        fail<ShapeError>("label of example " + std::to_string(i), "a number in [0, " + std::to_string(names) + ")",
                         std::to_string(labels[i]));
  }

  void build_head(const LoraConfig& lora) {
    std::vector<HeadLayer> layers = Arch::head(base().config());
    if (pooling_ == Pooling::mean) layers.erase(layers.begin(), layers.end() - 1);  // the pooler is for the first token
    std::vector<std::string> missing;
    std::vector<FrozenLinear> frozen(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      HeadLayer& layer = layers[i];
      if (layer.out == 0) layer.out = static_cast<Index>(labels_.size());
      const FrozenMatrix* weight = checkpoint_tensor(layer.name + ".weight", {layer.out, layer.in});
      const FrozenMatrix* bias = layer.bias ? checkpoint_tensor(layer.name + ".bias", {layer.out}) : nullptr;
      if (weight != nullptr && (bias != nullptr || !layer.bias)) {
        frozen[i] = {*weight, bias != nullptr ? *bias : FrozenMatrix{}};
      } else {
        missing.push_back(layer.name);
        notes_.push_back(layer.name + ": not in the checkpoint " + base().name + " for " +
                         std::to_string(labels_.size()) + " labels; initialised, trained and sent whole");
      }
    }
    this->place_adapter(lora, TaskType::sequence_classification, layers, missing, labels_);
    head_ = ClassificationHead<B>(std::move(layers), std::move(frozen));
  }

  const FrozenMatrix* checkpoint_tensor(const std::string& name, const std::vector<Index>& shape) const {
    const auto found = base().head.find(name);
    if (found == base().head.end()) return nullptr;
    const FrozenMatrix& tensor = found->second;
    const bool fits = shape.size() == 2 ? tensor.rows == shape[0] && tensor.cols == shape[1]
                                        : tensor.rows == 1 && tensor.cols == shape[0];
    return fits ? &tensor : nullptr;
  }

  /// What a pass computes: the base's last states, one row per sequence, and the head's output.
  struct Outputs {
    typename Base::LastHidden last;
    MatrixView<Element> pooled, logits;
  };

  /// Puts the workspace's batch where operations read it.
  void prepare(Workspace& workspace) const {
    const PackedBatch& batch = workspace.batch;
    workspace.pooled_rows.clear();
    if (pooling_ != Pooling::mean)
      for (Index s = 0; s < batch.sequences(); ++s)
        workspace.pooled_rows.push_back(pooling_ == Pooling::first_token
                                            ? batch.cu_seqlens[static_cast<std::size_t>(s)]
                                            : batch.cu_seqlens[static_cast<std::size_t>(s) + 1] - 1);
    this->prepare_base(workspace, workspace.pooled_rows);
    workspace.labels = workspace.run.place(batch.labels);
    workspace.cu_seqlens = workspace.run.place(batch.cu_seqlens);
    workspace.run.flush();
  }

  /// Runs the batch that was prepared.
  Outputs forward(Workspace& workspace) const {
    const PackedBatch& batch = workspace.batch;
    Outputs outputs;
    outputs.last = Base::forward(workspace);
    outputs.pooled = outputs.last.after;
    if (pooling_ == Pooling::mean) {
      outputs.pooled = workspace.run.operand(batch.sequences(), base().config().hidden_size);
      workspace.run.mean_rows(outputs.last.after, workspace.cu_seqlens, outputs.pooled);
    }
    outputs.logits = head_.forward(outputs.pooled, batch.segments, workspace.tables.placed_sequence_numbers,
                                   workspace.pass, workspace.head, workspace.run);
    return outputs;
  }

  /// From the gradient of the logits, which stands in their place.
  void run_backward(Workspace& workspace, const Outputs& outputs) const {
    auto& run = workspace.run;
    const Index hidden = base().config().hidden_size;
    const bool into_base = workspace.pass.lowest_adapted < base().config().layers;
    const MatrixView<Element> d_pooled = into_base ? run.matrix(outputs.pooled.rows, hidden) : MatrixView<Element>{};
    head_.backward(outputs.logits, workspace.batch.segments, workspace.tables.placed_sequence_numbers, workspace.pass,
                   workspace.head, d_pooled, run);
    if (!into_base) return;
    MatrixView<Element> d_hidden = d_pooled;
    if (pooling_ == Pooling::mean) {
      d_hidden = run.matrix(outputs.last.after.rows, hidden);
      run.mean_rows_backward(d_pooled, workspace.cu_seqlens, d_hidden);
    }
    this->backward(d_hidden, outputs.last, workspace);
  }

  std::vector<std::string> labels_;
  std::vector<std::string> notes_;
  Pooling pooling_ = Arch::pooling;
  ClassificationHead<B> head_;
};

}  // namespace fedlora
