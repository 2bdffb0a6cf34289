// SPDX-License-Identifier: Apache-2.0
// A frozen base with LoRA and a classification head: transformers' ForSequenceClassification under PEFT.
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
class SequenceClassifier {
 public:
  using Backend = B;
  using Scalar = typename B::Scalar;
  using T = Scalar;

  /// Working memory of one worker.
  struct Workspace : TransformerWorkspace<B> {
    explicit Workspace(const B&) {}
    PackedBatch batch;
    std::vector<typename ClassificationHead<B>::State> head;
  };

  /// \throws ConfigError for a configuration that fits nothing in the base.
  SequenceClassifier(Pretrained<Arch, B> base, ClassifierOptions options, const LoraConfig& lora)
      : base_(std::move(base)), labels_(std::move(options.labels)) {
    const ModelConfig& config = base_.config();
    if (labels_.empty()) labels_ = config.id2label;
    if (labels_.empty()) fail<ConfigError>("classifier of " + base_.name, "at least one label", "none");
    pooling_ = options.pooling.value_or(Arch::pooling);
    max_tokens_ = checked_max_tokens(options.max_tokens, config, base_.name);
    dropouts_ = {options.base_dropout.value_or(config.hidden_dropout),
                 options.base_dropout.value_or(config.attention_dropout),
                 options.base_dropout.value_or(config.classifier_dropout)};
    build_head(lora);
  }

  const B& backend() const { return base_.backend; }
  const Pretrained<Arch, B>& base() const { return base_; }
  const std::vector<std::string>& labels() const { return labels_; }
  const std::shared_ptr<const AdapterLayout>& layout() const { return plan_.layout; }
  Index max_tokens() const { return max_tokens_; }
  /// What a person should be told about how the head came to be.
  const std::vector<std::string>& notes() const { return notes_; }

  /// A drawn from `seed`, B zero, the head from the checkpoint where it has one, else drawn as transformers draws it.
  Adapter<T> initial_adapter(std::uint64_t seed) const {
    Adapter<T> adapter(plan_.layout);
    initialise_low_rank(plan_, seed, adapter);
    for (std::size_t i = 0; i < plan_.layout->saved.size(); ++i) {
      const SavedTensor& tensor = plan_.layout->saved[i];
      const auto values =
          adapter.values().subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.size()));
      if (const FrozenMatrix* given = checkpoint_tensor(tensor.name, tensor.shape); given != nullptr) {
        const MatrixView<const T> from = given->template view<T>();
        std::copy_n(from.data, from.size(), values.begin());
      } else if (tensor.shape.size() == 2) {
        RandomSequence draws(derive_key(seed, Purpose::initialise_head, i));
        for (T& value : values) value = static_cast<T>(base_.config().initializer_range * draws.normal());
      }
    }
    return adapter;
  }

  /// Tokenised texts, with labels where the table has them. \throws FormatError naming file, line and label.
  Dataset encode(const Table& table, int threads = 0) const {
    Dataset data = encode_texts(require_tokenizer(base_), table, max_tokens_, threads);
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
    const SlotTerms<T> slot =
        bind_adapter<T>(plan_, head_.layers(), parameters, gradient, address, plan_.layout->config.dropout);
    PassOptions<T> pass;
    pass.slots = {&slot, 1};
    pass.training = true;
    pass.dropouts = dropouts_;
    return run(workspace, pass, weight, true).second;
  }

  /// Logits (examples, labels), without dropout. Examples are packed into batches of about a thousand rows.
  std::vector<T> logits(const Adapter<T>& adapter, const Dataset& data, int threads = 0) const {
    const auto labels = static_cast<std::size_t>(labels_.size());
    std::vector<T> result(static_cast<std::size_t>(data.size()) * labels);
    for_batches(adapter, data, threads, [&](Index first, MatrixView<const T> part) {
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
    std::vector<HeadLayer> layers = Arch::head(base_.config());
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
        notes_.push_back(layer.name + ": not in the checkpoint " + base_.name + " for " +
                         std::to_string(labels_.size()) + " labels; initialised, trained and sent whole");
      }
    }
    const auto shape = [&](Index layer, LayerLinear which) {
      const FrozenLinear& linear = base_.transformer->linear(layer, which);
      return std::pair{linear.out(), linear.in()};
    };
    plan_ = plan_adapter<Arch>(base_.config(), layers, lora, TaskType::sequence_classification, missing, shape);
    auto layout = std::make_shared<AdapterLayout>(*plan_.layout);
    layout->base_model = base_.name;
    layout->id2label = labels_;
    plan_.layout = std::move(layout);
    head_ = ClassificationHead<B>(std::move(layers), std::move(frozen));
  }

  const FrozenMatrix* checkpoint_tensor(const std::string& name, const std::vector<Index>& shape) const {
    const auto found = base_.head.find(name);
    if (found == base_.head.end()) return nullptr;
    const FrozenMatrix& tensor = found->second;
    const bool fits = shape.size() == 2 ? tensor.rows == shape[0] && tensor.cols == shape[1]
                                        : tensor.rows == 1 && tensor.cols == shape[0];
    return fits ? &tensor : nullptr;
  }

  /// Runs the batch in the workspace. With `train` the logits are replaced by their gradient and the sum of losses is
  /// returned.
  std::pair<MatrixView<T>, double> run(Workspace& workspace, PassOptions<T>& pass, double weight, bool train) const {
    const PackedBatch& batch = workspace.batch;
    base_.transformer->check(batch.tokens, batch.token_types, batch.cu_seqlens);
    if (train) check_labels(batch.labels, batch.sequences(), labels_.size());
    workspace.arena.reset();
    workspace.segments.clear();
    for (const Segment& segment : batch.segments)
      workspace.segments.push_back({segment.first_sequence, segment.last_sequence, segment.slot});
    workspace.pooled_rows.clear();
    if (pooling_ != Pooling::mean)
      for (Index s = 0; s < batch.sequences(); ++s)
        workspace.pooled_rows.push_back(pooling_ == Pooling::first_token
                                            ? batch.cu_seqlens[static_cast<std::size_t>(s)]
                                            : batch.cu_seqlens[static_cast<std::size_t>(s) + 1] - 1);
    workspace.tables.build(batch.cu_seqlens, workspace.segments, workspace.pooled_rows);
    pass.pooled_only = pooling_ != Pooling::mean;
    pass.lowest_adapted = plan_.lowest_adapted;

    const Transformer<Arch, B>& base = *base_.transformer;
    auto& arena = workspace.arena;
    const Index hidden = base.config().hidden_size;
    const MatrixView<T> last = base.forward(batch.tokens, batch.token_types, pass, workspace);
    MatrixView<T> normed = last;
    MatrixView<T> statistics;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      normed = arena.matrix(last.rows, hidden);
      statistics = arena.matrix(last.rows, 2);
      base.final_norm(last, normed, statistics);
    }
    MatrixView<T> pooled = normed;
    if (pooling_ == Pooling::mean) {
      pooled = arena.matrix(batch.sequences(), hidden);
      B::mean_rows(normed, batch.cu_seqlens, pooled);
    }
    const MatrixView<T> logits = head_.forward(pooled, workspace.segments, pass, workspace.head, arena);
    if (!train) return {logits, 0};

    const double loss = B::cross_entropy(logits, batch.labels.data(), static_cast<T>(weight));
    const bool into_base = plan_.lowest_adapted < base.config().layers;
    const MatrixView<T> d_pooled = into_base ? arena.matrix(pooled.rows, hidden) : MatrixView<T>{};
    head_.backward(logits, workspace.segments, pass, workspace.head, d_pooled, arena);
    if (!into_base) return {logits, loss};
    MatrixView<T> d_normed = d_pooled;
    if (pooling_ == Pooling::mean) {
      d_normed = arena.matrix(normed.rows, hidden);
      B::mean_rows_backward(d_pooled, batch.cu_seqlens, d_normed);
    }
    MatrixView<T> d_last = d_normed;
    if constexpr (Transformer<Arch, B>::has_final_norm) {
      d_last = arena.matrix(last.rows, hidden);
      base.final_norm_backward(d_normed, last, statistics, d_last);
    }
    base.backward(d_last, pass, workspace);
    return {logits, loss};
  }

  template <class Body>
  void for_batches(const Adapter<T>& adapter, const Dataset& data, int threads, Body&& body) const {
    if (!same_places(adapter.layout(), *plan_.layout))
      fail<ShapeError>("evaluation", "an adapter of this model's layout", "another layout");
    const std::vector<Index> starts = evaluation_batches(data);
    std::vector<std::unique_ptr<Workspace>> workspaces(static_cast<std::size_t>(worker_count(threads)));
    const SlotTerms<T> slot = bind_adapter<T>(plan_, head_.layers(), adapter.values(), {}, {}, 0.0);
    parallel_for(starts.size() - 1, threads, [&](int worker, std::size_t chunk) {
      [[maybe_unused]] const typename B::ThreadScope scope{};
      auto& workspace = workspaces[static_cast<std::size_t>(worker)];
      if (!workspace) workspace = std::make_unique<Workspace>(base_.backend);
      std::vector<Index> examples;
      for (Index i = starts[chunk]; i < starts[chunk + 1]; ++i) examples.push_back(i);
      pack(data, examples, workspace->batch);
      PassOptions<T> pass;
      pass.slots = {&slot, 1};
      body(starts[chunk], MatrixView<const T>(run(*workspace, pass, 0, false).first));
    });
  }

  Pretrained<Arch, B> base_;
  std::vector<std::string> labels_;
  std::vector<std::string> notes_;
  Pooling pooling_ = Arch::pooling;
  Index max_tokens_ = 0;
  BaseDropouts dropouts_;
  AdapterPlan plan_;
  ClassificationHead<B> head_;
};

}  // namespace fedlora
