// SPDX-License-Identifier: Apache-2.0
// From a table of texts to token ids, and from a data set to evaluation batches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/parallel.hpp"
#include "fedlora/core/utf8.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/data/table.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/nn/config.hpp"

namespace fedlora {

namespace detail {

/// \throws FormatError naming the first token that the embedding has no row for, and the file that numbers it.
inline void check_tokens(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids, Index vocab_size,
                         const std::string& where) {
  const auto beyond = std::find_if(ids.begin(), ids.end(), [&](std::int32_t id) { return id >= vocab_size; });
  if (beyond == ids.end()) return;
  const std::string source = tokenizer.source_of(*beyond);
  fail<FormatError>(
      where,
      "tokens numbered below " + std::to_string(vocab_size) +
          ", the rows of the model's embedding (a checkpoint whose embedding was resized to its tokenizer "
          "has a row for every token)",
      in_quotes(tokenizer.id_to_token(*beyond).value_or("")) + ", which is " + std::to_string(*beyond) +
          (source.empty() ? "" : " by " + source));
}

}  // namespace detail

/// Tokenises every text (and its pair) of a table, in order, on up to `threads` threads, for a model whose embedding
/// has `vocab_size` rows. Labels are the caller's. \throws FormatError naming table and line.
inline Dataset encode_texts(const Tokenizer& tokenizer, const Table& table, Index max_tokens, Index vocab_size,
                            int threads) {
  const auto size = static_cast<std::size_t>(table.size());
  const auto where = [&](std::size_t i) {
    return table.source + ", line " + std::to_string(table.line.empty() ? Index(i) + 1 : table.line[i]);
  };
  std::vector<Encoding> encodings(size);
  constexpr std::size_t chunk = 64;
  parallel_for((size + chunk - 1) / chunk, threads, [&](int, std::size_t part) {
    for (std::size_t i = part * chunk; i < std::min(size, (part + 1) * chunk); ++i) {
      const EncodeOptions options{max_tokens, true};
      try {
        encodings[i] = table.text_pair.empty() ? tokenizer.encode(table.text[i], options)
                                               : tokenizer.encode(table.text[i], table.text_pair[i], options);
      } catch (const Error& error) {
        throw FormatError(where(i) + ": " + error.what());
      }
      detail::check_tokens(tokenizer, encodings[i].ids, vocab_size, where(i));
    }
  });
  Dataset data;
  for (std::size_t i = 0; i < size; ++i) {
    if (encodings[i].ids.empty()) fail<FormatError>(where(i), "a text of at least one token", "none");
    data.append(encodings[i].ids, encodings[i].token_types);
  }
  return data;
}

/// Where evaluation batches begin, and the end: consecutive examples, about 1,024 rows or 64 sequences each.
inline std::vector<Index> evaluation_batches(const Dataset& data) {
  std::vector<Index> starts = {0};
  Index rows = 0;
  for (Index i = 0; i < data.size(); ++i) {
    if (i > starts.back() && (rows + data.length(i) > 1024 || i - starts.back() >= 64)) {
      starts.push_back(i);
      rows = 0;
    }
    rows += data.length(i);
  }
  if (data.size() > 0) starts.push_back(data.size());
  return starts;
}

/// The longest sequence a model will see. \throws ConfigError when it asks for more than the base has positions for.
inline Index checked_max_tokens(Index asked, const ModelConfig& config, const std::string& name) {
  if (asked < 0 || asked > config.max_positions)
    fail<ConfigError>("max_tokens", "1 to " + std::to_string(config.max_positions) + ", the positions of " + name,
                      std::to_string(asked));
  return asked == 0 ? config.max_positions : asked;
}

/// The tokenizer of a loaded checkpoint. \throws ConfigError when it came without one.
template <class P>
const Tokenizer& require_tokenizer(const P& pretrained) {
  if (!pretrained.tokenizer)
    fail<ConfigError>(pretrained.name, "a tokenizer (tokenizer.json, vocab.txt, or vocab.json and merges.txt)", "none");
  return *pretrained.tokenizer;
}

}  // namespace fedlora
