// SPDX-License-Identifier: Apache-2.0
// Small contracts that everything leans on: views, dtypes, the form of errors.
#include <doctest/doctest.h>

#include <string>

#include "fedlora/core/dtype.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

TEST_CASE("a view walks by its stride, and its rows are views of the same memory") {
  int memory[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const MatrixView<int> all(memory, 3, 2, 4);
  CHECK(all(0, 1) == 1);
  CHECK(all(2, 1) == 9);
  CHECK(all.size() == 6);
  const MatrixView<int> part = all.rows_between(1, 3);
  CHECK(part.rows == 2);
  CHECK(part.cols == 2);
  CHECK(part.stride == 4);
  CHECK(part.row(1) == memory + 8);
  const MatrixView<const int> read = part;
  CHECK(&read(0, 0) == memory + 4);
  CHECK(MatrixView<int>().empty());
  CHECK_FALSE(all.empty());
  CHECK(MatrixView<int>(memory, 3, 4).stride == 4);
  CHECK(shape_text(3, 4) == "(3, 4)");
}

TEST_CASE("dtypes know their size and find themselves by name") {
  for (const auto& facts : detail::dtype_facts) {
    CHECK(dtype_from_name(dtype_name(facts.dtype)) == facts.dtype);
    CHECK(static_cast<int>(dtype_size(facts.dtype)) == (dtype_bits(facts.dtype) + 7) / 8);
  }
  CHECK(dtype_size(Dtype::bf16) == 2);
  CHECK(dtype_size(Dtype::f64) == 8);
  CHECK(dtype_size(Dtype::f4) == 1);
  CHECK_FALSE(dtype_from_name("F128").has_value());
  CHECK_FALSE(dtype_from_name("f32").has_value());
}

TEST_CASE("an error says where, what was expected and what came, and is one of the library's") {
  std::string message;
  try {
    fail<FormatError>("a.json, field x", "a number", "\"y\"");
  } catch (const Error& error) {
    message = error.what();
    CHECK(dynamic_cast<const FormatError*>(&error) != nullptr);
  }
  CHECK(message == "[a.json, field x] expected a number, got \"y\"");
}

}  // namespace fedlora
