// SPDX-License-Identifier: Apache-2.0
// Checkpoints in one file and in shards, and what can be wrong with them.
#include "fedlora/hf/checkpoint.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "errors.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using namespace fedlora;
using fedlora::tests::check_error;
using fedlora::tests::TemporaryDirectory;
using fedlora::tests::write_text;

/// A safetensors file with one float per name.
std::string file_with(std::initializer_list<const char*> names, float value = 1) {
  std::vector<TensorToWrite> tensors;
  for (const char* const name : names) tensors.push_back({name, Dtype::f32, {1}, std::as_bytes(std::span(&value, 1))});
  return safetensors_bytes(tensors, {});
}

std::string index_of(const std::map<std::string, std::string>& weight_map) {
  return Json{{"metadata", {{"total_size", 12}}}, {"weight_map", weight_map}}.dump();
}

FileSet memory(const std::map<std::string, std::string>& files) {
  std::map<std::string, Bytes> bytes;
  for (const auto& [name, contents] : files) bytes.emplace(name, bytes_of(contents, name));
  return FileSet::memory("model", std::move(bytes));
}

float value_of(const Checkpoint& checkpoint, const char* name) {
  float value = 0;
  copy_tensor<float>(*checkpoint.find(name), std::span(&value, 1));
  return value;
}

const char* const index_name = "model.safetensors.index.json";
const char* const shard_1 = "model-00001-of-00002.safetensors";
const char* const shard_2 = "model-00002-of-00002.safetensors";

}  // namespace

TEST_CASE("a single file gives its tensors") {
  const TemporaryDirectory dir;
  write_text(dir.path() / "model.safetensors", file_with({"b", "a"}, 3));
  const Checkpoint checkpoint(FileSet::directory(dir.path()));
  CHECK(checkpoint.names() == std::vector<std::string>{"a", "b"});
  CHECK(checkpoint.find("c") == nullptr);
  CHECK(value_of(checkpoint, "b") == 3);
  const std::string path = (dir.path() / "model.safetensors").string();
  CHECK(checkpoint.where("a") == path);
  CHECK(checkpoint.where("c") == path);
}

TEST_CASE("shards give their tensors, each from its file") {
  const TemporaryDirectory dir;
  write_text(dir.path() / shard_1, file_with({"a", "b"}, 1));
  write_text(dir.path() / shard_2, file_with({"c"}, 2));
  write_text(dir.path() / index_name, index_of({{"a", shard_1}, {"b", shard_1}, {"c", shard_2}}));
  const Checkpoint checkpoint(FileSet::directory(dir.path()));
  CHECK(checkpoint.names() == std::vector<std::string>{"a", "b", "c"});
  CHECK(value_of(checkpoint, "a") == 1);
  CHECK(value_of(checkpoint, "c") == 2);
  CHECK(checkpoint.where("a") == (dir.path() / shard_1).string());
  CHECK(checkpoint.where("c") == (dir.path() / shard_2).string());
  CHECK(checkpoint.where("d") == (dir.path() / index_name).string());
}

TEST_CASE("a single file wins over an index, as in transformers") {
  const Checkpoint checkpoint(
      memory({{"model.safetensors", file_with({"a"})}, {index_name, index_of({{"b", "gone.safetensors"}})}}));
  CHECK(checkpoint.names() == std::vector<std::string>{"a"});
}

TEST_CASE("the index decides between shards; what it does not mention is taken where it is") {
  const Checkpoint checkpoint(memory({{shard_1, file_with({"a", "b", "extra"}, 1)},
                                      {shard_2, file_with({"a", "c"}, 2)},
                                      {index_name, index_of({{"a", shard_2}, {"b", shard_1}, {"c", shard_2}})}}));
  CHECK(checkpoint.names() == std::vector<std::string>{"a", "b", "c", "extra"});
  CHECK(value_of(checkpoint, "a") == 2);
  CHECK(checkpoint.where("extra") == "model/" + std::string(shard_1));

  check_error<FormatError>(
      [] {
        Checkpoint both(memory({{shard_1, file_with({"a", "extra"})},
                                {shard_2, file_with({"c", "extra"})},
                                {index_name, index_of({{"a", shard_1}, {"c", shard_2}})}}));
      },
      {shard_1, shard_2, "tensor 'extra'", "one shard only"});
}

TEST_CASE("views outlive their checkpoint") {
  TensorView view;
  {
    const Checkpoint checkpoint(memory({{"model.safetensors", file_with({"a"}, 5)}}));
    view = *checkpoint.find("a");
  }
  float value = 0;
  copy_tensor<float>(view, std::span(&value, 1));
  CHECK(value == 5);
}

TEST_CASE("an index that does not fit its shards is refused") {
  const auto open = [](const std::string& index) {
    return [index] { Checkpoint checkpoint(memory({{shard_1, file_with({"a"})}, {index_name, index}})); };
  };
  const std::string file = "model/" + std::string(index_name);
  check_error<FormatError>(
      open(index_of({{"a", shard_1}, {"b", shard_1}})),
      {"model/" + std::string(shard_1) + ", tensor 'b'", "which " + file + " puts there", "none of that name"});
  check_error<IoError>(
      open(index_of({{"a", shard_1}, {"b", shard_2}})),
      {"model/" + std::string(shard_2), "a shard that " + file + " lists", "no such file; there is", shard_1});
  check_error<FormatError>(open("{}"), {file + ", field weight_map", "no such field"});
  check_error<FormatError>(open("{\"weight_map\": {}}"), {file + ", field weight_map", "at least one tensor"});
  check_error<FormatError>(open("{\"weight_map\": []}"), {file + ", field weight_map", "an object", "an array"});
  check_error<FormatError>(open("{\"weight_map\": {\"a\": 1}}"), {file + ", field weight_map.a", "a string", "got 1"});
  check_error<FormatError>(open("{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}"), {file, "'a' twice"});
  check_error<FormatError>(open("[]"), {file, "an object"});
  check_error<FormatError>(open("{"), {file + ", byte 1", "JSON"});
}

TEST_CASE("a shard's name cannot lead out of the directory") {
  for (const char* const name :
       {"../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "..safetensors", "",
        ".", "..", "pytorch_model.bin", "model.safetensors.index.json"}) {
    CAPTURE(name);
    check_error<FormatError>(
        [&] {
          Checkpoint checkpoint(memory({{index_name, index_of({{"a", name}})}}));
        },
        {"model/model.safetensors.index.json, field weight_map, tensor 'a'", "in the same directory",
         "'" + std::string(name) + "'"});
  }
  const std::string with_zero("x\0.safetensors", 14);
  check_error<FormatError>(
      [&] {
        Checkpoint checkpoint(memory({{index_name, index_of({{"a", with_zero}})}}));
      },
      {"'x\\x00.safetensors'"});
}

TEST_CASE("without safetensors the error says what was looked for and what there is") {
  const TemporaryDirectory dir;
  const auto open = [&] { Checkpoint checkpoint(FileSet::directory(dir.path())); };
  check_error<IoError>(
      open, {dir.path().string(), "model.safetensors or model.safetensors.index.json", "neither; there is nothing"});
  write_text(dir.path() / "config.json", "{}");
  check_error<IoError>(open, {"neither; there is 'config.json'"});
  write_text(dir.path() / "pytorch_model.bin.index.json", "{}");
  check_error<IoError>(open, {"only pytorch_model.bin.index.json", "convert it to safetensors", "save_pretrained"});
  write_text(dir.path() / "pytorch_model.bin", "");
  check_error<IoError>(open, {dir.path().string(), "only pytorch_model.bin,", "convert it to safetensors"});
}

TEST_CASE("a broken file is named by its path") {
  const TemporaryDirectory dir;
  write_text(dir.path() / "model.safetensors", file_with({"a"}).substr(0, 20));
  check_error<FormatError>([&] { Checkpoint checkpoint(FileSet::directory(dir.path())); },
                           {(dir.path() / "model.safetensors").string() + ", header length"});
}

TEST_CASE("mutated indexes are refused with an Error or give tensors that can be read") {
  const std::string seed = index_of({{"a", shard_1}, {"b", shard_1}, {"c", shard_2}});
  std::mt19937 random(5);
  int opened = 0;
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string index = seed;
    for (auto changes = 1 + random() % 2; changes > 0; --changes) {
      const std::size_t at = random() % index.size();
      if (random() % 2 == 0) {
        index[at] = static_cast<char>(random());
      } else {
        index.erase(at, 1 + random() % 3);
      }
    }
    try {
      const Checkpoint checkpoint(
          memory({{shard_1, file_with({"a", "b"})}, {shard_2, file_with({"c"})}, {index_name, index}}));
      for (const std::string& name : checkpoint.names()) CHECK(value_of(checkpoint, name.c_str()) == 1);
      ++opened;
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(opened > 20);
  CHECK(refused > 1000);
}
