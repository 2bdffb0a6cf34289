// SPDX-License-Identifier: Apache-2.0
// A packed batch as layers read it: which rows belong to which sequence, client and adapter.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/segment.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/core/step.hpp"

namespace fedlora {

/// A linear layer of the head that a slot trains whole; empty `weight` where the checkpoint's own is used.
template <class T, class Sum = T>
struct DenseTerm {
  MatrixView<const T> weight;  ///< (out, in)
  const T* bias = nullptr;
  MatrixView<Sum> grad_weight;  ///< added to; empty in evaluation
  Sum* grad_bias = nullptr;
};

/// Probabilities of the checkpoint's own dropouts during training; the adapter's is LoraConfig's.
struct BaseDropouts {
  double hidden = 0;
  double attention = 0;
  double classifier = 0;
};

/// The low-rank terms of one slot (one client's adapter), by layer and linear layer; an empty `a` where there is none.
template <class T, class Sum = T>
struct SlotTerms {
  std::vector<LowRankTerm<T, Sum>> layers;  ///< layer * layer_linears + LayerLinear
  std::vector<LowRankTerm<T, Sum>> head;    ///< by head layer
  std::vector<DenseTerm<T, Sum>> dense;     ///< by head layer
  StepAddress address;                      ///< names the randomness of this pass
  double adapter_dropout = 0;               ///< 0 in evaluation
};

/// Rows of a set that share a slot.
struct RowSegment {
  Index begin = 0;
  Index end = 0;
  std::int32_t slot = 0;
};

/// What one pass through the model is asked for.
template <class T, class Sum = T>
struct PassOptions {
  std::span<const SlotTerms<T, Sum>> slots;
  bool training = false;     ///< states are kept for backward, and dropouts are on
  BaseDropouts dropouts;     ///< read in training only
  bool pooled_only = false;  ///< the last block computes only the rows in BatchTables::pooled
  Index lowest_adapted = 0;  ///< backward stops below this block; the number of blocks when none is adapted
};

/// The tables of a row set where the backend's operations read them.
struct PlacedRows {
  const std::int32_t* rows = nullptr;
  const std::int32_t* numbers = nullptr;
  const std::int32_t* positions = nullptr;
};

/// A set of rows of the batch: all of them, or one per sequence (the rows that the head will read).
struct RowSet {
  std::vector<std::int32_t> rows;       ///< row of the batch; empty when the set is all rows in order
  std::vector<std::int32_t> numbers;    ///< the client's own number of each row: addresses dropout
  std::vector<std::int32_t> positions;  ///< position within the sequence
  std::vector<RowSegment> segments;     ///< over this set
  std::vector<AttentionSpan> spans;     ///< queries are rows of this set, keys rows of the batch
  Index count = 0;
  PlacedRows placed;

  /// Puts the tables where `runner` reads them, until its next `reset`.
  template <class Runner>
  void place(Runner& runner) {
    placed = {rows.empty() ? nullptr : runner.place(rows), runner.place(numbers), runner.place(positions)};
  }
};

/// The tables of one pass. Built once per batch, read by every layer.
struct BatchTables {
  RowSet all;
  RowSet pooled;  ///< count 0 when no single row stands for a sequence
  std::vector<std::int32_t> sequence_numbers;  ///< the client's own number of each sequence
  const std::int32_t* placed_sequence_numbers = nullptr;

  /// `segments` cover the sequences; `pooled_rows` names one row per sequence, or is empty.
  void build(std::span<const std::int32_t> cu_seqlens, std::span<const Segment> segments,
             std::span<const std::int32_t> pooled_rows) {
    const auto sequences = static_cast<Index>(cu_seqlens.size()) - 1;
    all = {};
    pooled = {};
    sequence_numbers.assign(static_cast<std::size_t>(sequences), 0);
    all.count = cu_seqlens.back();
    all.numbers.resize(static_cast<std::size_t>(all.count));
    all.positions.resize(static_cast<std::size_t>(all.count));
    for (const Segment& segment : segments) {
      const Index first = cu_seqlens[static_cast<std::size_t>(segment.first_sequence)];
      const Index last = cu_seqlens[static_cast<std::size_t>(segment.last_sequence)];
      all.segments.push_back({first, last, segment.slot});
      for (std::int32_t s = segment.first_sequence; s < segment.last_sequence; ++s)
        sequence_numbers[static_cast<std::size_t>(s)] = s - segment.first_sequence;
      for (Index row = first; row < last; ++row)
        all.numbers[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(row - first);
    }
    for (Index s = 0; s < sequences; ++s) {
      const Index begin = cu_seqlens[static_cast<std::size_t>(s)];
      const Index end = cu_seqlens[static_cast<std::size_t>(s) + 1];
      all.spans.push_back({begin, end, begin, end, {}});
      for (Index row = begin; row < end; ++row)
        all.positions[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(row - begin);
    }
    if (pooled_rows.empty()) return;
    pooled.count = sequences;
    pooled.rows.assign(pooled_rows.begin(), pooled_rows.end());
    for (const Segment& segment : segments)
      pooled.segments.push_back({segment.first_sequence, segment.last_sequence, segment.slot});
    for (Index s = 0; s < sequences; ++s) {
      const auto row = static_cast<std::size_t>(pooled_rows[static_cast<std::size_t>(s)]);
      pooled.numbers.push_back(all.numbers[row]);
      pooled.positions.push_back(all.positions[row]);
      const AttentionSpan& span = all.spans[static_cast<std::size_t>(s)];
      pooled.spans.push_back({s, s + 1, span.key_begin, span.key_end, {}});
    }
  }
};

}  // namespace fedlora
