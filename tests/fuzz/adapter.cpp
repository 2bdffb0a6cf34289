// SPDX-License-Identifier: Apache-2.0
// Adapter directories over tiny bases: adapter_config.json and adapter_model.safetensors. What is loaded reads the same
// when it is written again.
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "fedlora/hf/adapter_layout.hpp"
#include "fedlora/hf/peft.hpp"
#include "fuzz/framing.hpp"
#include "fuzz/target.hpp"
#include "nn/tiny.hpp"

namespace fedlora::fuzz {

template <class Arch>
void load_over(const FileSet& files, const PeftConfig& config) {
  using B = CpuBackend<float>;
  static const Pretrained<Arch, B> base = tests::tiny_base<Arch, B>();
  const auto layout = unless_refused("", [&] { return adapter_layout(base, files, config, files.name()); });
  if (!layout) return;
  std::vector<std::string> notes;  // so that the base may be another one
  const auto adapter = unless_refused("fuzz", [&] { return load_peft<float>(files, *layout, &notes); });
  if (!adapter) return;
  const FileContents written = {{"adapter_config.json", detail::peft_config_json(**layout).dump()},
                                {"adapter_model.safetensors", peft_tensor_bytes(*adapter)}};
  const FileSet again = file_set(written);
  const Adapter<float> back =
      load_peft<float>(again, adapter_layout(base, again, read_peft_config(again), again.name()));
  require(same_places(back.layout(), adapter->layout()), "an adapter's modules read as they were written");
  require(back.layout().context == adapter->layout().context, "what PEFT has no field for reads as it was written");
  require(std::memcmp(back.values().data(), adapter->values().data(), adapter->values().size_bytes()) == 0,
          "an adapter's numbers read as they were written");
}

const Target adapter_target("adapter", [](std::string_view input) {
  const FileSet files = file_set(files_of(input));
  const auto config = unless_refused("fuzz", [&] { return read_peft_config(files); });
  if (!config) return;
  load_over<Bert>(files, *config);
  load_over<Llama>(files, *config);
});

}  // namespace fedlora::fuzz
