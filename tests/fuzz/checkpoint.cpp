// SPDX-License-Identifier: Apache-2.0
// Whole checkpoints: config.json, safetensors in one file or in shards, a tokenizer. What loads can be computed with.
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"

namespace fedlora::fuzz {

/// The last hidden states of a few tokens.
template <class Arch, class B>
void run_base(const Pretrained<Arch, B>& base) {
  const ModelConfig& config = base.config();
  const Index length = std::min<Index>(config.max_positions, 3);
  std::vector<std::int32_t> tokens, types, ends = {0, static_cast<std::int32_t>(length)};
  for (Index i = 0; i < length; ++i) {
    tokens.push_back(static_cast<std::int32_t>((config.vocab_size - 1) * i / 2));
    types.push_back(static_cast<std::int32_t>(config.token_types > 1 ? i % 2 : 0));
  }
  base.transformer->check(tokens, types, ends);
  TransformerWorkspace<B> workspace(base.backend);
  const Segment everything{0, 1, 0};
  workspace.tables.build(ends, {&everything, 1}, {});
  SlotTerms<typename B::Element> slot;
  slot.layers.resize(static_cast<std::size_t>(config.layers) * layer_linears);
  PassOptions<typename B::Element> options;
  options.slots = {&slot, 1};
  base.transformer->prepare(tokens, types, options, workspace);
  const auto last = base.transformer->forward(options, workspace);
  require(last.rows == length && last.cols == config.hidden_size, "a row of states for every token");
}

const Target checkpoint_target("checkpoint", [](std::string_view input) {
  const FileSet files = file_set(files_of(input));
  const auto checkpoint = unless_refused("fuzz", [&] { return Checkpoint(files); });
  if (checkpoint)
    for (const std::string& name : checkpoint->names())
      require(checkpoint->find(name) != nullptr && checkpoint->where(name).starts_with("fuzz/"),
              "a tensor has a place");
  unless_refused("fuzz", [&] {
    return with_pretrained<Families<Bert, Llama>>(CpuBackend<float>(), files, [](const auto& base) {
      for (const std::string& warning : base.warnings) require(!warning.empty(), "a warning says something");
      run_base(base);
      return true;
    });
  });
});

}  // namespace fedlora::fuzz
