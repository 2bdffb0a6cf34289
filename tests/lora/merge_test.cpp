// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "errors.hpp"
#include "fedlora/lora/merge.hpp"

namespace fedlora::tests {
namespace {

/// One module of 3 inputs and 2 outputs, rank 2, scale 4.
Adapter<double> small_adapter() {
  auto layout = std::make_shared<AdapterLayout>();
  layout->add_site("layer.query", 3, 2, 2, 8);
  return {layout, {1, 2, 3, -1, 0, 2, /*B*/ 0.5, 1, 0, -2}};
}

TEST_CASE("merging adds scale B A, and unmerging takes it out") {
  const Adapter<double> adapter = small_adapter();
  CHECK(dense_update(adapter, 0) == std::vector<double>{-2, 4, 14, 8, 0, -16});
  const std::vector<float> before = {1, 1, 1, 0.5f, 0.25f, -3};
  std::vector<float> weight = before;
  merge(adapter, 0, std::span<float>(weight));
  CHECK(weight == std::vector<float>{-1, 5, 15, 8.5f, 0.25f, -19});
  unmerge(adapter, 0, std::span<float>(weight));
  CHECK(weight == before);
}

TEST_CASE("merging rounds once, from double") {
  auto layout = std::make_shared<AdapterLayout>();
  layout->add_site("m", 1, 1, 2, 2);
  // Each product alone would vanish beside 1 in float; their sum in double does not.
  const Adapter<double> adapter(layout, {1, 1, 4e-8, 4e-8});
  std::vector<float> weight = {1};
  merge(adapter, 0, std::span<float>(weight));
  CHECK(weight[0] == static_cast<float>(1 + 8e-8));
  CHECK(weight[0] > 1.0f);
}

TEST_CASE("a weight of another size is refused") {
  const Adapter<double> adapter = small_adapter();
  std::vector<float> weight(5);
  check_error<ShapeError>([&] { merge(adapter, 0, std::span<float>(weight)); }, {"layer.query", "6", "5"});
}

}  // namespace
}  // namespace fedlora::tests
