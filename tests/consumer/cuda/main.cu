// SPDX-License-Identifier: Apache-2.0
// The loop of a federation on a CPU and on a GPU, in one file. Where there is no GPU it ends with the error that says so.
#include <cstdio>
#include <fedlora/cuda.cuh>
#include <fedlora/fedlora.hpp>

namespace fl = fedlora;

template <class B>
double accuracy_after_a_round(const B& backend, const char* checkpoint, const char* texts) {
  const fl::Table table = fl::read_table(texts, {.text = {"text"}, .label = "label"});
  const auto base = fl::load_pretrained<fl::Bert>(backend, checkpoint);
  const fl::SequenceClassifier model(base, {.labels = table.label_names()}, fl::LoraConfig{.rank = 8});
  const auto clients = fl::make_clients(model, table, fl::partition_iid(table.size(), {.clients = 2}), fl::AdamW{});
  auto global = model.initial_adapter(1);
  const auto updates = fl::train(fl::sample_uniform(clients, {.fraction = 1, .seed = 1, .round = 1}), global, {});
  return model.evaluate(fl::FedAvg()(global, updates), model.encode(table)).accuracy;
}

int main(int argc, char** argv) try {
  if (argc == 3) std::printf("accuracy %g\n", accuracy_after_a_round(fl::CpuBackend<float>(), argv[1], argv[2]));
  const fl::CudaBackend<fl::Bf16> backend;
  if (argc == 3) std::printf("accuracy %g\n", accuracy_after_a_round(backend, argv[1], argv[2]));
  std::printf("fedlora %s: a GPU\n", fl::version);
} catch (const fl::CudaError& error) {
  std::printf("fedlora %s: %s\n", fl::version, error.what());
}
