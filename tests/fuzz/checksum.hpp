// SPDX-License-Identifier: Apache-2.0
// The checksum of a run's state, set right: it is there for disks, and would keep a fuzzer from what lies behind it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/fed/run_state.hpp"
#include "fedlora/io/safetensors.hpp"

namespace fedlora::fuzz {

/// The state with its checksum; what is no state of a run as it is.
inline std::string with_checksum(const std::string& state) {
  try {
    const SafetensorsFile file(bytes_of(state, "state"));
    std::map<std::string, std::string> metadata = file.metadata();
    const auto text = metadata.find("fedlora_run_state");
    if (text == metadata.end()) return state;
    detail::RunStateChecksum checksum;
    checksum.add(text->second);
    std::vector<TensorToWrite> tensors;
    for (const auto& [name, tensor] : file.tensors()) {
      checksum.add(name).add(tensor.bytes);
      tensors.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
    }
    metadata["checksum"] = checksum.text();
    return safetensors_bytes(tensors, metadata);
  } catch (const Error&) {
    return state;
  }
}

}  // namespace fedlora::fuzz
