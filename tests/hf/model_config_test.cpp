// SPDX-License-Identifier: Apache-2.0
// Quantised checkpoints, told by config.json and by their tensors.
#include "fedlora/hf/model_config.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "errors.hpp"

namespace fedlora::tests {
namespace {

void read_config_with(const Json& field, const char* name = "quantization_config") {
  const Json config = {{"model_type", "llama"}, {name, field}};
  detail::read_model_config(FileSet::memory("m", {{"config.json", bytes_of(config.dump(), "")}}));
}

void read_tensors(const std::vector<TensorToWrite>& tensors) {
  const std::string file = safetensors_bytes(tensors, {});
  detail::refuse_quantised(Checkpoint(FileSet::memory("m", {{"model.safetensors", bytes_of(file, "")}})));
}

const std::vector<std::byte> bytes(16);
TensorToWrite of_bytes(const std::string& name, Dtype dtype = Dtype::u8) { return {name, dtype, {16}, bytes}; }

}  // namespace

TEST_CASE("a configuration that says how its weights are quantised is refused by the format's name") {
  for (const char* method :
       {"gptq", "awq", "aqlm", "hqq", "fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "torchao", "quanto", "eetq",
        "higgs", "vptq", "spqr", "bitnet", "quark", "auto-round", "modelopt", "nobody knows"}) {
    CAPTURE(method);
    check_error<ConfigError>(
        [&] {
          read_config_with({{"quant_method", method}});
        },
        {"m/config.json, field quantization_config", "F32, F16 or BF16", "quantised by " + std::string(method),
         "unquantised original", "dequantize()"});
  }
  check_error<ConfigError>([] { read_config_with({{"quant_method", "gptq"}, {"bits", 3}}); }, {"gptq, in 3 bits"});
  check_error<ConfigError>(
      [] {
        read_config_with({{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}});
      },
      {"bitsandbytes, in 8 bits"});
  check_error<ConfigError>([] { read_config_with({{"load_in_4bit", true}}); }, {"bitsandbytes, in 4 bits"});
  check_error<ConfigError>(
      [] {
        read_config_with({{"format", "dense"}}, "compression_config");
      },
      {"field compression_config", "compressed-tensors"});
  check_error<FormatError>([] { read_config_with("gptq"); }, {"field quantization_config", "an object"});
  check_error<FormatError>([] { read_config_with({{"quant_method", 4}}); }, {"field quant_method", "a string"});
}

TEST_CASE("a configuration that names no method says nothing") {
  for (const Json& field : {Json(nullptr), Json::object(), Json{{"quant_method", nullptr}},
                            Json{{"quant_method", "bitsandbytes"}, {"load_in_4bit", false}, {"load_in_8bit", false}}})
    CHECK_NOTHROW(read_config_with(field));
  CHECK_NOTHROW(read_config_with(nullptr, "compression_config"));
}

TEST_CASE("tensors tell that they are quantised, and by what") {
  const std::string layer = "model.layers.0.self_attn.q_proj";
  struct Case {
    const char* name;
    const char* format;
  };
  for (const Case& c : {Case{".qweight", "GPTQ or AWQ"}, Case{".weight.absmax", "bitsandbytes, in 4 bits"},
                        Case{".SCB", "bitsandbytes, in 8 bits"}, Case{".W_q", "HQQ"},
                        Case{".weight_packed", "compressed-tensors"}, Case{".weight_scale_inv", "FP8"},
                        Case{".codebooks", "AQLM"}, Case{".weight._data", "Quanto"}, Case{"_blocks", "MXFP4"}}) {
    CAPTURE(c.name);
    check_error<ConfigError>(
        [&] {
          read_tensors({of_bytes(layer + ".weight"), of_bytes(layer + c.name)});
        },
        {"m/model.safetensors, tensor '" + layer + c.name, c.format, "unquantised original"});
  }
  for (const Dtype dtype : {Dtype::u8, Dtype::i8, Dtype::f8_e4m3, Dtype::f8_e5m2})
    check_error<ConfigError>([&] { read_tensors({of_bytes(layer + ".weight", dtype)}); },
                             {layer + ".weight", std::string(dtype_name(dtype))});
  CHECK_NOTHROW(read_tensors({of_bytes("embeddings.position_ids"),
                              of_bytes("attn.mask", Dtype::boolean),
                              {"x.weight", Dtype::f32, {4}, bytes}}));
}

}  // namespace fedlora::tests
