// SPDX-License-Identifier: Apache-2.0
// The models and batches that the benchmarks share: encoders with random weights in memory, and the embedded
// stories260K.
#pragma once

#include <chrono>
#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/fedlora.hpp"
#if defined(FEDLORA_HAVE_ONEDNN)
#include "fedlora/backend/cpu/gemm_onednn.hpp"
#endif
#if defined(FEDLORA_HAVE_EMBEDDED)
#include "embedded_data.hpp"
#endif

namespace fedlora::benchmarks {

#if defined(FEDLORA_HAVE_ONEDNN)
using BestGemm = OneDnnGemm;
#else
using BestGemm = EigenGemm;
#endif
using B = CpuBackend<float, BestGemm>;

/// The tensors of a BERT of `layers` layers, random, named as transformers names them.
inline std::map<std::string, TensorView> random_tensors(Index layers, Index hidden, Index vocab) {
  std::map<std::string, TensorView> tensors;
  const auto add = [&](const std::string& name, std::vector<Index> shape, float mean, float deviation) {
    TensorView tensor{name, Dtype::f32, std::move(shape), {}, nullptr, "random"};
    auto values = std::make_shared<std::vector<float>>(static_cast<std::size_t>(tensor.size()));
    RandomSequence draws(derive_key(7, Purpose::user, tensors.size()));
    for (float& value : *values) value = mean + deviation * static_cast<float>(2 * draws.uniform() - 1);
    tensor.bytes = std::as_bytes(std::span(*values));
    tensor.owner = std::move(values);
    tensors.emplace(name, std::move(tensor));
  };
  const auto linear = [&](const std::string& name, Index out, Index in) {
    add(name + ".weight", {out, in}, 0.0f, 0.03f);
    add(name + ".bias", {out}, 0.0f, 0.03f);
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {hidden}, 1.0f, 0.1f);
    add(name + ".bias", {hidden}, 0.0f, 0.1f);
  };
  add("embeddings.word_embeddings.weight", {vocab, hidden}, 0.0f, 0.03f);
  add("embeddings.position_embeddings.weight", {512, hidden}, 0.0f, 0.03f);
  add("embeddings.token_type_embeddings.weight", {2, hidden}, 0.0f, 0.03f);
  norm("embeddings.LayerNorm");
  for (Index layer = 0; layer < layers; ++layer) {
    const std::string prefix = "encoder.layer." + std::to_string(layer) + ".";
    for (const char* name :
         {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"})
      linear(prefix + name, hidden, hidden);
    linear(prefix + "intermediate.dense", 4 * hidden, hidden);
    linear(prefix + "output.dense", hidden, 4 * hidden);
    norm(prefix + "attention.output.LayerNorm");
    norm(prefix + "output.LayerNorm");
  }
  linear("pooler.dense", hidden, hidden);
  return tensors;
}

/// That BERT with BERT's vocabulary, from memory.
template <class Backend = B>
Pretrained<Bert, Backend> random_encoder(Index layers, Index hidden, const Backend& backend = {}) {
  ModelConfig config;
  config.vocab_size = 30522;
  config.hidden_size = hidden;
  config.layers = layers;
  config.heads = config.kv_heads = 12;
  config.head_dim = hidden / 12;
  config.intermediate_size = 4 * hidden;
  config.max_positions = 512;
  config.token_types = 2;
  const std::map<std::string, TensorView> tensors = random_tensors(layers, hidden, config.vocab_size);
  WeightLoader<Backend> load(
      backend,
      [&](const std::string& name) {
        const auto found = tensors.find(name);
        return found == tensors.end() ? nullptr : &found->second;
      },
      "random", "bert.");
  Pretrained<Bert, Backend> base;
  base.backend = backend;
  base.name = "random";
  base.transformer = std::make_shared<const Transformer<Bert, Backend>>(config, load);
  base.head.emplace("bert.pooler.dense.weight", load.optional("pooler.dense.weight", {hidden, hidden}));
  base.head.emplace("bert.pooler.dense.bias", load.optional("pooler.dense.bias", {hidden}));
  return base;
}

/// Sequences of random tokens.
inline Dataset random_dataset(const std::vector<Index>& lengths, Index vocab, Index labels) {
  Dataset data;
  RandomSequence draws(derive_key(8, Purpose::user));
  for (const Index length : lengths) {
    std::vector<std::int32_t> ids;
    for (Index i = 0; i < length; ++i)
      ids.push_back(static_cast<std::int32_t>(draws.below(static_cast<std::uint64_t>(vocab))));
    data.append(ids, std::vector<std::int32_t>(ids.size(), 0));
    data.labels.push_back(static_cast<std::int32_t>(draws.below(static_cast<std::uint64_t>(labels))));
  }
  return data;
}

/// Lengths in tokens of SST-2's first training sentences, [CLS] and [SEP] included.
inline std::vector<Index> sst2_lengths() {
  std::ifstream in(FEDLORA_BENCHMARK_DIR "/sst2_lengths.txt");
  std::vector<Index> lengths;
  for (Index length; in >> length;) lengths.push_back(length);
  if (lengths.empty()) throw IoError("cannot read " FEDLORA_BENCHMARK_DIR "/sst2_lengths.txt");
  return lengths;
}

#if defined(FEDLORA_HAVE_EMBEDDED)
inline Bytes embedded_bytes(const std::string& name) {
  return {examples::embedded_file(name), nullptr, "embedded:" + name};
}

inline Pretrained<Llama, B> stories() {
  std::map<std::string, Bytes> files;
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"})
    files.emplace(name, embedded_bytes(name));
  return load_pretrained<Llama>(B{}, FileSet::memory("embedded:stories260K", std::move(files)));
}

inline Table utterances() {
  Table all = read_table(embedded_bytes("domain_train.tsv"), {.text = {"text"}, .label = "domain"});
  std::vector<Index> rows;
  for (Index i = 0; i < 512; ++i) rows.push_back(97 * i % all.size());
  return all.select(rows);
}
#endif

inline LoraConfig query_value() { return {.rank = 8, .alpha = 16, .target_modules = {"query", "value"}}; }

/// Batches of `size` consecutive examples.
inline std::vector<std::vector<Index>> batches_of(const Dataset& data, Index size) {
  std::vector<std::vector<Index>> batches;
  for (Index start = 0; start + size <= data.size(); start += size) {
    batches.emplace_back();
    for (Index i = start; i < start + size; ++i) batches.back().push_back(i);
  }
  return batches;
}

/// One client in training: parameters, moments, gradient, workspace.
template <class Model>
class Trainer {
 public:
  Trainer(const Model& model, const Dataset& data, Index batch)
      : model_(model),
        data_(data),
        batches_(batches_of(data, batch)),
        adapter_(model.initial_adapter(1)),
        gradient_(adapter_.values().size()),
        workspace_(model.backend()) {}

  Index batches() const { return static_cast<Index>(batches_.size()); }

  void step(Index number) {
    const auto& examples = batches_[static_cast<std::size_t>(number % batches())];
    std::fill(gradient_.begin(), gradient_.end(), 0.0f);
    model_.accumulate_gradient(workspace_, data_, examples, adapter_.values(), gradient_,
                               1.0 / static_cast<double>(examples.size()), {1, 1, 0, number, 0});
    optimizer_.step(state_, adapter_.values(), gradient_, optimizer_.lr);
  }

 private:
  const Model& model_;
  const Dataset& data_;
  std::vector<std::vector<Index>> batches_;
  Adapter<float> adapter_;
  std::vector<float> gradient_;
  typename Model::Workspace workspace_;
  AdamW optimizer_{.lr = 1e-4};
  AdamW::State<float> state_;
};

}  // namespace fedlora::benchmarks
