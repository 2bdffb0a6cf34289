// SPDX-License-Identifier: Apache-2.0
// A frozen base with LoRA and a classification head: transformers' ForSequenceClassification under PEFT.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/data/dataset.hpp"
#include "fedlora/data/labels.hpp"
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
  std::optional<Pooling> pooling = {};      ///< absent: that of an adapter merged into the base, else the family's own
  Index max_tokens = 0;                     ///< longest sequence in tokens; 0: the same, else the base's positions
  std::optional<double> base_dropout = {};  ///< instead of every dropout of config.json (not the adapter's)
  /// What is predicted, and by which loss. Absent: what config.json says, else numbers for one label and one of the
  /// labels for several, as transformers has it.
  std::optional<ProblemType> problem_type = {};
  /// Whether texts come in pairs: kept with the adapter, for `load_peft` to compare.
  std::optional<bool> text_pairs = {};
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
    const std::int32_t* labels = nullptr;  ///< of every sequence, placed; where each has one
    std::vector<Scalar> targets;           ///< (sequences, labels): numbers, or 0 and 1, where it has not
    const Scalar* placed_targets = nullptr;
    const std::int32_t* cu_seqlens = nullptr;  ///< placed; for mean pooling
    std::vector<typename ClassificationHead<B>::State> head;
  };

  /// \throws ConfigError for a configuration that fits nothing in the base, and for a single label to choose from.
  SequenceClassifier(Pretrained<Arch, B> pretrained, ClassifierOptions options, const LoraConfig& lora)
      : Base(std::move(pretrained), options.max_tokens, options.base_dropout),
        labels_(std::move(options.labels)),
        pooling_(options.pooling.value_or(base().context.pooling.value_or(Arch::pooling))),
        text_pairs_(options.text_pairs) {
    if (labels_.empty()) labels_ = base().config().id2label;
    if (labels_.empty()) labels_ = checkpoint_labels();
    if (labels_.empty() && lora.freeze_head) refuse_without_head("none in either");
    if (labels_.empty()) fail<ConfigError>("classifier of " + base().name, "at least one label", "none");
    const auto by_count = labels_.size() == 1 ? ProblemType::regression : ProblemType::single_label;
    problem_type_ = options.problem_type.value_or(base().config().problem_type.value_or(by_count));
    if (problem_type_ == ProblemType::single_label && labels_.size() == 1)
      fail<ConfigError>("classifier of " + base().name,
                        "at least two labels to choose from (with a single one the loss is 0 whatever the text; to "
                        "predict a number, problem_type is regression)",
                        "only " + detail::in_quotes(labels_[0]));
    build_head(lora);
  }

  const std::vector<std::string>& labels() const { return labels_; }
  ProblemType problem_type() const { return problem_type_; }
  /// What a person should be told about how the head came to be.
  const std::vector<std::string>& notes() const { return notes_; }

  Pooling pooling() const { return pooling_; }

  /// A drawn from `seed`, B zero, the head from the checkpoint where it has one for these labels (each takes its own
  /// row: data/labels.hpp), else drawn as transformers draws it.
  Adapter<Scalar> initial_adapter(std::uint64_t seed) const {
    Adapter<Scalar> adapter(layout());
    initialise_low_rank(this->plan(), seed, adapter);
    for (std::size_t i = 0; i < layout()->saved.size(); ++i) {
      const SavedTensor& tensor = layout()->saved[i];
      const auto values =
          adapter.values().subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.size()));
      const bool output = tensor.name.starts_with(layout()->output_layer + ".");
      const FrozenMatrix* given =
          output && output_rows_.empty() ? nullptr : checkpoint_tensor(tensor.name, tensor.shape);
      if (given != nullptr) {
        const auto stored = this->backend().values(*given);
        const std::size_t width = output ? values.size() / labels_.size() : values.size();
        for (std::size_t row = 0; row * width < values.size(); ++row)
          std::copy_n(stored.begin() + (output ? output_rows_[row] : 0) * static_cast<Index>(width), width,
                      values.begin() + static_cast<Index>(row * width));
      } else if (tensor.shape.size() == 2) {
        RandomSequence draws(derive_key(seed, Purpose::initialise_head, i));
        for (Scalar& value : values) value = static_cast<Scalar>(base().config().initializer_range * draws.normal());
      }
    }
    return adapter;
  }

  /// Tokenised texts, with what is to be predicted where the table has it. \throws FormatError naming file, line and
  /// label, ConfigError for a table with answers of another kind than the model's problem type has.
  Dataset encode(const Table& table, int threads = 0) const {
    check_kind(table);
    Dataset data = encode_texts(require_tokenizer(base()), table, max_tokens(), base().config().vocab_size, threads);
    if (!table.label.empty()) data.labels = table.label_ids(labels_);
    if (!table.label_sets.empty()) {
      auto [labels, offsets] = table.label_set_ids(labels_);
      data.labels = std::move(labels);
      data.label_offsets = std::move(offsets);
    }
    data.targets = table.targets;
    return data;
  }

  /// The data with what the base makes of every text (`Dataset::pooled`), which training and evaluation then read
  /// instead of running it: 4 · hidden_size bytes for each. `before_batch` is called by the workers, several at a time,
  /// and may throw. Only this model and copies of it read them. Unchanged where the base does not make the same of a
  /// text every time, and for all but float32 on the host. Evaluation keeps its bits. Training rounds otherwise than
  /// with batches of its own, but the same every time.
  Dataset with_pooled(Dataset data, int threads = 0, const std::function<void()>& before_batch = {}) const {
    data.pooled.clear();
    data.pooled_by.reset();
    if constexpr (reads_pooled) {
      if (!this->base_is_fixed()) return data;
      const Index width = base().config().hidden_size;
      std::vector<float> pooled(static_cast<std::size_t>(data.size() * width));
      const auto keep = [&](Workspace& workspace, Index first) {
        if (before_batch) before_batch();
        prepare(workspace);
        workspace.run.download(forward(workspace).pooled, pooled.data() + first * width);
      };
      this->template for_evaluation_batches<Workspace>(Adapter<Scalar>(layout()), data, threads, keep);
      data.pooled = std::move(pooled);
      data.pooled_by = identity_;
    }
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
    check_answers(workspace.batch, workspace.batch.sequences());
    this->bind_training(workspace, parameters, gradient, address);
    prepare(workspace);
  }

  /// The second half: adds the gradient of weight · Σ loss, and Σ loss to the runner's. Only calls operations.
  void run_training(Workspace& workspace, double weight) const {
    const Outputs outputs = forward(workspace);
    if (problem_type_ == ProblemType::single_label)
      workspace.run.cross_entropy(outputs.logits, workspace.labels, weight);
    else if (problem_type_ == ProblemType::regression)
      workspace.run.mean_squared_error(outputs.logits, workspace.placed_targets, weight);
    else
      workspace.run.binary_cross_entropy(outputs.logits, workspace.placed_targets, weight);
    run_backward(workspace, outputs);
  }

  /// Logits (examples, labels), without dropout. Examples are packed into batches of about a thousand rows.
  std::vector<Scalar> logits(const Adapter<Scalar>& adapter, const Dataset& data, int threads = 0) const {
    const auto labels = static_cast<std::size_t>(labels_.size());
    std::vector<Scalar> result(static_cast<std::size_t>(data.size()) * labels);
    this->template for_evaluation_batches<Workspace>(adapter, data, threads, [&](Workspace& workspace, Index first) {
      workspace.batch.label_offsets.clear();  // answers are not asked for
      prepare(workspace);
      workspace.run.download(forward(workspace).logits, result.data() + first * static_cast<Index>(labels));
    });
    return result;
  }

  /// Loss and measures of an adapter. The same bits on any number of threads.
  Evaluation evaluate(const Adapter<Scalar>& adapter, const Dataset& data, int threads = 0) const {
    check_answers(data, data.size());
    if (problem_type_ == ProblemType::regression) return evaluate_numbers(adapter, data, threads);
    if (problem_type_ == ProblemType::multi_label) return evaluate_sets(adapter, data, threads);
    std::vector<RowLoss> losses(static_cast<std::size_t>(data.size()));
    this->template for_evaluation_batches<Workspace>(adapter, data, threads, [&](Workspace& workspace, Index first) {
      prepare(workspace);
      const MatrixView<Element> logits = forward(workspace).logits;
      workspace.run.row_losses(
          logits, workspace.labels,
          std::span(losses).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(logits.rows)));
    });
    return evaluation_of_labels(data.labels, losses, labels_.size());
  }

 private:
  static constexpr bool reads_pooled = std::is_same_v<Element, float> && std::is_same_v<Scalar, float> && !requires {
    typename B::Runner::Trainee;
  };

  /// Whether a table's answers are of the kind that the problem type has.
  void check_kind(const Table& table) const {
    const std::pair<ProblemType, bool> kinds[] = {{ProblemType::single_label, !table.label.empty()},
                                                  {ProblemType::multi_label, !table.label_sets.empty()},
                                                  {ProblemType::regression, !table.targets.empty()}};
    for (const auto& [kind, present] : kinds)
      if (present && kind != problem_type_)
        fail<ConfigError>(table.source, "answers for " + std::string(problem_type_name(problem_type_)),
                          "those for " + std::string(problem_type_name(kind)));
  }

  /// Whether a Dataset or a PackedBatch of so many examples holds what the problem type predicts.
  template <class Answers>
  void check_answers(const Answers& answers, Index examples) const {
    const std::string type(problem_type_name(problem_type_));
    const auto expect = [&](const char* what, Index each, std::size_t got) {
      if (static_cast<Index>(got) != examples * each)
        fail<ShapeError>(what,
                         std::to_string(examples * each) + ", " + std::to_string(each) + " per example for " + type,
                         std::to_string(got));
    };
    if (problem_type_ == ProblemType::regression) {
      expect("targets", static_cast<Index>(labels_.size()), answers.targets.size());
      for (std::size_t i = 0; i < answers.targets.size(); ++i)
        if (!std::isfinite(static_cast<Scalar>(answers.targets[i])))
          fail<ShapeError>("target of example " + std::to_string(i / labels_.size()), "a finite number",
                           std::to_string(answers.targets[i]));
      return;
    }
    const bool sets = problem_type_ == ProblemType::multi_label;
    if (sets == answers.label_offsets.empty())
      fail<ShapeError>("labels",
                       (sets ? "a set per example, with label_offsets, for " : "one per example, for ") + type,
                       sets ? "no label_offsets" : "label_offsets");
    if (!sets) expect("labels", 1, answers.labels.size());
    for (std::size_t i = 0; i < answers.labels.size(); ++i)
      if (answers.labels[i] < 0 || static_cast<std::size_t>(answers.labels[i]) >= labels_.size())
        fail<ShapeError>((sets ? "entry " : "label of example ") + std::to_string(i) + (sets ? " of labels" : ""),
                         "a number in [0, " + std::to_string(labels_.size()) + ")", std::to_string(answers.labels[i]));
  }

  Evaluation evaluate_numbers(const Adapter<Scalar>& adapter, const Dataset& data, int threads) const {
    const std::vector<Scalar> outputs = logits(adapter, data, threads);
    const std::vector<double> predicted(outputs.begin(), outputs.end());
    return evaluation_of_numbers(predicted, data.targets, static_cast<Index>(labels_.size()));
  }

  Evaluation evaluate_sets(const Adapter<Scalar>& adapter, const Dataset& data, int threads) const {
    SetCounts counts(labels_.size(), data.size());
    std::mutex mutex;
    this->template for_evaluation_batches<Workspace>(adapter, data, threads, [&](Workspace& workspace, Index first) {
      prepare(workspace);
      const MatrixView<Element> outputs = forward(workspace).logits;
      std::vector<Scalar> logits(static_cast<std::size_t>(outputs.rows * outputs.cols));
      workspace.run.download(outputs, logits.data());
      const std::lock_guard lock(mutex);
      counts.template add<Scalar>(first, logits, workspace.targets);
    });
    return std::move(counts).evaluation();
  }

  /// The names of the rows of the checkpoint's own output layer; config.json's where it has none.
  std::vector<std::string> checkpoint_labels() const {
    const HeadLayer output = Arch::head(base().config()).back();
    const auto weight = base().head.find(output.name + ".weight");
    if (weight == base().head.end() || weight->second.cols != output.in) return base().config().id2label;
    return row_names(base().config().id2label, weight->second.rows);
  }

  /// Finds the row of the checkpoint's output layer for every label, or says why none is taken over.
  void match_output(const HeadLayer& output) {
    const std::vector<std::string> head = checkpoint_labels();
    if (problem_type_ == ProblemType::regression && head.size() == labels_.size()) {
      output_rows_ = match_numbers(head, labels_);
      return;
    }
    const LabelMatch match = match_labels(head, labels_);
    if (match && head.size() == labels_.size()) {
      output_rows_ = match.rows;
      if (match.rule != LabelRule::name && head.size() > 1)
        notes_.push_back(output.name + " of " + base().name + ": " + label_rows_text(match, head, labels_) +
                         (match.rule == LabelRule::order ? "; by order, as nothing tells which is which" : ""));
    } else {
      notes_.push_back(output.name + ": the checkpoint " + base().name + " has it for " + detail::quoted_list(head) +
                       ", not for " + detail::quoted_list(labels_) + "; initialised, trained and sent whole");
    }
  }

  /// For an adapter without a head of its own over a base that has none for it.
  [[noreturn]] void refuse_without_head(const std::string& got) const {
    fail<ConfigError>("classifier of " + base().name,
                      "a head, in the adapter or in the base (PEFT saves the head where task_type is SEQ_CLS or "
                      "modules_to_save names it)",
                      got);
  }

  void build_head(const LoraConfig& lora) {
    std::vector<HeadLayer> layers = Arch::head(base().config());
    if (pooling_ == Pooling::mean) layers.erase(layers.begin(), layers.end() - 1);  // the pooler is for the first token
    std::vector<std::string> missing;
    std::vector<FrozenLinear> frozen(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      HeadLayer& layer = layers[i];
      const bool output = i + 1 == layers.size();
      const auto stored = base().head.find(layer.name + ".weight");
      const bool has_rows = output && stored != base().head.end() && stored->second.cols == layer.in;
      if (has_rows) match_output(layer);
      if (layer.out == 0) layer.out = static_cast<Index>(labels_.size());
      const FrozenMatrix* weight = checkpoint_tensor(layer.name + ".weight", {layer.out, layer.in});
      const FrozenMatrix* bias = layer.bias ? checkpoint_tensor(layer.name + ".bias", {layer.out}) : nullptr;
      if (weight != nullptr && (bias != nullptr || !layer.bias) && (!output || !output_rows_.empty())) {
        frozen[i] = {*weight, bias != nullptr ? *bias : FrozenMatrix{}};
      } else {
        if (output && lora.freeze_head)
          refuse_without_head(has_rows && output_rows_.empty() ? "none in the adapter, and in the base one for " +
                                                                     detail::quoted_list(checkpoint_labels())
                                                               : "no whole one in either");
        missing.push_back(layer.name);
        if (has_rows && output_rows_.empty()) continue;  // match_output has said why
        notes_.push_back(layer.name + ": not in the checkpoint " + base().name + " for " +
                         std::to_string(labels_.size()) +
                         (problem_type_ == ProblemType::regression ? " number" : " label") +
                         (labels_.size() == 1 ? "" : "s") + "; initialised, trained and sent whole");
      }
    }
    if (lora.freeze_head && !std::is_sorted(output_rows_.begin(), output_rows_.end()))
      fail<ConfigError>("labels of a frozen head of " + base().name, "the checkpoint's order",
                        detail::quoted_list(labels_));
    AdapterContext context;
    context.pooling = pooling_;
    context.problem_type = problem_type_;
    context.text_pairs = text_pairs_;
    this->place_adapter(lora, TaskType::sequence_classification, layers, missing, labels_, std::move(context));
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
    MatrixView<const Element> pooled;
    MatrixView<Element> logits;
  };

  /// The row that stands for a sequence. The last one is that of the last token which is not the pad token, as in
  /// transformers: where one token ends texts and pads them, the one before it counts.
  std::int32_t pooled_row(const PackedBatch& batch, Index sequence) const {
    const auto s = static_cast<std::size_t>(sequence);
    const std::int32_t first = batch.cu_seqlens[s];
    if (pooling_ == Pooling::first_token) return first;
    std::int32_t last = batch.cu_seqlens[s + 1] - 1;
    const std::optional<Index> pad = base().config().pad_token;
    while (pad && last > first && batch.tokens[static_cast<std::size_t>(last)] == *pad) --last;
    return last;
  }

  /// Puts the workspace's batch where operations read it.
  void prepare(Workspace& workspace) const {
    const PackedBatch& batch = workspace.batch;
    if (batch.pooled.empty()) {
      workspace.pooled_rows.clear();
      if (pooling_ != Pooling::mean)
        for (Index s = 0; s < batch.sequences(); ++s) workspace.pooled_rows.push_back(pooled_row(batch, s));
      this->prepare_base(workspace, workspace.pooled_rows);
    } else {
      prepare_pooled(workspace);
    }
    if (problem_type_ == ProblemType::single_label) {
      workspace.labels = workspace.run.place(batch.labels);
    } else {
      set_targets(batch, workspace.targets);
      workspace.placed_targets = workspace.run.place(std::span<const Scalar>(workspace.targets));
    }
    workspace.cu_seqlens = workspace.run.place(batch.cu_seqlens);
    workspace.run.flush();
  }

  /// The same for a batch whose pooled rows are known. \throws ConfigError unless this model made them, ShapeError for
  /// another width.
  void prepare_pooled(Workspace& workspace) const {
    const PackedBatch& batch = workspace.batch;
    if (batch.pooled_by != identity_)
      fail<ConfigError>("pooled of a dataset", "what this model's own with_pooled() makes of the texts",
                        batch.pooled_by ? "that of another model" : "numbers that no model vouches for");
    if (const Index expected = batch.sequences() * base().config().hidden_size;
        static_cast<Index>(batch.pooled.size()) != expected)
      fail<ShapeError>("pooled of a batch", std::to_string(expected) + " numbers", std::to_string(batch.pooled.size()));
    workspace.tables.build(batch.cu_seqlens, batch.segments, {});
    workspace.tables.placed_sequence_numbers = workspace.run.place(workspace.tables.sequence_numbers);
  }

  /// What the outputs of the batch are compared with: its numbers, or 1 for each label of its sets and 0 for the
  /// others.
  void set_targets(const PackedBatch& batch, std::vector<Scalar>& targets) const {
    targets.assign(batch.targets.begin(), batch.targets.end());
    if (batch.label_offsets.empty()) return;
    targets.assign(static_cast<std::size_t>(batch.sequences()) * labels_.size(), Scalar(0));
    for (std::size_t s = 0; s + 1 < batch.label_offsets.size(); ++s)
      for (Index i = batch.label_offsets[s]; i < batch.label_offsets[s + 1]; ++i)
        targets[s * labels_.size() + static_cast<std::size_t>(batch.labels[static_cast<std::size_t>(i)])] = Scalar(1);
  }

  /// Runs the batch that was prepared.
  Outputs forward(Workspace& workspace) const {
    const PackedBatch& batch = workspace.batch;
    Outputs outputs;
    if (batch.pooled.empty())
      run_base(workspace, outputs);
    else if constexpr (reads_pooled)
      outputs.pooled = {batch.pooled.data(), batch.sequences(), base().config().hidden_size};
    outputs.logits = head_.forward(outputs.pooled, batch.segments, workspace.tables.placed_sequence_numbers,
                                   workspace.pass, workspace.head, workspace.run);
    return outputs;
  }

  void run_base(Workspace& workspace, Outputs& outputs) const {
    outputs.last = Base::forward(workspace);
    outputs.pooled = outputs.last.after;
    if (pooling_ != Pooling::mean) return;
    const MatrixView<Element> mean = workspace.run.operand(workspace.batch.sequences(), base().config().hidden_size);
    workspace.run.mean_rows(outputs.last.after, workspace.cu_seqlens, mean);
    outputs.pooled = mean;
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
  std::vector<Index> output_rows_;  ///< of the checkpoint's output layer, for every label; empty: none is taken over
  std::vector<std::string> notes_;
  Pooling pooling_ = Arch::pooling;
  ProblemType problem_type_ = ProblemType::single_label;
  std::optional<bool> text_pairs_;
  std::shared_ptr<const void> identity_ = std::make_shared<char>();  ///< of this model and its copies
  ClassificationHead<B> head_;
};

}  // namespace fedlora
