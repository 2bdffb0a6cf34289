// SPDX-License-Identifier: Apache-2.0
// The second stage of a tokenizer: cutting the normalised text into the pieces that the model sees one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "fedlora/data/tokenizer/normalizer.hpp"
#include "fedlora/data/tokenizer/pattern.hpp"
#include "fedlora/data/tokenizer/unicode.hpp"

namespace fedlora::detail {

/// What becomes of the matches of a splitting pattern.
enum class SplitBehavior : std::uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };

struct BertPreTokenizer {};        ///< white space goes, punctuation stands alone
struct WhitespacePreTokenizer {};  ///< `\w+|[^\w\s]+`
struct WhitespaceSplit {};
struct PunctuationSplit {
  SplitBehavior behavior = SplitBehavior::isolated;
};
struct DigitsSplit {
  bool individual = false;
};
struct DelimiterSplit {
  char32_t delimiter = U' ';
};
struct PatternSplit {
  Pattern pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;
};
struct ByteLevelPreTokenizer {
  bool add_prefix_space = false;
  bool use_regex = true;
};
enum class PrependScheme : std::uint8_t { never, first, always };
struct MetaspacePreTokenizer {
  std::string replacement = "\u2581";
  PrependScheme prepend = PrependScheme::always;
  bool split = true;
};

using PreTokenizer =
    std::variant<BertPreTokenizer, WhitespacePreTokenizer, WhitespaceSplit, PunctuationSplit, DigitsSplit,
                 DelimiterSplit, PatternSplit, ByteLevelPreTokenizer, MetaspacePreTokenizer>;

/// A part of PieceText::text, or an added token that was found there.
struct Piece {
  std::size_t begin, end;
  std::int32_t id = -1;  ///< of the added token; -1: text for the model
  bool first = false;    ///< does it begin where the input begins?
};

/// The text and its pieces, in order.
struct PieceText {
  std::string text;
  std::vector<Piece> pieces;

  std::string_view view(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

/// Replaces every piece of text by what `cut(view, emit)` emits (offsets into the view); empty ones are left out.
template <class Cut>
void cut_pieces(PieceText& text, Cut&& cut) {
  std::vector<Piece> out;
  out.reserve(text.pieces.size() + text.text.size() / 4);
  for (const Piece& piece : text.pieces) {
    if (piece.id >= 0) {
      out.push_back(piece);
      continue;
    }
    cut(text.view(piece), [&](std::size_t begin, std::size_t end) {
      if (begin < end) out.push_back({piece.begin + begin, piece.begin + end, -1, piece.first && begin == 0});
    });
  }
  text.pieces = std::move(out);
}

/// Applies a behaviour to the parts of a text that a pattern found.
template <class Emit>
void split_matches(const std::vector<Match>& matches, SplitBehavior behavior, Emit&& emit) {
  switch (behavior) {
    case SplitBehavior::removed:
      for (const Match& m : matches) {
        if (!m.matched) emit(m.begin, m.end);
      }
      return;
    case SplitBehavior::isolated:
      for (const Match& m : matches) emit(m.begin, m.end);
      return;
    case SplitBehavior::merged_with_previous:  // one match joins the text before it; a match after a match stands alone
      for (std::size_t i = 0; i < matches.size(); ++i) {
        const bool joins = !matches[i].matched && i + 1 < matches.size() && matches[i + 1].matched;
        emit(matches[i].begin, matches[joins ? i + 1 : i].end);
        if (joins) ++i;
      }
      return;
    case SplitBehavior::merged_with_next:
      for (std::size_t i = 0; i < matches.size(); ++i) {
        const bool joins = matches[i].matched && i + 1 < matches.size() && !matches[i + 1].matched;
        emit(matches[i].begin, matches[joins ? i + 1 : i].end);
        if (joins) ++i;
      }
      return;
    case SplitBehavior::contiguous:
      for (std::size_t i = 0; i < matches.size();) {
        std::size_t j = i + 1;
        while (j < matches.size() && matches[j].matched == matches[i].matched) ++j;
        emit(matches[i].begin, matches[j - 1].end);
        i = j;
      }
      return;
  }
}

/// The parts of a text by characters: every one for which `matched` holds is a match of its own.
template <class Predicate>
std::vector<Match> match_characters(std::string_view text, Predicate&& matched) {
  std::vector<Match> out;
  std::size_t done = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t begin = i;
    if (!matched(next_code_point(text, i))) continue;
    if (done < begin) out.push_back({done, begin, false});
    out.push_back({begin, i, true});
    done = i;
  }
  if (done < text.size()) out.push_back({done, text.size(), false});
  return out;
}

/// White space goes; among the rest `alone` characters stand alone.
template <class Alone, class Emit>
void split_words(std::string_view text, Alone&& alone, Emit&& emit) {
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t at = i;
    const char32_t c = next_code_point(text, i);
    const bool space = is_space(c);
    if (!space && !alone(c)) continue;
    emit(begin, at);
    if (!space) emit(at, i);
    begin = i;
  }
  emit(begin, text.size());
}

inline void byte_level_pieces(const ByteLevelPreTokenizer& options, PieceText& text) {
  PieceText out;
  out.text.reserve(text.text.size() + text.text.size() / 2);
  out.pieces.reserve(text.pieces.size() + text.text.size() / 4);
  std::string spaced;
  PatternScratch scratch;
  for (const Piece& piece : text.pieces) {
    if (piece.id >= 0) {
      out.pieces.push_back({out.text.size(), out.text.size(), piece.id, false});
      continue;
    }
    std::string_view view = text.view(piece);
    if (options.add_prefix_space && !view.starts_with(' ')) {
      spaced.assign(1, ' ').append(view);
      view = spaced;
    }
    const auto emit = [&](std::size_t begin, std::size_t end) {
      const std::size_t start = out.text.size();
      append_byte_level(out.text, view.substr(begin, end - begin));
      out.pieces.push_back({start, out.text.size(), -1, piece.first && begin == 0});
    };
    if (options.use_regex) {
      gpt2_words().for_each_match(view, scratch, emit);
    } else {
      emit(0, view.size());
    }
  }
  text = std::move(out);
}

inline void metaspace_pieces(const MetaspacePreTokenizer& options, PieceText& text) {
  PieceText out;
  out.text.reserve(text.text.size() + text.text.size() / 2);
  for (const Piece& piece : text.pieces) {
    if (piece.id >= 0) {
      out.pieces.push_back({out.text.size(), out.text.size(), piece.id, false});
      continue;
    }
    const std::string_view view = text.view(piece);
    std::size_t begin = out.text.size();
    bool first = piece.first;
    const bool marked = view.starts_with(' ') || view.starts_with(options.replacement);
    if (!marked &&
        (options.prepend == PrependScheme::always || (options.prepend == PrependScheme::first && piece.first)))
      out.text.append(options.replacement);
    const auto close = [&] {  // every marker begins a piece
      if (out.text.size() > begin) out.pieces.push_back({begin, out.text.size(), -1, std::exchange(first, false)});
      begin = out.text.size();
    };
    for (std::size_t i = 0; i < view.size();) {
      const std::size_t length = utf8_length(view[i]);
      const std::string_view character = view.substr(i, length);
      const bool marker = character == " " || character == options.replacement;
      if (marker && options.split) close();
      out.text.append(marker ? std::string_view(options.replacement) : character);
      i += length;
    }
    close();
  }
  text = std::move(out);
}

/// Cuts the pieces of `text` further.
inline void pre_tokenize(const PreTokenizer& pre_tokenizer, PieceText& text) {
  const auto apply = [&](const auto& kind) {
    using Kind = std::decay_t<decltype(kind)>;
    if constexpr (std::is_same_v<Kind, BertPreTokenizer>) {
      cut_pieces(text, [](std::string_view view, auto&& emit) { split_words(view, is_punctuation, emit); });
    } else if constexpr (std::is_same_v<Kind, WhitespaceSplit>) {
      cut_pieces(text, [](std::string_view view, auto&& emit) {
        split_words(
            view, [](char32_t) { return false; }, emit);
      });
    } else if constexpr (std::is_same_v<Kind, WhitespacePreTokenizer>) {
      cut_pieces(text, [](std::string_view view, auto&& emit) {
        const auto kind_of = [](char32_t c) { return is_word(c) ? 2 : is_space(c) ? 0 : 1; };
        std::size_t begin = 0;
        int current = 0;
        for (std::size_t i = 0; i < view.size();) {
          const std::size_t at = i;
          const int next = kind_of(next_code_point(view, i));
          if (next == current) continue;
          if (current != 0) emit(begin, at);
          begin = at;
          current = next;
        }
        if (current != 0) emit(begin, view.size());
      });
    } else if constexpr (std::is_same_v<Kind, PunctuationSplit>) {
      cut_pieces(text, [&](std::string_view view, auto&& emit) {
        split_matches(match_characters(view, is_punctuation), kind.behavior, emit);
      });
    } else if constexpr (std::is_same_v<Kind, DigitsSplit>) {
      const auto behavior = kind.individual ? SplitBehavior::isolated : SplitBehavior::contiguous;
      cut_pieces(text, [&](std::string_view view, auto&& emit) {
        split_matches(match_characters(view, is_numeric), behavior, emit);
      });
    } else if constexpr (std::is_same_v<Kind, DelimiterSplit>) {
      cut_pieces(text, [&](std::string_view view, auto&& emit) {
        split_matches(match_characters(view, [&](char32_t c) { return c == kind.delimiter; }), SplitBehavior::removed,
                      emit);
      });
    } else if constexpr (std::is_same_v<Kind, PatternSplit>) {
      PatternScratch scratch;
      cut_pieces(text, [&](std::string_view view, auto&& emit) {
        std::vector<Match> matches = kind.pattern.find(view, scratch);
        for (Match& m : matches) m.matched = m.matched != kind.invert;
        split_matches(matches, kind.behavior, emit);
      });
    } else if constexpr (std::is_same_v<Kind, ByteLevelPreTokenizer>) {
      byte_level_pieces(kind, text);
    } else {
      static_assert(std::is_same_v<Kind, MetaspacePreTokenizer>);
      metaspace_pieces(kind, text);
    }
  };
  std::visit(apply, pre_tokenizer);
}

}  // namespace fedlora::detail
