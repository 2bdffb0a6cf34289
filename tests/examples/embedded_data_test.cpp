// SPDX-License-Identifier: Apache-2.0
// What the programs carry is what lies in examples/data, byte for byte.
#include "embedded_data.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "support.hpp"

using namespace fedlora::examples;

TEST_CASE("the embedded files are the files") {
  const auto data = std::filesystem::path(FEDLORA_TEST_DIR) / ".." / "examples" / "data";
  int files = 0;
  const auto check = [&](const EmbeddedFile& file, const char* directory) {
    CAPTURE(file.name);
    const std::string expected = fedlora::tests::read_text(data / directory / file.name);
    const std::string bytes(reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size());
    CHECK((bytes == expected));
    CHECK(reinterpret_cast<std::uintptr_t>(file.bytes.data()) % 64 == 0);
    CHECK(embedded_file(file.name).data() == file.bytes.data());
    ++files;
  };
  for (const EmbeddedFile& file : embedded_model_files()) check(file, "stories260K");
  for (const EmbeddedFile& file : embedded_data_files()) check(file, "clinc150");
  CHECK(files == 6);
}

TEST_CASE("a file that is not embedded is empty") { CHECK(embedded_file("golden.json").empty()); }
