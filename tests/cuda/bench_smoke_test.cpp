// SPDX-License-Identifier: Apache-2.0
// The bench of LoRA kernels, run on the host: every variant is right, is recorded and measured, and what is wrong does
// not get that far.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "../../benchmarks/lora/measure.cuh"
#include "errors.hpp"

namespace fedlora::tests {
namespace {

using namespace fedlora::benchmarks;

Setup small_setup(cuda::FloatMath math = cuda::FloatMath::tf32) {
  Setup setup;
  setup.l2_bytes = device_facts(0).l2_bytes;
  setup.math = math;
  setup.warm_up_seconds = 0;
  setup.fewest_passes = 3;
  return setup;
}

Case layer(const std::string& op, double dropout, Index rank = 16) {
  return {op, 64, "32/48", {{32, {48}}}, rank, dropout};
}

/// Grouped queries, and a gate.
Case block(double dropout) {
  return {"block", 33, "24/40", {{24, {24, 8, 8}}, {24, {40, 40}}, {40, {24}}}, 3, dropout};
}

template <template <class> class... V>
std::vector<std::string> names_of(VariantList<V...>) {
  return {V<float>::name...};
}

template <class T>
void run_all(cuda::FloatMath math, const std::vector<Case>& cases) {
  const Setup setup = small_setup(math);
  for (const Case& shape : cases)
    for (const std::string& variant : names_of(Variants{})) {
      CAPTURE(shape.name(variant, ""));
      check<T>(setup, shape, variant);
      for (const bool cold : {true, false}) {
        const std::unique_ptr<Measurement> measurement = prepare<T>(setup, shape, variant, cold);
        CHECK(measurement->passes() >= 3);
        const Times times = measurement->measure();
        CHECK(times.base > 0);
        CHECK(times.adapted > 0);
      }
    }
}

/// Twice the term.
template <class T>
struct Doubled : Plain<T> {
  static constexpr const char* name = "doubled";
  using Plain<T>::Plain;
  void prepare(Layer<T>& layer) {
    for (LowRankTerm<T, float>& term : layer.terms) term.scale *= 2;
  }
};

/// Something else each time.
template <class T>
struct Unsteady : Plain<T> {
  static constexpr const char* name = "unsteady";
  using Plain<T>::Plain;
  void forward(Layer<T>& layer) {
    layer.terms[0].scale *= 1.01f;
    Plain<T>::forward(layer);
  }
};

/// Leaves out what it should write.
template <class T>
struct Idle : Plain<T> {
  static constexpr const char* name = "idle";
  using Plain<T>::Plain;
  void backward(Layer<T>&) {}
};

/// Allocates where it should not.
template <class T>
struct Growing : Plain<T> {
  static constexpr const char* name = "growing";
  explicit Growing(const Setup& setup) : Plain<T>(setup), memory(setup.memory), stream(setup.stream) {}
  void forward(Layer<T>& layer) {
    const cuda::DeviceBuffer buffer(memory, 64, "a test", stream);
    Plain<T>::forward(layer);
  }
  cuda::DeviceMemory memory;
  cuda::Stream stream;
};

}  // namespace

TEST_CASE("every variant is right, and is measured") {
  run_all<Bf16>(cuda::FloatMath::tf32, {layer("forward", 0), layer("backward", 0.1), block(0), block(0.1)});
  run_all<Half>(cuda::FloatMath::tf32, {layer("both", 0)});
  run_all<float>(cuda::FloatMath::float32, {layer("both", 0.1)});
  const std::unique_ptr<Measurement> base = prepare<float>(small_setup(), layer("both", 0), base_name, true);
  CHECK(base->measure().adapted > 0);
}

TEST_CASE("what is wrong is not measured") {
  const Setup setup = small_setup();
  const Case both = layer("both", 0);
  check_error<CudaError>([&] { check_variant<float, Doubled>(setup, both); },
                         {"[the variant doubled]", "the results of plain products"});
  check_error<CudaError>([&] { check_variant<float, Unsteady>(setup, both); },
                         {"[the variant unsteady]", "the same bits in two runs"});
  check_error<CudaError>([&] { check_variant<float, Idle>(setup, both); }, {"[the variant idle]", "finite results"});
  check_error<CudaError>([&] { Pair<float, Growing>(setup, both, false); }, {"expected no capture by this thread"});
  check_error<ConfigError>([&] { check<float>(setup, both, "unheard"); }, {"[variant]", "unheard"});
}

TEST_CASE("a case knows its name and the least work there is") {
  const Case one{"both", 64, "32/48", {{32, {48}}}, 16, 0.1};
  CHECK(one.name("fused", "bf16/cold") == "both_fused/64/32/48/r16/p0.1/bf16/cold");
  CHECK(one.bare().name("base", "f32/hot") == "both_base/64/32/48/r0/p0/f32/hot");
  CHECK(one.flops() == 4.0 * 64 * 32 * 48);
  // x and y, W; A and B, S
  CHECK(one.forward_bytes(2) == 2 * (64 * (32 + 48) + 32 * 48 + 16 * (32 + 48) + 64 * 16));
  CHECK(one.bare().forward_bytes(2) == 2 * (64 * (32 + 48) + 32 * 48));
  // dy, dx and x, W; A and B, S; gradients
  CHECK(one.backward_bytes(2) == 2 * (64 * (48 + 2 * 32) + 32 * 48 + 16 * (32 + 48) + 64 * 16) + 8 * 16 * (32 + 48));
  CHECK(one.bare().backward_bytes(2) == 2 * (64 * (48 + 32) + 32 * 48));
  CHECK(one.saved_bytes(2) == 2 * 64 * (32 + 16));
  CHECK(one.bare().saved_bytes(2) == 0);
  CHECK(copies_of(one, false, 2, 1 << 20) == 1);
  CHECK(copies_of(one, true, 2, 1 << 20) == 1 + (2 * (1 << 20) + 13311) / 13312);
}

TEST_CASE("the command line chooses") {
  const auto cases_of = [](std::vector<std::string> arguments) {
    std::vector<char*> argv = {arguments[0].data()};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    int argc = static_cast<int>(argv.size());
    Choice choice;
    choice.read(argc, argv.data());
    CHECK(argc == 1);
    return choice.cases();
  };
  const std::vector<Case> cases =
      cases_of({"--shapes=8/16/24,8/16/40", "--blocks=32/2048/8192", "--ranks=4", "--dropouts=0.25", "--ops=forward"});
  REQUIRE(cases.size() == 3);
  CHECK(cases[0].name("plain", "bf16") == "block_plain/32/2048/8192/r4/p0.25/bf16");
  CHECK(cases[0].flops() == 4.0 * 32 * 2048 * (2 * 2048 + 2 * 512 + 3 * 8192));
  CHECK(cases[2].name("plain", "bf16") == "forward_plain/8/16/40/r4/p0.25/bf16");
  CHECK(cases_of({"--shapes=8/16/24"}).size() == 6);
  check_error<ConfigError>([&] { cases_of({"--shapes=8/16"}); }, {"[--shapes]", "8/16"});
  check_error<ConfigError>([&] { cases_of({"--shapes=8/16/x"}); }, {"[--shapes]", "got x"});
  check_error<ConfigError>([&] { cases_of({"--shapes=8/16/0"}); }, {"[--shapes]", "got 0"});
  check_error<ConfigError>([&] { cases_of({"--blocks=8/16/24"}); }, {"[--blocks]", "768/3072", "16/24"});
  check_error<ConfigError>([&] { cases_of({"--shapes=8/16/24", "--dropouts=1"}); }, {"[--dropouts]", "got 1"});
  check_error<ConfigError>([&] { cases_of({"--shapes=8/16/24", "--ops=sideways"}); }, {"[--ops]", "sideways"});
}

}  // namespace fedlora::tests
