// SPDX-License-Identifier: Apache-2.0
// The last stage of encoding: cutting to length, and the special tokens around one text or two.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Token ids, and for each the number of its text (BERT's token_type_ids).
struct Encoding {
  std::vector<std::int32_t> ids, token_types;
};

namespace detail {

/// One part of a template: a text, or special tokens.
struct TemplatePart {
  int sequence = -1;              ///< 0: the first text, 1: the second, -1: special tokens
  std::vector<std::int32_t> ids;  ///< the special tokens
  std::int32_t token_type = 0;
};
struct TemplateProcessor {
  std::vector<TemplatePart> single, pair;
};
/// [CLS] A [SEP], and for a second text B [SEP].
struct BertProcessor {
  std::int32_t cls = 0, sep = 0;
};
/// <s> A </s>, and for a second text </s> B </s>; every token type is 0.
struct RobertaProcessor {
  std::int32_t cls = 0, sep = 0;
};

using PostProcessor = std::variant<TemplateProcessor, BertProcessor, RobertaProcessor>;

inline Index special_token_count(const PostProcessor& processor, bool pair) {
  if (const auto* parts = std::get_if<TemplateProcessor>(&processor)) {
    Index count = 0;
    for (const TemplatePart& part : pair ? parts->pair : parts->single) count += static_cast<Index>(part.ids.size());
    return count;
  }
  return std::holds_alternative<BertProcessor>(processor) ? (pair ? 3 : 2) : (pair ? 4 : 2);
}

/// Rewrites the parts of an encoding: at first one per text.
inline void post_process(const PostProcessor& processor, std::vector<Encoding>& parts, bool special_tokens) {
  const auto insert = [](Encoding& part, bool front, std::int32_t id, std::int32_t type) {
    part.ids.insert(front ? part.ids.begin() : part.ids.end(), id);
    part.token_types.insert(front ? part.token_types.begin() : part.token_types.end(), type);
  };
  const auto apply = [&](const auto& kind) {
    using Kind = std::decay_t<decltype(kind)>;
    if constexpr (std::is_same_v<Kind, TemplateProcessor>) {
      std::vector<Encoding> out;
      for (const TemplatePart& part : parts.size() > 1 ? kind.pair : kind.single) {
        if (part.sequence >= 0) {
          Encoding text = parts[static_cast<std::size_t>(part.sequence)];
          std::fill(text.token_types.begin(), text.token_types.end(), part.token_type);
          out.push_back(std::move(text));
        } else if (special_tokens) {
          out.push_back({part.ids, std::vector<std::int32_t>(part.ids.size(), part.token_type)});
        }
      }
      parts = std::move(out);
    } else {
      constexpr bool roberta = std::is_same_v<Kind, RobertaProcessor>;
      for (std::size_t i = 0; i < parts.size(); ++i) {
        if constexpr (roberta) std::fill(parts[i].token_types.begin(), parts[i].token_types.end(), 0);
        if (!special_tokens) continue;
        const std::int32_t type = roberta || i == 0 ? 0 : 1;
        if (i == 0 || roberta) insert(parts[i], true, i == 0 ? kind.cls : kind.sep, type);
        insert(parts[i], false, kind.sep, type);
      }
    }
  };
  std::visit(apply, processor);
}

/// How many tokens of two texts stay when both together may have `limit`: what Hugging Face calls `longest_first`. The
/// longer gives first; when both must give, the first text (the second, if the first is longer) gets half of the limit,
/// rounded down.
inline std::pair<Index, Index> truncated_lengths(Index first, Index second, Index limit) {
  if (first + second <= limit) return {first, second};
  const bool swapped = first > second;
  Index shorter = std::min(first, second);
  Index longer = shorter > limit ? shorter : std::max(shorter, limit - shorter);
  if (shorter + longer > limit) {
    shorter = limit / 2;
    longer = shorter + limit % 2;
  }
  return swapped ? std::pair(longer, shorter) : std::pair(shorter, longer);
}

}  // namespace detail
}  // namespace fedlora
