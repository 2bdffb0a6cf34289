// SPDX-License-Identifier: Apache-2.0
// A federation over a real Transformer, dropouts on: the same bits on any number of threads and after a resume.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/fed/aggregate.hpp"
#include "fedlora/fed/evaluate.hpp"
#include "fedlora/fed/run_state.hpp"
#include "fedlora/fed/train.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/lora/language_model.hpp"
#include "fedlora/optim/adamw.hpp"

using namespace fedlora;

namespace {

using B = CpuBackend<float, EigenGemm>;

static_assert(FederatedModel<SequenceClassifier<Bert, B>> && FederatedModel<LanguageModel<Llama, B>>);

template <class Arch>
auto tiny_base(const std::string& family) {
  return load_pretrained<Arch>(B{}, FileSet::directory(std::string(FEDLORA_TEST_DIR) + "/golden/models/" + family));
}

Dataset random_texts(Index examples, bool labels) {
  Dataset data;
  RandomSequence random(derive_key(3, Purpose::user));
  for (Index e = 0; e < examples; ++e) {
    std::vector<std::int32_t> tokens(2 + random.below(9));
    for (auto& token : tokens) token = static_cast<std::int32_t>(5 + random.below(30));
    data.append(tokens, std::vector<std::int32_t>(tokens.size(), 0));
    if (labels) data.labels.push_back(static_cast<std::int32_t>(random.below(3)));
  }
  return data;
}

std::vector<std::vector<Index>> uneven_partition() {
  return {{0, 1, 2}, {3, 4, 5, 6, 7, 8, 9, 10, 11}, {12}, {13, 14, 15, 16, 17}};
}

template <class Model>
std::string run(const Model& model, const Dataset& data, int threads, Index resume_after) {
  const auto clients = make_clients(model, data, uneven_partition(), AdamW{.lr = 5e-3});
  LocalPlan plan{.epochs = 2,
                 .batch_size = 4,
                 .accumulation = 2,
                 .clip_norm = 1,
                 .mu = 0.01,
                 .threads = threads,
                 .keep_optimizer_state = true};
  RunState<float> state;
  state.seed = 11;
  state.adapters = {model.initial_adapter(5)};
  for (Index round = 1; round <= 3; ++round) {
    const auto cohort = sample_uniform(clients, {.fraction = 0.75, .seed = state.seed, .round = round});
    const auto updates = train(cohort, state.adapters[0], plan, state.ledger, {.store = &state.clients});
    state.adapters[0] = FedAvg{}(state.adapters[0], updates);
    state.round = round;
    if (round == resume_after)
      state = parse_run_state<float>(bytes_of(run_state_bytes(state), "state"), model.layout());
  }
  return run_state_bytes(state);
}

template <class Model>
void check(const Model& model, const Dataset& data) {
  const std::string reference = run(model, data, 1, 0);
  CHECK(run(model, data, 1, 1) == reference);
  for (const int threads : {2, 3, 4, 9}) CHECK(run(model, data, threads, threads - 1) == reference);
}

}  // namespace

TEST_CASE("a classifier over BERT, with all dropouts") {
  LoraConfig lora;
  lora.rank = 2;
  lora.dropout = 0.2;
  lora.target_modules = {"query", "value"};
  const SequenceClassifier<Bert, B> model(tiny_base<Bert>("bert"), {.labels = {"x", "y", "z"}, .base_dropout = 0.1},
                                          lora);
  check(model, random_texts(18, true));
}

TEST_CASE("next-token language modelling over Llama") {
  LoraConfig lora;
  lora.rank = 2;
  lora.dropout = 0.2;
  lora.target_modules = {"all-linear"};
  const LanguageModel<Llama, B> model(tiny_base<Llama>("llama"), {}, lora);
  check(model, random_texts(18, false));
}

TEST_CASE("the mean loss of a language model is over predicted tokens, and training lowers it") {
  LoraConfig lora;
  lora.rank = 4;
  lora.target_modules = {"all-linear"};
  const LanguageModel<Llama, B> model(tiny_base<Llama>("llama"), {}, lora);
  const Dataset data = random_texts(18, false);
  const auto clients = make_clients(model, data, uneven_partition(), AdamW{.lr = 1e-2});
  const auto cohort = all_clients(clients, 1, 1);
  const auto updates = train(cohort, model.initial_adapter(5), {.epochs = 15, .threads = 2});
  for (std::size_t k = 0; k < updates.size(); ++k) {
    Index predicted = 0;
    for (const Index example : clients[k].examples) predicted += data.length(example) - 1;
    CHECK(updates[k].metrics.loss_count == 15 * predicted);
    const Dataset own = subset(data, clients[k].examples);
    CHECK(model.evaluate(updates[k].adapter, own, 1).loss < model.evaluate(model.initial_adapter(5), own, 1).loss);
  }
}
