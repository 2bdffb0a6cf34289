// SPDX-License-Identifier: Apache-2.0
// Tokenised examples, and the packed batches made of them. No sequence is padded.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/segment.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Examples as token ids, one after another: example i is `tokens[offsets[i] … offsets[i + 1])`.
struct Dataset {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> token_types;  ///< as long as `tokens`
  std::vector<Index> offsets = {0};
  std::vector<std::int32_t> labels;  ///< one per example; empty for language modelling

  Index size() const { return static_cast<Index>(offsets.size()) - 1; }
  Index length(Index example) const {
    return offsets[static_cast<std::size_t>(example) + 1] - offsets[static_cast<std::size_t>(example)];
  }

  /// Appends an example without a label.
  void append(std::span<const std::int32_t> ids, std::span<const std::int32_t> types) {
    if (ids.empty()) fail<ShapeError>("dataset, example " + std::to_string(size()), "at least one token", "none");
    if (types.size() != ids.size())
      fail<ShapeError>("dataset, example " + std::to_string(size()), std::to_string(ids.size()) + " token types",
                       std::to_string(types.size()));
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    token_types.insert(token_types.end(), types.begin(), types.end());
    offsets.push_back(static_cast<Index>(tokens.size()));
  }
};

/// Sequences packed row after row: sequence s owns rows [cu_seqlens[s], cu_seqlens[s + 1]).
struct PackedBatch {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> token_types;
  std::vector<std::int32_t> cu_seqlens = {0};
  std::vector<std::int32_t> labels;  ///< one per sequence, or empty
  std::vector<Segment> segments;     ///< in order, covering every sequence

  Index sequences() const { return static_cast<Index>(cu_seqlens.size()) - 1; }
};

/// Packs the named examples, in the order named, as one segment.
inline void pack(const Dataset& data, std::span<const Index> examples, PackedBatch& batch) {
  batch.tokens.clear();
  batch.token_types.clear();
  batch.cu_seqlens.assign(1, 0);
  batch.labels.clear();
  for (const Index example : examples) {
    if (example < 0 || example >= data.size())
      fail<ShapeError>("pack", "an example in [0, " + std::to_string(data.size()) + ")", std::to_string(example));
    const auto begin = data.offsets[static_cast<std::size_t>(example)];
    const auto end = data.offsets[static_cast<std::size_t>(example) + 1];
    batch.tokens.insert(batch.tokens.end(), data.tokens.begin() + begin, data.tokens.begin() + end);
    batch.token_types.insert(batch.token_types.end(), data.token_types.begin() + begin, data.token_types.begin() + end);
    batch.cu_seqlens.push_back(static_cast<std::int32_t>(batch.tokens.size()));
    if (!data.labels.empty()) batch.labels.push_back(data.labels[static_cast<std::size_t>(example)]);
  }
  batch.segments.assign(1, Segment{0, static_cast<std::int32_t>(batch.sequences()), 0});
}

}  // namespace fedlora
