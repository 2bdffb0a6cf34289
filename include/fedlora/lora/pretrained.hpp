// SPDX-License-Identifier: Apache-2.0
// A checkpoint in memory: the frozen base, its tokenizer, and the head tensors that came with it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fedlora/backend/concepts.hpp"
#include "fedlora/data/tokenizer.hpp"
#include "fedlora/lora/adapter.hpp"
#include "fedlora/nn/transformer.hpp"

namespace fedlora {

/// Loaded once, shared by every model, client and thread; copies share the same weights.
template <Architecture Arch, Backend B>
struct Pretrained {
  B backend;
  std::shared_ptr<const Transformer<Arch, B>> transformer;
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null when the directory has none
  std::map<std::string, FrozenMatrix> head;    ///< by whole name: "bert.pooler.dense.weight", "classifier.bias"
  FrozenMatrix lm_head;                        ///< (vocab, hidden); the word embeddings when they are tied; empty: none
  std::string name;                            ///< the directory or repository it came from
  std::string digest;                          ///< of the base's weights (hf/base_digest.hpp); empty: not known
  AdapterContext context;                      ///< of the adapter that was merged into it, if one was
  std::vector<std::string> warnings;           ///< what a person should be told

  const ModelConfig& config() const { return transformer->config(); }
};

}  // namespace fedlora
