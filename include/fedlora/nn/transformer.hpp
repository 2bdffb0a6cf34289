// SPDX-License-Identifier: Apache-2.0
// The frozen base: embeddings and blocks of one family, loaded once and shared by everybody.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/backend/concepts.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/nn/batch.hpp"
#include "fedlora/nn/block.hpp"
#include "fedlora/nn/concepts.hpp"
#include "fedlora/nn/weights.hpp"

namespace fedlora {

/// Working memory of one worker, for any model of backend B. It belongs to whoever runs, not to a client.
template <Backend B>
struct TransformerWorkspace {
  explicit TransformerWorkspace(const B& backend) : run(backend) {}

  typename B::Runner run;  ///< computes, and holds what it computes with
  BatchTables tables;
  std::vector<BlockState<typename B::Element, typename B::Scalar>> blocks;
  /// In training: what goes from block to block, hidden states up and their gradient down, and the gradient of the rows
  /// that come out of the last block.
  MatrixView<typename B::Element> carried, d_out;
  std::vector<MatrixView<typename B::Element>> inputs;  ///< of the blocks, where they stay until backward
  std::vector<typename B::Runner::Mark> kept;           ///< the height of the runner's memory behind each block's state
  typename B::Runner::AttentionTable attention_all, attention_pooled;
  std::vector<const std::int32_t*> ids;  ///< of every row, by embedding table, placed
  std::vector<std::int32_t> position_rows;
};

/// A Transformer base of family `Arch`, immutable after construction. Layers hold no activations: a pass takes a
/// workspace.
template <Architecture Arch_, Backend B>
class Transformer {
 public:
  using Arch = Arch_;
  using T = typename B::Element;
  using Sum = typename B::Scalar;
  using Options = PassOptions<T, Sum>;
  using Workspace = TransformerWorkspace<B>;

  /// Takes every tensor of the base. \throws FormatError naming file and tensor when one is missing or misshapen.
  Transformer(ModelConfig config, WeightLoader<B>& load) : config_(std::move(config)) {
    const FamilyNames& names = Arch::names;
    const Index hidden = config_.hidden_size;
    word_ = load.embeddings(std::string(names.word_embeddings) + ".weight",
                            std::string(names.output_embeddings) + ".weight", config_.tied_embeddings,
                            config_.vocab_size, hidden);
    if constexpr (Arch::positions == Positions::learned)
      position_ = load.matrix(std::string(names.position_embeddings) + ".weight",
                              config_.max_positions + config_.position_offset, hidden);
    if (config_.token_types > 0)
      token_type_ = load.matrix(std::string(names.token_type_embeddings) + ".weight", config_.token_types, hidden);
    if (!names.embedding_norm.empty()) embedding_norm_ = load_norm(load, std::string(names.embedding_norm));
    const Index q_width = config_.heads * config_.head_dim;
    const Index kv_width = config_.kv_heads * config_.head_dim;
    const Index inner = config_.intermediate_size;
    const std::pair<Index, Index> shapes[layer_linears] = {{q_width, hidden}, {kv_width, hidden}, {kv_width, hidden},
                                                           {hidden, q_width}, {inner, hidden},    {inner, hidden},
                                                           {hidden, inner}};
    blocks_.resize(static_cast<std::size_t>(config_.layers));
    for (Index layer = 0; layer < config_.layers; ++layer) {
      BlockWeights& block = blocks_[static_cast<std::size_t>(layer)];
      const std::string prefix = std::string(names.layers) + std::to_string(layer) + ".";
      for (std::size_t i = 0; i < layer_linears; ++i) {
        if (names.linears[i].empty()) continue;
        const std::string name = prefix + std::string(names.linears[i]);
        block.linears[i].weight = load.matrix(name + ".weight", shapes[i].first, shapes[i].second);
        if (has_bias(static_cast<LayerLinear>(i))) block.linears[i].bias = load.vector(name + ".bias", shapes[i].first);
      }
      for (std::size_t i = 0; i < 2; ++i) block.norms[i] = load_norm(load, prefix + std::string(names.norms[i]));
    }
    if (!names.final_norm.empty()) final_norm_ = load_norm(load, std::string(names.final_norm));
  }

  const ModelConfig& config() const { return config_; }
  const FrozenMatrix& word_embeddings() const { return word_; }

  /// The frozen linear layer that a LoRA site sits on.
  const FrozenLinear& linear(Index layer, LayerLinear which) const {
    return blocks_[static_cast<std::size_t>(layer)][which];
  }

  /// Refuses a batch that would read outside the tables. \throws ShapeError naming row, what was expected and what
  /// came.
  void check(std::span<const std::int32_t> tokens, std::span<const std::int32_t> token_types,
             std::span<const std::int32_t> cu_seqlens) const {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if (tokens[i] < 0 || tokens[i] >= config_.vocab_size)
        fail<ShapeError>("batch, row " + std::to_string(i),
                         "a token id in [0, " + std::to_string(config_.vocab_size) + ")", std::to_string(tokens[i]));
    if (config_.token_types > 0)
      for (std::size_t i = 0; i < token_types.size(); ++i)
        if (token_types[i] < 0 || token_types[i] >= config_.token_types)
          fail<ShapeError>("batch, row " + std::to_string(i),
                           "a token type in [0, " + std::to_string(config_.token_types) + ")",
                           std::to_string(token_types[i]));
    for (std::size_t s = 0; s + 1 < cu_seqlens.size(); ++s)
      if (const Index length = cu_seqlens[s + 1] - cu_seqlens[s]; length < 1 || length > config_.max_positions)
        fail<ShapeError>("batch, sequence " + std::to_string(s),
                         "1 to " + std::to_string(config_.max_positions) + " tokens", std::to_string(length));
  }

  /// Puts a packed batch (tokens, token_types: one per row) and its tables, which are in the workspace, where the runner
  /// reads them. What `tokens` and `token_types` view must live until the pass is over.
  void prepare(std::span<const std::int32_t> tokens, std::span<const std::int32_t> token_types, const Options& options,
               Workspace& workspace) const {
    auto& run = workspace.run;
    BatchTables& tables = workspace.tables;
    run.expect(tables.all.count);
    workspace.ids = {run.place(tokens)};
    if constexpr (Arch::positions == Positions::learned) {
      place_positions(tokens, tables.all.positions, workspace.position_rows);
      workspace.ids.push_back(run.place(workspace.position_rows));
    }
    if (config_.token_types > 0) workspace.ids.push_back(run.place(token_types));
    tables.placed_sequence_numbers = run.place(tables.sequence_numbers);
    workspace.attention_all = place_rows(options, tables.all, run);
    if (tables.pooled.count > 0) workspace.attention_pooled = place_rows(options, tables.pooled, run);
    prepare_rotation(workspace);
  }

  /// Runs the base over the batch that was prepared. Returns the last hidden states, (rows, hidden) or (sequences,
  /// hidden) when `pooled_only`, in the runner's memory.
  MatrixView<T> forward(const Options& options, Workspace& workspace) const {
    auto& run = workspace.run;
    const BatchTables& tables = workspace.tables;
    const Index hidden = config_.hidden_size;
    workspace.blocks.assign(blocks_.size(), {});
    workspace.inputs.assign(blocks_.size(), {});
    workspace.kept.assign(blocks_.size(), {});
    if (goes_backward(options)) {
      workspace.carried = run.operand(tables.all.count, hidden);
      workspace.d_out = options.pooled_only ? run.operand(tables.pooled.count, hidden) : workspace.carried;
    }
    MatrixView<T> x = run.operand(tables.all.count, hidden);
    embed(options, workspace, x);
    for (Index layer = 0; layer < config_.layers; ++layer) {
      const bool pooled = options.pooled_only && layer + 1 == config_.layers;
      const bool keep = goes_backward(options) && layer >= options.lowest_adapted;
      MatrixView<T> y = x;  // blocks that keep nothing write where they read
      if (pooled)
        y = run.operand(tables.pooled.count, hidden);
      else if (keep)
        y = keeps_inputs ? run.operand(tables.all.count, hidden) : workspace.carried;
      if (keep && (keeps_inputs || layer == options.lowest_adapted))
        workspace.inputs[static_cast<std::size_t>(layer)] = x;
      forward_block(layer, pooled, options, workspace, x, y, keep);
      x = y;
    }
    return x;
  }

  /// y = final norm of x, for families that have one (`has_final_norm`); statistics is (rows, 2), for backward. y may
  /// be x only when nothing goes backward.
  void final_norm(MatrixView<T> x, MatrixView<T> y, MatrixView<Sum> statistics, Workspace& workspace) const {
    workspace.run.norm_forward(Arch::norm, x, final_norm_.template gamma_data<T>(), final_norm_.template beta_data<T>(),
                    config_.norm_eps, y, statistics);
  }
  void final_norm_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const Sum> statistics,
                           MatrixView<T> dx, Workspace& workspace) const {
    workspace.run.norm_backward(Arch::norm, dy, x, statistics, final_norm_.template gamma_data<T>(), dx, false);
  }
  static constexpr bool has_final_norm = !Arch::names.final_norm.empty();

  /// Given the gradient of what `forward` returned, adds the gradients of all adapters. What was taken from the runner's
  /// memory since `forward`, `dy` too, is given back: nothing of it can be read afterwards.
  void backward(MatrixView<const T> dy, const Options& options, Workspace& workspace) const {
    if (!goes_backward(options)) return;
    auto& run = workspace.run;
    MatrixView<T> d = workspace.d_out;
    run.copy(dy, d);
    for (Index layer = config_.layers - 1; layer >= options.lowest_adapted; --layer) {
      const bool pooled = options.pooled_only && layer + 1 == config_.layers;
      const auto at = static_cast<std::size_t>(layer);
      run.rewind(workspace.kept[at]);  // of the blocks above, nothing is needed any more
      const auto input = [&]() -> MatrixView<const T> {
        if (!workspace.inputs[at].empty()) return workspace.inputs[at];
        const MatrixView<T> x = run.operand(workspace.tables.all.count, config_.hidden_size);
        pass(layer - 1, false, options, workspace).make_output(workspace.blocks[at - 1], x);
        return x;
      };
      pass(layer, pooled, options, workspace)
          .backward(workspace.blocks[at], d, reach(layer, options), workspace.carried, input);
      d = workspace.carried;
    }
  }

 private:
  /// Whether a pre-norm block's input is the sum that its norm reads, which stays; that of a post-norm block is what
  /// the norm of the block below made, which can do so again.
  static constexpr bool keeps_inputs = Arch::norm_place == NormPlace::pre;

  bool goes_backward(const Options& options) const {
    return options.training && options.lowest_adapted < config_.layers;
  }

  /// Runs a block; what it takes from the runner's memory stays when backward needs it.
  void forward_block(Index layer, bool pooled, const Options& options, Workspace& workspace, MatrixView<T> x,
                     MatrixView<T> y, bool keep) const {
    const auto at = static_cast<std::size_t>(layer);
    const auto before = workspace.run.mark();
    pass(layer, pooled, options, workspace).forward(x, y, workspace.blocks[at]);
    if (!keep) workspace.run.rewind(before);
    workspace.kept[at] = workspace.run.mark();
  }

  bool has_bias(LayerLinear which) const {
    if (which >= LayerLinear::gate) return config_.mlp_bias;
    return which == LayerLinear::output ? config_.output_bias : config_.input_bias;
  }

  static FrozenNorm load_norm(WeightLoader<B>& load, const std::string& name, Index hidden) {
    FrozenNorm norm;
    norm.gamma = load.vector(name + ".weight", hidden);
    if constexpr (Arch::norm == NormKind::layer_norm) norm.beta = load.vector(name + ".bias", hidden);
    return norm;
  }
  FrozenNorm load_norm(WeightLoader<B>& load, const std::string& name) const {
    return load_norm(load, name, config_.hidden_size);
  }

  BlockPass<Arch, B> pass(Index layer, bool pooled, const Options& options, Workspace& workspace) const {
    return {config_,
            blocks_[static_cast<std::size_t>(layer)],
            layer,
            workspace.tables,
            pooled,
            pooled ? workspace.attention_pooled : workspace.attention_all,
            options,
            workspace.run};
  }

  BlockReach reach(Index layer, const Options& options) const {
    if (layer > options.lowest_adapted) return {};
    const auto any = [&](std::initializer_list<LayerLinear> linears) {
      for (const SlotTerms<T, Sum>& slot : options.slots)
        for (const LayerLinear which : linears)
          if (!slot.layers[static_cast<std::size_t>(layer) * layer_linears + static_cast<std::size_t>(which)].a.empty())
            return true;
      return false;
    };
    BlockReach reach;
    reach.input = false;
    reach.attention = any({LayerLinear::query, LayerLinear::key, LayerLinear::value, LayerLinear::output});
    reach.mlp_input = reach.attention || any({LayerLinear::gate, LayerLinear::up});
    return reach;
  }

  void embed(const Options& options, Workspace& workspace, MatrixView<T> x) const {
    const RowSet& rows = workspace.tables.all;
    std::vector<MatrixView<const T>> embeddings = {word_.view<T>()};
    if constexpr (Arch::positions == Positions::learned) embeddings.push_back(position_.view<T>());
    if (config_.token_types > 0) embeddings.push_back(token_type_.view<T>());
    workspace.run.embed(embeddings, workspace.ids, x);
    if (embedding_norm_.gamma.empty()) return;
    const auto scope = workspace.run.scope();
    workspace.run.norm_forward(Arch::norm, x, embedding_norm_.template gamma_data<T>(), embedding_norm_.template beta_data<T>(),
                    config_.norm_eps, x, workspace.run.statistics(x.rows));
    if (!options.training || options.dropouts.hidden <= 0) return;
    for (const RowSegment& segment : rows.segments) {
      const StepAddress& at = options.slots[static_cast<std::size_t>(segment.slot)].address;
      const Dropout dropout(derive_key(at.seed, Purpose::embedding_dropout, at.round, at.client, at.step, at.micro),
                            options.dropouts.hidden);
      workspace.run.dropout(dropout, x, x, rows.placed.numbers, segment.begin, segment.end);
    }
  }

  /// Puts the tables of a row set where the runner reads them; its sequences get the dropout of their segment.
  static typename B::Runner::AttentionTable place_rows(const Options& options, RowSet& rows,
                                                       typename B::Runner& run) {
    rows.place(run);
    if (options.training && options.dropouts.attention > 0)
      for (const RowSegment& segment : rows.segments) {
        const StepAddress& at = options.slots[static_cast<std::size_t>(segment.slot)].address;
        const Dropout dropout(derive_key(at.seed, Purpose::attention_dropout, at.round, at.client, at.step, at.micro),
                              options.dropouts.attention);
        for (AttentionSpan& span : rows.spans)
          if (span.query_begin >= segment.begin && span.query_begin < segment.end) span.dropout = dropout;
      }
    // Without positions attention takes query i for the i-th row of its sequence.
    return run.place(rows.spans, rows.rows.empty() ? nullptr : rows.placed.positions, rows.placed.numbers);
  }

  /// The row of the position table that each token takes.
  void place_positions(std::span<const std::int32_t> tokens, const std::vector<std::int32_t>& positions,
                       std::vector<std::int32_t>& rows) const {
    const auto first = static_cast<std::int32_t>(config_.position_offset);
    std::int32_t unplaced = 0;  // of the sequence so far
    rows.resize(positions.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (positions[i] == 0) unplaced = 0;
      const bool placed = tokens[i] != config_.unplaced_token;
      rows[i] = placed ? first + positions[i] - unplaced : first - 1;
      unplaced += placed ? 0 : 1;
    }
  }

  /// cos and sin of position · frequency, in double, for every position the batch has.
  void prepare_rotation(Workspace& workspace) const {
    if constexpr (Arch::positions == Positions::rotary) {
      Index longest = 0;
      for (const std::int32_t position : workspace.tables.all.positions)
        longest = std::max<Index>(longest, position + 1);
      const Index have = workspace.run.rotary_positions();
      if (longest <= have) return;
      longest = std::min(std::max(longest, 2 * have), std::max(longest, config_.max_positions));
      const Index half = config_.head_dim / 2;
      std::vector<Sum> cosines(static_cast<std::size_t>(longest * half)), sines(cosines.size());
      for (Index d = 0; d < half; ++d) {
        const double frequency = rotary_frequency(d);
        for (Index position = 0; position < longest; ++position) {
          const double angle = static_cast<double>(position) * frequency;
          cosines[static_cast<std::size_t>(position * half + d)] = static_cast<Sum>(std::cos(angle));
          sines[static_cast<std::size_t>(position * half + d)] = static_cast<Sum>(std::sin(angle));
        }
      }
      workspace.run.set_rotary(longest, std::move(cosines), std::move(sines));
    }
  }

  /// theta^(-2d / head_dim), stretched as config.json asks.
  double rotary_frequency(Index d) const {
    const double frequency =
        std::pow(config_.rope_theta, -2.0 * static_cast<double>(d) / static_cast<double>(config_.head_dim));
    const RopeScaling& scaling = config_.rope_scaling;
    if (scaling.kind == RopeScaling::Kind::none) return frequency;
    if (scaling.kind == RopeScaling::Kind::linear) return frequency / scaling.factor;
    const double wavelength = 6.283185307179586476925286766559 / frequency;
    const double low = scaling.original_max_positions / scaling.low_frequency_factor;
    const double high = scaling.original_max_positions / scaling.high_frequency_factor;
    if (wavelength < high) return frequency;
    if (wavelength > low) return frequency / scaling.factor;
    const double smooth = (scaling.original_max_positions / wavelength - scaling.low_frequency_factor) /
                          (scaling.high_frequency_factor - scaling.low_frequency_factor);
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
  }

  ModelConfig config_;
  FrozenMatrix word_, position_, token_type_;
  FrozenNorm embedding_norm_, final_norm_;
  std::vector<BlockWeights> blocks_;
};

}  // namespace fedlora
