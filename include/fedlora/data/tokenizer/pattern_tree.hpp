// SPDX-License-Identifier: Apache-2.0
// A regular expression as a tree: what pattern_syntax.hpp reads and pattern_program.hpp compiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "fedlora/data/tokenizer/character_set.hpp"

namespace fedlora::detail {

/// A part of a regular expression.
struct ExpressionNode {
  enum class Kind : std::uint8_t { sequence, alternatives, characters, repeat, atomic, look, text_start, text_end };
  static constexpr std::uint32_t unlimited = std::numeric_limits<std::uint32_t>::max();

  Kind kind = Kind::sequence;
  bool lazy = false;                  ///< of a repeat: as few as possible first
  bool behind = false;                ///< of a look: at what ends here, not at what begins here
  bool negative = false;              ///< of a look: is it not there?
  std::uint32_t set = 0;              ///< of characters: which of the expression's sets
  std::uint32_t least = 1, most = 1;  ///< of a repeat
  std::vector<ExpressionNode> parts;  ///< of repeat, atomic and look: one
};

/// May it match nothing?
inline bool can_be_empty(const ExpressionNode& node) {
  using Kind = ExpressionNode::Kind;
  switch (node.kind) {
    case Kind::characters:
      return false;
    case Kind::alternatives:
      return std::any_of(node.parts.begin(), node.parts.end(), can_be_empty);
    case Kind::repeat:
      return node.least == 0 || can_be_empty(node.parts[0]);
    case Kind::look:
      return true;
    default:
      return std::all_of(node.parts.begin(), node.parts.end(), can_be_empty);
  }
}

/// Does it match nothing only after every other way was tried?
inline bool is_empty_last(const ExpressionNode& node) {
  using Kind = ExpressionNode::Kind;
  if (!can_be_empty(node) || node.kind == Kind::look) return true;
  if (node.kind == Kind::repeat && node.lazy) return false;
  if (node.kind == Kind::alternatives && std::any_of(node.parts.begin(), node.parts.end() - 1, can_be_empty))
    return false;
  return std::all_of(node.parts.begin(), node.parts.end(), is_empty_last);
}

/// How many characters it matches at least and at most.
inline std::pair<std::uint64_t, std::uint64_t> lengths(const ExpressionNode& node) {
  using Kind = ExpressionNode::Kind;
  constexpr std::uint64_t most = std::uint64_t{1} << 40;
  std::uint64_t shortest = 0, longest = 0;
  switch (node.kind) {
    case Kind::characters:
      return {1, 1};
    case Kind::alternatives:
      shortest = most;
      for (const ExpressionNode& part : node.parts) {
        const auto [low, high] = lengths(part);
        shortest = std::min(shortest, low);
        longest = std::max(longest, high);
      }
      break;
    case Kind::repeat: {
      const auto [low, high] = lengths(node.parts[0]);
      shortest = low * node.least;
      longest = node.most == ExpressionNode::unlimited && high > 0 ? most : high * node.most;
      break;
    }
    case Kind::look:
      break;
    default:
      for (const ExpressionNode& part : node.parts) {
        const auto [low, high] = lengths(part);
        shortest += low;
        longest += high;
      }
  }
  return {std::min(shortest, most), std::min(longest, most)};
}

/// A regular expression.
struct Expression {
  ExpressionNode root;
  std::vector<CharacterSet> sets;  ///< each once
};

}  // namespace fedlora::detail
