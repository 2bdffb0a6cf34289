// SPDX-License-Identifier: Apache-2.0
// safetensors files that are truncated, corrupted or meant to harm.
#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "errors.hpp"
#include "fedlora/io/safetensors.hpp"
#include "support.hpp"

namespace {

using namespace fedlora;
using fedlora::tests::check_error;

std::string with_length(std::uint64_t length, const std::string& rest) {
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + rest;
}

/// A file with this header and so many bytes of data.
std::string file_of(const std::string& header, std::size_t data) {
  return with_length(header.size(), header + std::string(data, '\1'));
}

void read(const std::string& contents) { SafetensorsFile file(bytes_of(contents, "m.safetensors")); }

void check_refused(const std::string& header, std::size_t data, std::initializer_list<std::string_view> parts) {
  CAPTURE(header);
  check_error<FormatError>([&] { read(file_of(header, data)); }, parts);
}

/// One valid entry: float32 of shape (2,).
std::string entry(const char* begin_end, const char* dtype = "F32", const char* shape = "[2]") {
  return std::string("{\"dtype\":\"") + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + begin_end + "}";
}

std::string small_valid_file() {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const std::vector<std::uint8_t> mask = {1, 0, 1};
  const std::vector<TensorToWrite> tensors = {{"weight", Dtype::f32, {2, 3}, std::as_bytes(std::span(values))},
                                              {"mask", Dtype::boolean, {3}, std::as_bytes(std::span(mask))},
                                              {"none", Dtype::f16, {0}, {}}};
  return safetensors_bytes(tensors, {{"format", "pt"}});
}

/// Reads a file that may be anything. True when it was accepted; then every view lies within the bytes and is read
/// whole.
bool accepted(const std::string& contents) {
  const Bytes bytes = bytes_of(contents, "m.safetensors");
  try {
    const SafetensorsFile file(bytes);
    std::size_t covered = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      REQUIRE(tensor.bytes.data() >= bytes.data.data());
      REQUIRE(tensor.bytes.data() + tensor.bytes.size() <= bytes.data.data() + bytes.data.size());
      covered += tensor.bytes.size();
      const auto size = static_cast<std::size_t>(tensor.size());
      REQUIRE(tensor.bytes.size() == size * static_cast<std::size_t>(dtype_bits(tensor.dtype)) / 8);
      if (size == 0 || tensor.bytes.empty()) continue;
      std::vector<double> values(size);
      try {
        copy_tensor<double>(tensor, values);
      } catch (const FormatError&) {
      }
    }
    std::uint64_t header = 0;
    std::memcpy(&header, bytes.data.data(), 8);
    REQUIRE(covered + header + 8 == contents.size());
    return true;
  } catch (const FormatError&) {
    return false;
  }
}

}  // namespace

TEST_CASE("the header's length is bounded by the file and by 100 MB") {
  check_error<FormatError>([] { read(""); }, {"m.safetensors", "got 0 bytes"});
  check_error<FormatError>([] { read("1234567"); }, {"got 7 bytes"});
  check_error<FormatError>([] { read(with_length(3, "{}")); }, {"header length", "at most the 2 bytes", "got 3"});
  check_error<FormatError>([] { read(with_length(UINT64_MAX, "{}")); }, {"header length", "18446744073709551615"});
  check_error<FormatError>([] { read(with_length(std::uint64_t{1} << 63, "{}")); }, {"header length"});
  check_error<FormatError>([] { read(with_length(0, "")); }, {"header", "'{' first"});
  // A mapped file of 101 MB that takes no room on the disk.
  const tests::TemporaryDirectory dir;
  const auto path = dir.path() / "huge.safetensors";
  tests::write_text(path, with_length(100'000'001, "{"));
  std::filesystem::resize_file(path, 101'000'000);
  check_error<FormatError>([&] { SafetensorsFile file(map_file(path)); },
                           {"huge.safetensors", "at most 100000000", "100000001"});
}

TEST_CASE("the header is a JSON object") {
  check_refused("[]", 0, {"m.safetensors, header", "'{' first"});
  check_refused(" {}", 0, {"'{' first"});
  check_refused("{", 0, {"m.safetensors, header, byte 1", "JSON"});
  check_refused("{}x", 0, {"header, byte 2"});
  check_refused(std::string("{}\0", 3), 0, {"header, byte 2", "zero byte"});
  check_refused("{\"a\":" + entry("[0,8]") + ",\"a\":" + entry("[8,16]") + "}", 16,
                {"m.safetensors, header", "'a' twice"});
  check_refused("{\"a\":" + std::string(5000, '['), 0, {"256"});
  CHECK_NOTHROW(read(file_of("{}     ", 0)));
}

TEST_CASE("metadata is an object of strings") {
  check_refused(R"({"__metadata__":[]})", 0, {"header, field __metadata__", "an object"});
  check_refused(R"({"__metadata__":{"a":1}})", 0, {"header, field __metadata__.a", "a string", "got 1"});
  check_refused(R"({"__metadata__":{"a":null}})", 0, {"__metadata__.a"});
}

TEST_CASE("an entry has a known dtype, a shape and two offsets") {
  const auto one = [](const std::string& value) { return "{\"w\":" + value + "}"; };
  CHECK_NOTHROW(read(file_of(one(entry("[0,8]")), 8)));
  check_refused(one("3"), 8, {"m.safetensors, tensor 'w'", "an object", "got 3"});
  check_refused(one("{}"), 8, {"tensor 'w', field dtype", "no such field"});
  check_refused(one(R"({"dtype":"F32","data_offsets":[0,8]})"), 8, {"tensor 'w', field shape", "no such field"});
  check_refused(one(R"({"dtype":"F32","shape":[2]})"), 8, {"tensor 'w', field data_offsets", "no such field"});
  check_refused(one(R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})"), 8, {"field dtype", "a string", "got 7"});
  check_refused(one(entry("[0,8]", "F33")), 8, {"m.safetensors, tensor 'w', field dtype", "F32, BF16, I64", "'F33'"});
  check_refused(one(entry("[0,8]", "f32")), 8, {"field dtype", "'f32'"});
  check_refused(one(entry("[0,8]", "F32", "2")), 8, {"field shape", "an array", "got 2"});
  check_refused(one(entry("[0,8]", "F32", "[-2]")), 8, {"tensor 'w', field shape", "(-2,)"});
  check_refused(one(entry("[0,8]", "F32", "[-2,-1]")), 8, {"tensor 'w', field shape", "(-2, -1)"});
  check_refused(one(entry("[0,8]", "F32", "[2.0]")), 8, {"field shape[0]", "an integer", "2.0"});
  check_refused(one(entry("[0,8]", "F32", "[\"2\"]")), 8, {"field shape[0]", "an integer"});
  check_refused(one(entry("[0,8]", "F32", "[9223372036854775808]")), 8, {"field shape[0]", "9223372036854775808"});
  check_refused(one(entry("[0]")), 8, {"field data_offsets", "two offsets", "got 1"});
  check_refused(one(entry("[0,4,8]")), 8, {"field data_offsets", "two offsets", "got 3"});
  check_refused(one(entry("[-8,0]")), 8, {"field data_offsets[0]", "got -8"});
  check_refused(one(entry("[0,8.0]")), 8, {"field data_offsets[1]", "an integer"});
  check_refused(one(entry("{}")), 8, {"field data_offsets", "an array"});
}

TEST_CASE("a shape whose product overflows is refused, also where it would wrap to the right size") {
  for (const char* const shape : {"[9223372036854775807]", "[4294967296,4294967296]", "[4294967296,4294967296,2]",
                                  "[4611686018427387904,4]", "[2305843009213693954]"}) {
    check_refused("{\"w\":" + entry("[0,8]", "F32", shape) + "}", 8, {"tensor 'w', field shape"});
  }
  check_refused("{\"w\":" + entry("[0,0]", "F32", "[4294967296,4294967296,0]") + "}", 0, {"field shape"});
  CHECK_NOTHROW(read(file_of("{\"w\":" + entry("[0,0]", "F32", "[0,4294967296,4294967296]") + "}", 0)));
}

TEST_CASE("offsets lie in the data and fit dtype and shape") {
  const auto one = [](const char* offsets) { return "{\"w\":" + entry(offsets) + "}"; };
  check_refused(one("[8,0]"), 8, {"tensor 'w', field data_offsets", "begin ≤ end ≤ 8", "[8, 0]"});
  check_refused(one("[0,9]"), 8, {"begin ≤ end ≤ 8", "[0, 9]"});
  check_refused(one("[18446744073709551608,18446744073709551615]"), 8, {"begin ≤ end ≤ 8"});
  check_refused(one("[18446744073709551608,0]"), 8, {"begin ≤ end ≤ 8"});
  check_refused(one("[0,18446744073709551616]"), 8, {"data_offsets[1]", "an integer"});
  check_refused(one("[0,4]"), 8, {"8 bytes for F32 of shape (2,)", "got 4 bytes"});
  check_refused("{\"w\":" + entry("[0,8]", "F32", "[3]") + "}", 8, {"12 bytes for F32 of shape (3,)", "got 8 bytes"});
  check_refused("{\"w\":" + entry("[0,8]", "F32", "[1]") + "}", 8, {"4 bytes for F32 of shape (1,)", "got 8 bytes"});
  check_refused("{\"w\":" + entry("[0,8]", "F64") + "}", 8, {"16 bytes for F64"});
}

TEST_CASE("tensors cover the data without overlap, hole or rest, in any order of the header") {
  const auto two = [](const char* a, const char* b) { return "{\"a\":" + entry(a) + ",\"b\":" + entry(b) + "}"; };
  CHECK_NOTHROW(read(file_of(two("[0,8]", "[8,16]"), 16)));
  CHECK_NOTHROW(read(file_of(two("[8,16]", "[0,8]"), 16)));
  check_refused(two("[0,8]", "[4,12]"), 16, {"tensor 'b', field data_offsets", "begin at 8", "4 (an overlap)"});
  check_refused(two("[0,8]", "[0,8]"), 8, {"tensor 'b'", "begin at 8", "0 (an overlap)"});
  check_refused(two("[0,8]", "[12,20]"), 20, {"tensor 'b'", "begin at 8", "12 (a hole)"});
  check_refused(two("[4,12]", "[12,20]"), 20, {"tensor 'a'", "begin at 0", "4 (a hole)"});
  check_refused(two("[0,8]", "[8,16]"), 17, {"m.safetensors", "16 bytes of data", "got 17"});
  check_refused("{}", 1, {"0 bytes of data", "got 1"});
}

TEST_CASE("empty tensors lie between others, not inside them") {
  const std::string a = "\"a\":" + entry("[0,8]");
  const auto with_empty = [&](const char* at) { return "{" + a + ",\"e\":" + entry(at, "F32", "[0]") + "}"; };
  CHECK_NOTHROW(read(file_of(with_empty("[0,0]"), 8)));
  CHECK_NOTHROW(read(file_of(with_empty("[8,8]"), 8)));
  check_refused(with_empty("[4,4]"), 8, {"tensor 'e'", "overlap"});
  check_refused(with_empty("[9,9]"), 8, {"begin ≤ end ≤ 8"});
}

TEST_CASE("a file cut at any byte, or with bytes behind it, is refused") {
  const std::string file = small_valid_file();
  REQUIRE(accepted(file));
  for (std::size_t size = 0; size < file.size(); ++size) {
    CAPTURE(size);
    CHECK_FALSE(accepted(file.substr(0, size)));
  }
  CHECK_FALSE(accepted(file + '\0'));
  CHECK_FALSE(accepted(file + file));
}

TEST_CASE("a file with any bit flipped is refused or has all its views in bounds") {
  const std::string file = small_valid_file();
  int accepts = 0;
  for (std::size_t bit = 0; bit < file.size() * 8; ++bit) {
    std::string flipped = file;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    accepts += accepted(flipped) ? 1 : 0;
  }
  CHECK(accepts >= 27 * 8);  // at least those in the data
  CHECK(accepts < static_cast<int>(file.size() * 8));
}

TEST_CASE("mutated files are refused or have all their views in bounds") {
  const std::string seed = small_valid_file();
  const std::vector<std::string> words = {
      "0",   "-1",    "8",       "24",      "27", "4294967296", "18446744073709551615",
      "F64", "BOOL",  "F4",      "[]",      "{}", "null",       "\"",
      ",",   "[0,0]", "[24,27]", "\\u0000", "1e2"};
  std::mt19937 random(11);
  int accepts = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string file = seed;
    const auto changes = 1 + random() % 3;
    for (unsigned c = 0; c < changes; ++c) {
      const std::size_t at = 8 + random() % (file.size() - 8);
      switch (random() % 4) {
        case 0:
          file[at] = static_cast<char>(random());
          break;
        case 1:
          file.replace(at, 1 + random() % 3, words[random() % words.size()]);
          break;
        case 2:
          file.erase(at, 1 + random() % 8);
          break;
        default:
          file.insert(at, file.substr(8 + random() % (file.size() - 8), random() % 40));
      }
      if (file.size() < 16) file = seed;
    }
    // Half of them with a length that fits, so that the change reaches what lies behind that check.
    if (random() % 2 == 0) {
      std::uint64_t length = file.rfind('}') == std::string::npos ? 0 : file.rfind('}') + 1 - 8;
      while (length + 8 < file.size() && file[static_cast<std::size_t>(length) + 8] == ' ') ++length;
      std::memcpy(file.data(), &length, 8);
    }
    accepts += accepted(file) ? 1 : 0;
  }
  CHECK(accepts > 50);
  CHECK(accepts < 3500);
}
