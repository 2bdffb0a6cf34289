// SPDX-License-Identifier: Apache-2.0
// fedlora-merge: a base and an adapter in, a checkpoint that transformers loads out.
#include <filesystem>
#include <iostream>
#include <string>

#include "command_line.hpp"
#include "fedlora/backend/cpu.hpp"
#include "fedlora/hf/merged_checkpoint.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/hf/pretrained.hpp"
#include "fedlora/lora/classifier.hpp"
#include "fedlora/lora/language_model.hpp"

namespace {

using namespace fedlora;
using namespace fedlora::examples;

/// The adapter's layout over this base, as the model that it was trained in has it.
template <class Arch, class B>
std::shared_ptr<const AdapterLayout> layout_of(const Pretrained<Arch, B>& base, const PeftConfig& adapter,
                                               const std::string& config_file) {
  if (!adapter.task)
    fail<ConfigError>(config_file + ", field task_type", "SEQ_CLS or CAUSAL_LM, to know the class to write", "null");
  if (*adapter.task == TaskType::causal_lm) {
    if constexpr (Arch::causal)
      return LanguageModel<Arch, B>(base, {}, adapter.lora).layout();
    else
      fail<ConfigError>(config_file + ", field task_type", "SEQ_CLS over " + std::string(Arch::model_type), "CAUSAL_LM");
  }
  std::vector<std::string> labels = adapter.id2label;
  if (labels.empty() && adapter.num_labels) {
    const std::vector<std::string>& named = base.config().id2label;
    if (static_cast<Index>(named.size()) == *adapter.num_labels) labels = named;
    for (auto i = static_cast<Index>(labels.size()); i < *adapter.num_labels; ++i)
      labels.push_back("LABEL_" + std::to_string(i));
  }
  return SequenceClassifier<Arch, B>(base, {.labels = labels}, adapter.lora).layout();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes a checkpoint that transformers loads: the base with the adapter's matrices added to its weights, in float32.",
               "fedlora-merge");
  set_conventions(app);
  std::string model, adapter, out;
  app.add_option("--model", model, "Directory or org/name in the Hugging Face cache")->required();
  app.add_option("--adapter", adapter, "PEFT adapter")->required();
  app.add_option("--out", out, "Directory to write")->required();
  return run_program(app, argc, argv, [&] {
    const FileSet files = model_files(model), adapter_files = FileSet::directory(adapter);
    const PeftConfig config = read_peft_config(adapter_files);
    with_pretrained(CpuBackend<float>(), files, [&]<class Arch, class B>(const Pretrained<Arch, B>& base) {
      const auto layout = layout_of(base, config, adapter_files.path_of("adapter_config.json"));
      save_merged<Arch>(files, load_peft<double>(adapter_files, layout), out);
      std::cout << "merged " << layout->sites.size() << " modules of " << model << " with " << adapter
                << " and wrote " << layout->saved.size() << " tensors of its head; the checkpoint is in " << out << '\n';
    });
    return 0;
  });
}
