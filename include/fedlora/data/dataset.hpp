// SPDX-License-Identifier: Apache-2.0
// Tokenised examples, and the packed batches made of them. No sequence is padded.
#pragma once

#include <cstdint>
#include <memory>
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
  /// One per example; or, with `label_offsets`, a set per example, as `tokens` have a row. Empty where nothing or
  /// numbers are predicted.
  std::vector<std::int32_t> labels;
  std::vector<Index> label_offsets;  ///< example i has labels[label_offsets[i] … label_offsets[i + 1]); empty: one each
  std::vector<double> targets;  ///< numbers to predict, the same count for every example, one example after another
  /// What a base makes of every example where that is known already, the same count for each
  /// (`SequenceClassifier::with_pooled`); else empty.
  std::vector<float> pooled;
  std::shared_ptr<const void> pooled_by;  ///< the model that made it, which alone reads it

  Index size() const { return static_cast<Index>(offsets.size()) - 1; }
  Index length(Index example) const {
    return offsets[static_cast<std::size_t>(example) + 1] - offsets[static_cast<std::size_t>(example)];
  }

  /// Numbers to predict per example.
  Index outputs() const { return size() > 0 ? static_cast<Index>(targets.size()) / size() : 0; }
  /// Numbers per example in `pooled`.
  Index pooled_width() const { return size() > 0 ? static_cast<Index>(pooled.size()) / size() : 0; }
  /// The labels of an example, one or a set; none where there are none. \throws ShapeError for offsets that do not fit
  std::span<const std::int32_t> labels_of(Index example) const {
    const auto at = static_cast<std::size_t>(example);
    const auto count = static_cast<Index>(labels.size());
    if (label_offsets.empty()) return std::span(labels).subspan(labels.empty() ? 0 : at, labels.empty() ? 0 : 1);
    const Index begin = label_offsets[at], end = label_offsets[at + 1];
    if (begin < 0 || begin > end || end > count)
      fail<ShapeError>("label_offsets of example " + std::to_string(example),
                       "a rise within the " + std::to_string(count) + " labels",
                       std::to_string(begin) + " to " + std::to_string(end));
    return std::span(labels).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  }

  /// \throws ShapeError unless every example has an answer, or none has one; the same of `pooled`.
  void check_answers() const {
    const auto expect = [](const char* what, Index count, std::size_t got) {
      if (static_cast<Index>(got) != count)
        fail<ShapeError>(std::string(what) + " of a dataset", std::to_string(count), std::to_string(got));
    };
    if (!label_offsets.empty())
      expect("label_offsets", size() + 1, label_offsets.size());
    else if (!labels.empty())
      expect("labels", size(), labels.size());
    if (static_cast<Index>(targets.size()) != outputs() * size())
      fail<ShapeError>("targets of a dataset", "as many for each of the " + std::to_string(size()) + " examples",
                       std::to_string(targets.size()));
    if (static_cast<Index>(pooled.size()) != pooled_width() * size())
      fail<ShapeError>("pooled of a dataset", "as many numbers for each of the " + std::to_string(size()) + " examples",
                       std::to_string(pooled.size()));
  }

  /// Appends an example without anything to predict.
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

/// The named examples as a dataset of their own, in the order named. \throws ShapeError
inline Dataset subset(const Dataset& data, std::span<const Index> examples) {
  data.check_answers();
  Dataset part;
  part.pooled_by = data.pooled_by;
  if (!data.label_offsets.empty()) part.label_offsets.push_back(0);
  const Index outputs = data.outputs(), width = data.pooled_width();
  for (const Index example : examples) {
    if (example < 0 || example >= data.size())
      fail<ShapeError>("subset", "an example in [0, " + std::to_string(data.size()) + ")", std::to_string(example));
    const auto begin = static_cast<std::size_t>(data.offsets[static_cast<std::size_t>(example)]);
    const auto length = static_cast<std::size_t>(data.length(example));
    part.append(std::span(data.tokens).subspan(begin, length), std::span(data.token_types).subspan(begin, length));
    const auto labels = data.labels_of(example);
    part.labels.insert(part.labels.end(), labels.begin(), labels.end());
    if (!data.label_offsets.empty()) part.label_offsets.push_back(static_cast<Index>(part.labels.size()));
    const auto targets = data.targets.begin() + example * outputs;
    part.targets.insert(part.targets.end(), targets, targets + outputs);
    const auto pooled = data.pooled.begin() + example * width;
    part.pooled.insert(part.pooled.end(), pooled, pooled + width);
  }
  return part;
}

/// Sequences packed row after row: sequence s owns rows [cu_seqlens[s], cu_seqlens[s + 1]).
struct PackedBatch {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> token_types;
  std::vector<std::int32_t> cu_seqlens = {0};
  std::vector<std::int32_t> labels;  ///< as a Dataset's, of these sequences
  std::vector<Index> label_offsets;
  std::vector<double> targets;
  std::vector<float> pooled;
  std::shared_ptr<const void> pooled_by;
  std::vector<Segment> segments;  ///< in order, covering every sequence

  Index sequences() const { return static_cast<Index>(cu_seqlens.size()) - 1; }
};

/// Packs the named examples, in the order named, as one segment.
inline void pack(const Dataset& data, std::span<const Index> examples, PackedBatch& batch) {
  batch.tokens.clear();
  batch.token_types.clear();
  batch.cu_seqlens.assign(1, 0);
  batch.labels.clear();
  data.check_answers();
  batch.label_offsets.assign(data.label_offsets.empty() ? 0 : 1, 0);
  batch.targets.clear();
  batch.pooled.clear();
  batch.pooled_by = data.pooled_by;
  const Index outputs = data.outputs(), width = data.pooled_width();
  for (const Index example : examples) {
    if (example < 0 || example >= data.size())
      fail<ShapeError>("pack", "an example in [0, " + std::to_string(data.size()) + ")", std::to_string(example));
    const auto begin = data.offsets[static_cast<std::size_t>(example)];
    const auto end = data.offsets[static_cast<std::size_t>(example) + 1];
    batch.tokens.insert(batch.tokens.end(), data.tokens.begin() + begin, data.tokens.begin() + end);
    batch.token_types.insert(batch.token_types.end(), data.token_types.begin() + begin, data.token_types.begin() + end);
    batch.cu_seqlens.push_back(static_cast<std::int32_t>(batch.tokens.size()));
    const auto labels = data.labels_of(example);
    batch.labels.insert(batch.labels.end(), labels.begin(), labels.end());
    if (!data.label_offsets.empty()) batch.label_offsets.push_back(static_cast<Index>(batch.labels.size()));
    const auto targets = data.targets.begin() + example * outputs;
    batch.targets.insert(batch.targets.end(), targets, targets + outputs);
    const auto pooled = data.pooled.begin() + example * width;
    batch.pooled.insert(batch.pooled.end(), pooled, pooled + width);
  }
  batch.segments.assign(1, Segment{0, static_cast<std::int32_t>(batch.sequences()), 0});
}

}  // namespace fedlora
