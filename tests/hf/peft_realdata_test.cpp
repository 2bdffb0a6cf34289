// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "fedlora/hf/peft.hpp"
#include "support.hpp"

using namespace fedlora;

namespace {

/// The layout of roberta-base with rank 8 on query and value, as transformers names its modules.
std::shared_ptr<const AdapterLayout> roberta_base_layout(const PeftConfig& config) {
  auto layout = std::make_shared<AdapterLayout>();
  layout->config = config.lora;
  layout->base_model = config.base_model;
  layout->target_modules = config.lora.target_modules;
  layout->modules_to_save = config.modules_to_save;
  for (int block = 0; block < 12; ++block)
    for (const char* target : {"query", "value"})
      layout->add_site("roberta.encoder.layer." + std::to_string(block) + ".attention.self." + target, 768, 768,
                       config.lora.rank, config.lora.alpha);
  layout->add_saved("classifier.dense.weight", {768, 768});
  layout->add_saved("classifier.dense.bias", {768});
  layout->add_saved("classifier.out_proj.weight", {2, 768});
  layout->add_saved("classifier.out_proj.bias", {2});
  return layout;
}

}  // namespace

TEST_CASE("a published adapter is read, and written back with the same tensors and the same configuration") {
  const auto data = tests::shared_data();
  if (!data) return;
  const auto published = *data / "adapters" / "roberta_base_mrpc_r8";
  const PeftConfig config = read_peft_config(published);
  CHECK(config.base_model == "roberta-base");
  CHECK(config.lora.rank == 8);
  CHECK(config.lora.alpha == 16);
  CHECK(config.num_labels == 2);
  const auto layout = roberta_base_layout(config);
  const auto adapter = load_peft<float>(published, layout);
  CHECK(adapter.layout().size == 887'042);

  const tests::TemporaryDirectory directory;
  save_peft(adapter, directory.path() / "adapter");
  const SafetensorsFile before(map_file(published / "adapter_model.safetensors"));
  const SafetensorsFile after(map_file(directory.path() / "adapter" / "adapter_model.safetensors"));
  REQUIRE(after.tensors().size() == before.tensors().size());
  for (const auto& [name, tensor] : before.tensors()) {
    const TensorView* written = after.find(name);
    REQUIRE(written != nullptr);
    CHECK(written->dtype == tensor.dtype);
    CHECK(written->shape == tensor.shape);
    CHECK(std::equal(tensor.bytes.begin(), tensor.bytes.end(), written->bytes.begin(), written->bytes.end()));
  }
  CHECK(tests::read_text(directory.path() / "adapter" / "adapter_model.safetensors") ==
        tests::read_text(published / "adapter_model.safetensors"));

  // PEFT has gained fields since this adapter was saved; those it had then are written as it wrote them.
  const Json was = Json::parse(tests::read_text(published / "adapter_config.json"));
  const Json is = Json::parse(tests::read_text(directory.path() / "adapter" / "adapter_config.json"));
  for (const auto& [field, value] : was.items())
    if (field != "peft_version") CHECK(is.at(field) == value);
}
