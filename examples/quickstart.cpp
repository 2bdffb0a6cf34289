// SPDX-License-Identifier: Apache-2.0
// A federation in thirty lines: fedlora-quickstart MODEL TRAIN.csv TEST.csv (a BERT; columns `text` and `label`)
#include <fedlora/fedlora.hpp>
#include <iostream>
namespace fl = fedlora;
using B = fl::CpuBackend<float>;

int main(int argc, char** argv) try {
  if (argc != 4) return std::cerr << "usage: fedlora-quickstart MODEL TRAIN.csv TEST.csv\n", 2;
  const fl::TableColumns columns{.text = {"text"}, .label = "label"};
  const auto train = fl::read_table(argv[2], columns), test = fl::read_table(argv[3], columns);
  const auto labels = train.label_names();
  const auto shards = fl::partition_dirichlet(train.label_ids(labels), {.clients = 20, .alpha = 0.3, .seed = 1});

  const auto base = fl::load_pretrained<fl::Bert>(B(), argv[1]);  // frozen: loaded once, shared by all
  const fl::LoraConfig lora{.rank = 8, .alpha = 16, .dropout = 0.1, .target_modules = {"query", "value"}};
  const fl::SequenceClassifier model(base, {.labels = labels}, lora);
  const auto clients = fl::make_clients(model, train, shards, fl::AdamW{.lr = 1e-3});
  const auto test_data = model.encode(test);

  auto global = model.initial_adapter(/*seed=*/42);
  const fl::FedAvg aggregate;
  fl::CommunicationLedger ledger;
  for (fl::Index round = 1; round <= 20; ++round) {
    const auto cohort = fl::sample_uniform(clients, {.fraction = 0.25, .seed = 42, .round = round});
    const auto updates = fl::train(cohort, global, {.epochs = 1, .batch_size = 8}, ledger);  // clients in parallel
    global = aggregate(global, updates);
    const auto result = model.evaluate(global, test_data);
    std::cout << "round " << round << ": accuracy " << result.accuracy << ", loss " << result.loss << ", bytes up "
              << ledger.total().up.bytes.total() << std::endl;
  }
  fl::save_peft(global, "quickstart-adapter");  // loads in PEFT
} catch (const std::exception& error) {
  return std::cerr << error.what() << '\n', 1;
}
