// SPDX-License-Identifier: Apache-2.0
// fedlora-merge: a base and an adapter in, a checkpoint that transformers loads out.
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "command_line.hpp"
#include "fedlora/backend/cpu.hpp"
#include "fedlora/hf/adapter_layout.hpp"
#include "fedlora/hf/merged_checkpoint.hpp"
#include "fedlora/hf/peft.hpp"
#include "fedlora/hf/pretrained.hpp"

namespace {

using namespace fedlora;
using namespace fedlora::examples;

/// A checkpoint there may be the only copy of somebody's. Beside an adapter none is replaced either: transformers
/// applies an adapter_config.json that it finds with a checkpoint, and would add the merged matrices once more.
void refuse_taken(const std::string& out, bool overwrite) {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::path(out) / "adapter_config.json", error))
    fail<ConfigError>(out,
                      "a directory without an adapter (--out): transformers would apply the one there to the merged "
                      "checkpoint, a second time",
                      "one that holds adapter_config.json");
  if (!overwrite && std::filesystem::is_directory(out, error) && !std::filesystem::is_empty(out, error))
    fail<ConfigError>(out, "a new or an empty directory (--out); --overwrite replaces the files of a checkpoint there",
                      FileSet::directory(out).listing());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Writes a checkpoint that transformers loads: the base with the adapter's matrices added to its weights, in "
      "float32.",
      "fedlora-merge");
  set_conventions(app);
  std::string model, adapter, out;
  bool overwrite = false;
  app.add_option("--model", model, "Directory or org/name in the Hugging Face cache")->required();
  app.add_option("--adapter", adapter, "PEFT adapter")->required();
  app.add_option("--out", out, "Directory to write, new or empty")->required();
  app.add_flag("--overwrite", overwrite, "Replace the files of a checkpoint there");
  return run_program(app, argc, argv, [&] {
    refuse_taken(out, overwrite);
    const FileSet files = model_files(model), adapter_files = FileSet::directory(adapter);
    const PeftConfig config = read_peft_config(adapter_files);
    with_pretrained(CpuBackend<float>(), files, [&]<class Arch, class B>(const Pretrained<Arch, B>& base) {
      const auto layout = adapter_layout(base, files, config, adapter);
      std::vector<std::string> notes = base.warnings;
      save_merged<Arch>(files, load_peft<double>(adapter_files, layout, &notes), out);
      const std::optional<Pooling> pooling = layout->context.pooling;
      if (pooling && *pooling != Arch::pooling)
        notes.push_back("warning: the adapter was trained with pooling " + std::string(pooling_name(*pooling)) +
                        ". fedlora-predict reads that from the metadata of " + out +
                        "/model.safetensors; transformers has no field for it, and would pool as " +
                        std::string(Arch::class_stem) + "ForSequenceClassification does, with other results");
      for (const std::string& note : notes) std::cerr << note_line(note) << '\n';
      std::cout << "merged " << layout->sites.size() << " modules of " << model << " with " << adapter << " and wrote "
                << layout->saved.size() << " tensors of its head; the checkpoint is in " << out << '\n';
    });
    return 0;
  });
}
