// SPDX-License-Identifier: Apache-2.0
// The assembler includes each file as it is: no generated source, no copy at run time.
#include "embedded_data.hpp"

// Two symbols around the bytes of one file. An assembler statement is a literal, hence a macro.
#define FEDLORA_EMBED(symbol, file)                      \
  __asm__(                                               \
      ".pushsection .rodata\n"                           \
      ".balign 64\n"                                     \
      ".global fedlora_" #symbol                         \
      "_begin\n"                                         \
      ".hidden fedlora_" #symbol                         \
      "_begin\n"                                         \
      "fedlora_" #symbol                                 \
      "_begin:\n"                                        \
      ".incbin \"" FEDLORA_EXAMPLE_DATA_DIR "/" file     \
      "\"\n"                                             \
      ".global fedlora_" #symbol                         \
      "_end\n"                                           \
      ".hidden fedlora_" #symbol                         \
      "_end\n"                                           \
      "fedlora_" #symbol                                 \
      "_end:\n"                                          \
      ".byte 0\n"                                        \
      ".popsection\n");                                  \
  extern "C" const std::byte fedlora_##symbol##_begin[]; \
  extern "C" const std::byte fedlora_##symbol##_end[]

FEDLORA_EMBED(config, "stories260K/config.json");
FEDLORA_EMBED(model, "stories260K/model.safetensors");
FEDLORA_EMBED(tokenizer, "stories260K/tokenizer.json");
FEDLORA_EMBED(tokenizer_config, "stories260K/tokenizer_config.json");
FEDLORA_EMBED(train, "clinc150/domain_train.tsv");
FEDLORA_EMBED(test, "clinc150/domain_test.tsv");

namespace fedlora::examples {

std::vector<EmbeddedFile> embedded_model_files() {
  return {{"config.json", {fedlora_config_begin, fedlora_config_end}},
          {"model.safetensors", {fedlora_model_begin, fedlora_model_end}},
          {"tokenizer.json", {fedlora_tokenizer_begin, fedlora_tokenizer_end}},
          {"tokenizer_config.json", {fedlora_tokenizer_config_begin, fedlora_tokenizer_config_end}}};
}

std::vector<EmbeddedFile> embedded_data_files() {
  return {{"domain_train.tsv", {fedlora_train_begin, fedlora_train_end}},
          {"domain_test.tsv", {fedlora_test_begin, fedlora_test_end}}};
}

std::span<const std::byte> embedded_file(std::string_view name) {
  for (const auto& files : {embedded_model_files(), embedded_data_files()}) {
    for (const EmbeddedFile& file : files) {
      if (file.name == name) return file.bytes;
    }
  }
  return {};
}

}  // namespace fedlora::examples
