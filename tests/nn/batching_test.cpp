// SPDX-License-Identifier: Apache-2.0
// Several clients in one batch are each what they are alone, and the last block may compute only the rows that the head
// reads.
#include <doctest/doctest.h>

#include "batching.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE("clients batched together equal clients one by one", Arch, Bert, Llama) {
  const Batching<Arch> model;
  const auto clients = different_clients<Arch>();
  for (const BaseDropouts& dropouts : {BaseDropouts{}, BaseDropouts{0.2, 0.3, 0.4}})
    for (const bool pooled_only : {true, false}) {
      CAPTURE(dropouts.hidden);
      CAPTURE(pooled_only);
      typename Batching<Arch>::Workspace workspace{CpuBackend<double>{}};
      const PassResult together = model.run(clients, dropouts, pooled_only, workspace);
      std::size_t first = 0;
      for (std::size_t c = 0; c < clients.size(); ++c) {
        CAPTURE(c);
        typename Batching<Arch>::Workspace own{CpuBackend<double>{}};
        const PassResult alone = model.run({clients[c]}, dropouts, pooled_only, own);
        const std::vector<double> mine(
            together.logits.begin() + static_cast<std::ptrdiff_t>(first),
            together.logits.begin() + static_cast<std::ptrdiff_t>(first + alone.logits.size()));
        first += alone.logits.size();
        CHECK(difference(mine, alone.logits) <= 1e-13);
        CHECK(difference(together.gradients[c], alone.gradients[0]) <= 1e-13);
      }
      CHECK(first == together.logits.size());
    }
}

TEST_CASE_TEMPLATE("the last block on the head's rows alone equals the last block on all rows", Arch, Bert, Llama) {
  const Batching<Arch> model;
  for (const BatchClient& client : different_clients<Arch>())
    for (const BaseDropouts& dropouts : {BaseDropouts{}, BaseDropouts{0.2, 0.3, 0.4}}) {
      typename Batching<Arch>::Workspace workspace{CpuBackend<double>{}};
      BatchClient without = client;
      // The adapter's dropout is addressed by row too, so it agrees as well.
      const PassResult pooled = model.run({without}, dropouts, true, workspace);
      const PassResult whole = model.run({without}, dropouts, false, workspace);
      CHECK(difference(pooled.logits, whole.logits) <= 1e-13);
      CHECK(difference(pooled.gradients[0], whole.gradients[0]) <= 1e-12);
    }
}

TEST_CASE_TEMPLATE("a workspace that has seen other batches gives the same bits", Arch, Bert, Llama) {
  const Batching<Arch> model;
  const auto clients = different_clients<Arch>();
  const BaseDropouts dropouts{0.2, 0.3, 0.4};
  typename Batching<Arch>::Workspace fresh{CpuBackend<double>{}}, used{CpuBackend<double>{}};
  const PassResult expected = model.run({clients[0]}, dropouts, true, fresh);
  std::vector<BatchClient> many = clients;
  many.push_back({clients[0].lora, {12, 12, 12, 12, 12, 12}, {1, 1, 1, 1, 1}});
  model.run({clients[3]}, dropouts, true, used);
  model.run(many, dropouts, false, used);
  for (int again = 0; again < 2; ++again) {
    const PassResult got = model.run({clients[0]}, dropouts, true, used);
    CHECK(got.logits == expected.logits);
    CHECK(got.gradients[0] == expected.gradients[0]);
  }
}

TEST_CASE_TEMPLATE("masks change with every part of the address, and only with it", Arch, Bert, Llama) {
  const Batching<Arch> model;
  const BatchClient client = different_clients<Arch>()[0];
  const auto logits = [&](const StepAddress& address, const BaseDropouts& dropouts, double adapter_dropout) {
    BatchClient here = client;
    here.address = address;
    here.lora.dropout = adapter_dropout;
    typename Batching<Arch>::Workspace workspace{CpuBackend<double>{}};
    return model.run({here}, dropouts, true, workspace).logits;
  };
  const StepAddress at{1, 2, 11, 3, 4};
  const BaseDropouts kinds[] = {{0.3, 0, 0}, {0, 0.3, 0}, {0, 0, 0.3}, {0, 0, 0}};
  for (std::size_t k = 0; k < 4; ++k) {
    if (k == 2 && !model.layers.back().dropout_before) continue;
    CAPTURE(k);
    const double adapter = k == 3 ? 0.3 : 0.0;
    const auto here = logits(at, kinds[k], adapter);
    CHECK(here == logits(at, kinds[k], adapter));
    CHECK(here != logits({2, 2, 11, 3, 4}, kinds[k], adapter));
    CHECK(here != logits({1, 3, 11, 3, 4}, kinds[k], adapter));
    CHECK(here != logits({1, 2, 12, 3, 4}, kinds[k], adapter));
    CHECK(here != logits({1, 2, 11, 4, 4}, kinds[k], adapter));
    CHECK(here != logits({1, 2, 11, 3, 5}, kinds[k], adapter));
    CHECK(here != logits(at, {}, 0.0));
  }
}

TEST_CASE_TEMPLATE("a block keeps what a product made, and nothing that a norm or an activation makes again", Arch,
                   Bert, Llama) {
  const Batching<Arch> model;
  const LoraConfig lora{.rank = 1, .alpha = 2, .target_modules = {"all-linear"}};
  typename Batching<Arch>::Workspace workspace{CpuBackend<double>{}};
  model.run({{lora, std::vector<Index>(8, 12), {1, 2, 11, 0, 0}}}, {}, false, workspace);
  const auto& state = workspace.blocks[1];
  const Index rows = 8 * 12, hidden = 8;
  Index kept = state.q.size() + state.k.size() + state.v.size() + state.z1.size() + state.up.size() + state.gate.size();
  kept += state.context.size();  // for the term of the output projection
  kept += rows * hidden;         // z2, which is a pre-norm block's output
  kept += 2 * 2 * rows;          // statistics
  for (const auto& s : state.s) kept += s.size();
  CHECK(workspace.kept[1].taken - workspace.kept[0].taken == kept);
}

}  // namespace fedlora::tests
