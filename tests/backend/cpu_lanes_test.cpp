// SPDX-License-Identifier: Apache-2.0
// The vector functions that the CPU's activations, softmax and sums are made of, over their whole range.
#include "fedlora/backend/cpu/lanes.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace fedlora::tests {

TEST_CASE("exp of float lanes over its whole range") {
  // Two units in the last place, from one end to the other.
  double worst = 0;
  for (int i = 0; i < 200000; i += 16) {
    cpu::Lanes<float> x;
    float at[16];
    for (int lane = 0; lane < 16; ++lane) at[lane] = static_cast<float>(-87.0 + 175.0 * (i + lane) / 200000.0);
    cpu::load<float>(x, at);
    cpu::exp_lanes(x);
    for (int lane = 0; lane < 16; ++lane)
      worst = std::max(worst, std::abs(static_cast<double>(x[lane]) / std::exp(static_cast<double>(at[lane])) - 1));
  }
  CHECK(worst <= 2e-7);
}

TEST_CASE("exp of float lanes at the edges") {
  cpu::Lanes<float> x{};
  const float at[16] = {0.0f,
                        -0.0f,
                        1e-40f,
                        -1e-40f,
                        -87.0f,
                        -88.0f,
                        -1000.0f,
                        -std::numeric_limits<float>::infinity(),
                        88.0f,
                        1.0f,
                        -1.0f,
                        0.34657f,
                        -0.34657f,
                        87.5f,
                        std::numeric_limits<float>::quiet_NaN(),
                        1e-8f};
  cpu::load<float>(x, at);
  cpu::exp_lanes(x);
  float y[cpu::lane_count<float>];
  cpu::store<float>(x, y);
  CHECK(y[0] == 1.0f);
  CHECK(y[1] == 1.0f);
  CHECK(y[2] == 1.0f);
  CHECK(y[3] == 1.0f);
  for (int lane = 4; lane < 8; ++lane) {  // below its range it is as good as zero
    CHECK(y[lane] >= 0.0f);
    CHECK(y[lane] <= 1.7e-38f);
  }
  CHECK(static_cast<double>(y[8]) == doctest::Approx(std::exp(88.0)).epsilon(2e-7));
  CHECK(std::isnan(y[14]));  // what is not a number must show
}

TEST_CASE("the normal distribution of float lanes over its whole range") {
  double worst = 0;       // against the largest value, one
  double worst_tail = 0;  // against itself, while exp(-x²/2) is above its floor
  for (int i = 0; i < 80000; i += 16) {
    cpu::Lanes<float> x, e, cdf;
    float at[16];
    for (int lane = 0; lane < 16; ++lane) at[lane] = static_cast<float>(-12.0 + 24.0 * (i + lane) / 80000.0);
    cpu::load<float>(x, at);
    e = x * x * -0.5f;
    cpu::exp_lanes(e);
    cpu::normal_cdf_lanes(x, e, cdf);
    for (int lane = 0; lane < 16; ++lane) {
      const double expected = 0.5 * std::erfc(-static_cast<double>(at[lane]) / std::sqrt(2.0));
      const double error = std::abs(static_cast<double>(cdf[lane]) - expected);
      worst = std::max(worst, error);
      worst_tail = std::max(worst_tail, error / expected);
    }
  }
  CHECK(worst <= 3e-7);
  CHECK(worst_tail <= 1e-5);  // exp(-x²/2) itself is known to |x²/2| units in the last place
}

TEST_CASE_TEMPLATE("lanes sum in a fixed order, tails included", T, float, double) {
  constexpr Index width = cpu::lane_count<T>;
  T values[width];
  double expected = 0;
  for (Index i = 0; i < width; ++i) {
    values[i] = static_cast<T>(1 << i % 12);
    expected += static_cast<double>(values[i]);
  }
  cpu::Lanes<T> lanes;
  cpu::load<T>(lanes, values);
  CHECK(static_cast<double>(cpu::sum_lanes<T>(lanes)) == expected);
}

}  // namespace fedlora::tests
