// SPDX-License-Identifier: Apache-2.0
// safetensors against the Python package, both ways, and the copies into float and double.
#include "fedlora/io/safetensors.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "errors.hpp"
#include "support.hpp"

namespace {

using namespace fedlora;
using fedlora::tests::check_error;

const std::filesystem::path golden = std::filesystem::path(FEDLORA_TEST_DIR) / "golden/safetensors";

SafetensorsFile from_python() { return SafetensorsFile(map_file(golden / "python.safetensors")); }

template <class T>
std::vector<T> copied(const SafetensorsFile& file, const char* name) {
  const TensorView& tensor = *file.find(name);
  std::vector<T> out(static_cast<std::size_t>(tensor.size()));
  copy_tensor<T>(tensor, out);
  return out;
}

template <class T>
std::string raw(std::initializer_list<T> values) {
  return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T)};
}

std::span<const std::byte> bytes_in(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

TEST_CASE("a file of the Python package is read: every dtype, a scalar, an empty tensor, metadata") {
  const SafetensorsFile file = from_python();
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"naïve \"key\"", "line\nbreak"}});
  CHECK(file.tensors().size() == 21);
  CHECK(file.find("absent") == nullptr);
  for (const auto& entry : file.tensors()) {
    const std::string& name = entry.first;
    const TensorView& tensor = entry.second;
    CAPTURE(name);
    CHECK(tensor.name == name);
    CHECK(tensor.file == (golden / "python.safetensors").string());
    CHECK(tensor.bytes.size() == static_cast<std::size_t>(tensor.size()) * dtype_size(tensor.dtype));
    if (name != "scalar" && name != "empty") CHECK(dtype_name(tensor.dtype) == name);
  }
  CHECK(file.find("scalar")->shape.empty());
  CHECK(file.find("scalar")->size() == 1);
  CHECK(copied<float>(file, "scalar") == std::vector<float>{2.5f});
  CHECK(file.find("empty")->shape == std::vector<Index>{0, 4});
  CHECK(copied<double>(file, "empty").empty());
  CHECK(file.find("BF16")->shape == std::vector<Index>{2, 3});
  CHECK(std::to_integer<int>(file.find("U16")->bytes[5]) == 5);
}

TEST_CASE("floating-point tensors are widened exactly, and F64 is rounded to float") {
  const SafetensorsFile file = from_python();
  const std::vector<double> exact = {0.0, -1.0 / 6, 2.0 / 6, -3.0 / 6, 1234.5, 0x1p-20};
  CHECK(copied<double>(file, "F64") == exact);
  std::vector<float> rounded;
  for (const double value : exact) rounded.push_back(static_cast<float>(value));
  CHECK(copied<float>(file, "F64") == rounded);
  CHECK(copied<float>(file, "F32") == rounded);
  // 1/6 in F16 is 1365 · 2^-13, in BF16 171 · 2^-10; 1234.5 is 1234 (half to even) and 1232; 2^-20 is subnormal in F16.
  const std::vector<float> f16 = {0.0f, -1365 * 0x1p-13f, 1365 * 0x1p-12f, -0.5f, 1234.0f, 0x1p-20f};
  const std::vector<float> bf16 = {0.0f, -171 * 0x1p-10f, 171 * 0x1p-9f, -0.5f, 1232.0f, 0x1p-20f};
  CHECK(copied<float>(file, "F16") == f16);
  CHECK(copied<float>(file, "BF16") == bf16);
  CHECK(copied<double>(file, "F16") == std::vector<double>(f16.begin(), f16.end()));
  CHECK(copied<double>(file, "BF16") == std::vector<double>(bf16.begin(), bf16.end()));
}

TEST_CASE("a copy into the wrong size or from integers is refused") {
  const SafetensorsFile file = from_python();
  std::vector<float> out(5);
  check_error<ShapeError>([&] { copy_tensor<float>(*file.find("F32"), out); },
                          {"python.safetensors, tensor 'F32'", "5 elements", "(2, 3)"});
  out.resize(3);
  for (const char* const dtype : {"I64", "U8", "BOOL", "C64", "F8_E4M3"}) {
    check_error<FormatError>([&] { copy_tensor<float>(*file.find(dtype), out); },
                             {"field dtype", "F64, F32, F16 or BF16", dtype});
  }
}

TEST_CASE("views keep the mapping alive") {
  TensorView tensor;
  {
    const SafetensorsFile file = from_python();
    tensor = *file.find("F64");
  }
  std::vector<double> out(6);
  copy_tensor<double>(tensor, out);
  CHECK(out[4] == 1234.5);
}

TEST_CASE("the writer gives the bytes that the Python package was seen to read") {
  const std::string weight = raw<float>({0.0f, 1.0f, -2.0f, 3.5f, std::numeric_limits<float>::infinity(), 0x1p-140f});
  const std::string mask("\1\0\1", 3);
  const std::string third = raw<double>({1.0 / 3});
  const std::string half = raw<std::uint16_t>({0x3f80, 0xc000});
  const std::vector<TensorToWrite> tensors = {{"z.weight", Dtype::f32, {2, 3}, bytes_in(weight)},
                                              {"mask \"é\"", Dtype::boolean, {3}, bytes_in(mask)},
                                              {"a", Dtype::f64, {}, bytes_in(third)},
                                              {"empty", Dtype::i64, {0, 5}, {}},
                                              {"half", Dtype::bf16, {1, 2}, bytes_in(half)}};
  CHECK(safetensors_bytes(tensors, {{"b", "tab\there"}, {"a", "1"}}) ==
        tests::read_text(golden / "written.safetensors"));
  CHECK(safetensors_bytes(tensors) == tests::read_text(golden / "written_plain.safetensors"));

  const SafetensorsFile file(bytes_of(safetensors_bytes(tensors, {{"a", "1"}}), "memory"));
  CHECK(file.metadata() == std::map<std::string, std::string>{{"a", "1"}});
  CHECK(copied<double>(file, "a") == std::vector<double>{1.0 / 3});  // at an odd address
  CHECK(copied<float>(file, "half") == std::vector<float>{1.0f, -2.0f});
}

TEST_CASE("a file without tensors is written and read") {
  const std::string bytes = safetensors_bytes({}, {});
  CHECK(bytes.size() == 16);
  const SafetensorsFile file(bytes_of(bytes, "memory"));
  CHECK(file.tensors().empty());
  CHECK(file.metadata().empty());
}

TEST_CASE("packed dtypes of less than a byte are counted in bits") {
  const std::string six(6, 'x');
  const std::vector<TensorToWrite> tensors = {{"f4", Dtype::f4, {3, 4}, bytes_in(six)},
                                              {"f6", Dtype::f6_e2m3, {8}, bytes_in(six)}};
  const SafetensorsFile file(bytes_of(safetensors_bytes(tensors, {}), "memory"));
  CHECK(file.find("f4")->bytes.size() == 6);
  CHECK(file.find("f6")->bytes.size() == 6);
  const std::vector<TensorToWrite> odd = {{"f4", Dtype::f4, {11}, bytes_in(six)}};
  check_error<FormatError>([&] { safetensors_bytes(odd, {}); }, {"tensor 'f4'", "whole bytes", "(11,)"});
}

TEST_CASE("the writer refuses what no reader would take") {
  const std::string four(4, 'x');
  const auto write = [&](std::vector<TensorToWrite> tensors, const std::map<std::string, std::string>& metadata = {}) {
    return [tensors = std::move(tensors), metadata] { safetensors_bytes(tensors, metadata); };
  };
  const TensorToWrite good{"a", Dtype::f32, {1}, bytes_in(four)};
  check_error<FormatError>(write({good, good}), {"tensor 'a'", "every name once"});
  check_error<FormatError>(write({{"__metadata__", Dtype::f32, {1}, bytes_in(four)}}), {"tensor '__metadata__'"});
  check_error<FormatError>(write({{"a", Dtype::f32, {2}, bytes_in(four)}}),
                           {"tensor 'a'", "8 bytes for F32 of shape (2,)", "4 bytes"});
  check_error<FormatError>(write({{"a", Dtype::f32, {-1}, bytes_in(four)}}), {"tensor 'a', field shape", "(-1,)"});
  check_error<FormatError>(write({{"a", Dtype::f32, {Index{1} << 32, Index{1} << 32}, bytes_in(four)}}),
                           {"field shape"});
  check_error<FormatError>(write({{"\xff", Dtype::f32, {1}, bytes_in(four)}}), {"UTF-8"});
  check_error<FormatError>(write({good}, {{"key", "\xff"}}), {"UTF-8"});
}

TEST_CASE("names and sizes of dtypes") {
  for (const auto& facts : detail::dtype_facts) {
    CHECK(dtype_from_name(facts.name) == facts.dtype);
    CHECK(dtype_name(facts.dtype) == facts.name);
  }
  CHECK_FALSE(dtype_from_name("f32").has_value());
  CHECK_FALSE(dtype_from_name("").has_value());
  static_assert(dtype_size(Dtype::bf16) == 2 && dtype_size(Dtype::c64) == 8 && dtype_size(Dtype::boolean) == 1);
}
