// SPDX-License-Identifier: Apache-2.0
// The files that the programs carry inside them, so that they run with no arguments, no network and no data directory:
// the pretrained stories260K (a Llama of 260 thousand parameters) and the CLINC150 utterances with their domains.
// NOTICE says whose they are.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace fedlora::examples {

struct EmbeddedFile {
  std::string_view name;
  std::span<const std::byte> bytes;  ///< read-only for as long as the program runs; begins at a multiple of 64
};

/// config.json, model.safetensors, tokenizer.json and tokenizer_config.json of stories260K.
std::vector<EmbeddedFile> embedded_model_files();

/// domain_train.tsv and domain_test.tsv: a header, then domain, intent and text.
std::vector<EmbeddedFile> embedded_data_files();

/// The file of this name out of both lists; empty if there is none.
std::span<const std::byte> embedded_file(std::string_view name);

}  // namespace fedlora::examples
