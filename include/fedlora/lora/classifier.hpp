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
  using T = typename B::Scalar;
  using Base::base;
  using Base::layout;
  using Base::max_tokens;

  /// Working memory of one worker.
  struct Workspace : Base::Workspace {
    using Base::Workspace::Workspace;
    std::vector<std::int32_t> pooled_rows;
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
  Adapter<T> initial_adapter(std::uint64_t seed) const {
    Adapter<T> adapter(layout());
    initialise_low_rank(this->plan(), seed, adapter);
    for (std::size_t i = 0; i < layout()->saved.size(); ++i) {
      const SavedTensor& tensor = layout()->saved[i];
      const auto values =
          adapter.values().subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.size()));
      if (const FrozenMatrix* given = checkpoint_tensor(tensor.name, tensor.shape); given != nullptr) {
        const MatrixView<const T> from = given->template view<T>();
        std::copy_n(from.data, from.size(), values.begin());
      } else if (tensor.shape.size() == 2) {
        RandomSequence draws(derive_key(seed, Purpose::initialise_head, i));
        for (T& value : values) value = static_cast<T>(base().config().initializer_range * draws.normal());
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
                             std::span<const T> parameters, std::span<T> gradient, double weight,
                             const StepAddress& address) const {
    pack(data, examples, workspace.batch);
    check_labels(workspace.batch.labels, workspace.batch.sequences(), labels_.size());
    const SlotTerms<T> slot = this->training_slot(parameters, gradient, address);
    PassOptions<T> pass = this->pass_of(slot, true);
    const Outputs outputs = run(workspace, pass);
    const double loss = B::cross_entropy(outputs.logits, workspace.batch.labels.data(), static_cast<T>(weight));
    run_backward(workspace, pass, outputs);
    return loss;
  }

  /// Logits (examples, labels), without dropout. Examples are packed into batches of about a thousand rows.
  std::vector<T> logits(const Adapter<T>& adapter, const Dataset& data, int threads = 0) const {
    const auto labels = static_cast<std::size_t>(labels_.size());
    std::vector<T> result(static_cast<std::size_t>(data.size()) * labels);
    this->template for_evaluation_batches<Workspace>(
        adapter, data, threads, [&](Workspace& workspace, PassOptions<T>& pass, Index first) {
          const MatrixView<const T> part = run(workspace, pass).logits;
          std::copy_n(part.data, part.size(), result.begin() + first * static_cast<Index>(labels));
        });
    return result;
  }

  /// Loss, accuracy, macro F1 and confusion of an adapter. The same bits on any number of threads.
  Evaluation evaluate(const Adapter<T>& adapter, const Dataset& data, int threads = 0) const {
    check_labels(data.labels, data.size(), labels_.size());
    const std::vector<T> all = logits(adapter, data, threads);
    const auto count = static_cast<Index>(labels_.size());
    std::vector<std::vector<Index>> confusion(labels_.size(), std::vector<Index>(labels_.size(), 0));
    for (Index i = 0; i < data.size(); ++i) {
      const T* row = all.data() + i * count;
      const auto predicted = static_cast<std::size_t>(std::max_element(row, row + count) - row);
      ++confusion[static_cast<std::size_t>(data.labels[static_cast<std::size_t>(i)])][predicted];
    }
    const double loss = B::cross_entropy_loss({all.data(), data.size(), count}, data.labels.data());
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
    MatrixView<T> pooled, logits;
  };

  /// Runs the batch in the workspace, forward.
  Outputs run(Workspace& workspace, PassOptions<T>& pass) const {
    const PackedBatch& batch = workspace.batch;
    workspace.pooled_rows.clear();
    if (pooling_ != Pooling::mean)
      for (Index s = 0; s < batch.sequences(); ++s)
        workspace.pooled_rows.push_back(pooling_ == Pooling::first_token
                                            ? batch.cu_seqlens[static_cast<std::size_t>(s)]
                                            : batch.cu_seqlens[static_cast<std::size_t>(s) + 1] - 1);
    Outputs outputs;
    outputs.last = this->forward(workspace, pass, workspace.pooled_rows);
    outputs.pooled = outputs.last.after;
    if (pooling_ == Pooling::mean) {
      outputs.pooled = workspace.arena.matrix(batch.sequences(), base().config().hidden_size);
      B::mean_rows(outputs.last.after, batch.cu_seqlens, outputs.pooled);
    }
    outputs.logits = head_.forward(outputs.pooled, batch.segments, pass, workspace.head, workspace.arena);
    return outputs;
  }

  /// From the gradient of the logits, which stands in their place.
  void run_backward(Workspace& workspace, const PassOptions<T>& pass, const Outputs& outputs) const {
    auto& arena = workspace.arena;
    const Index hidden = base().config().hidden_size;
    const bool into_base = pass.lowest_adapted < base().config().layers;
    const MatrixView<T> d_pooled = into_base ? arena.matrix(outputs.pooled.rows, hidden) : MatrixView<T>{};
    head_.backward(outputs.logits, workspace.batch.segments, pass, workspace.head, d_pooled, arena);
    if (!into_base) return;
    MatrixView<T> d_hidden = d_pooled;
    if (pooling_ == Pooling::mean) {
      d_hidden = arena.matrix(outputs.last.after.rows, hidden);
      B::mean_rows_backward(d_pooled, workspace.batch.cu_seqlens, d_hidden);
    }
    this->backward(d_hidden, outputs.last, pass, workspace);
  }

  std::vector<std::string> labels_;
  std::vector<std::string> notes_;
  Pooling pooling_ = Arch::pooling;
  ClassificationHead<B> head_;
};

}  // namespace fedlora
