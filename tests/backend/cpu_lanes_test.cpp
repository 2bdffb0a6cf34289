// SPDX-License-Identifier: Apache-2.0
// The vector functions that the CPU's activations, softmax and sums are made of, over their whole range, and the tiles
// of its small products.
#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/backend/cpu/tile.hpp"
#include "fedlora/core/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fedlora::tests {
namespace {
constexpr int float_lanes = static_cast<int>(cpu::lane_count<float>);
}

TEST_CASE("exp of float lanes over its whole range") {
  // Two units in the last place, from one end to the other.
  double worst = 0;
  for (int i = 0; i < 200000; i += float_lanes) {
    cpu::Lanes<float> x;
    float at[float_lanes];
    for (int lane = 0; lane < float_lanes; ++lane) at[lane] = static_cast<float>(-87.0 + 175.0 * (i + lane) / 200000.0);
    cpu::load(x, at);
    cpu::exp_lanes(x);
    for (int lane = 0; lane < float_lanes; ++lane)
      worst = std::max(worst, std::abs(static_cast<double>(x[lane]) / std::exp(static_cast<double>(at[lane])) - 1));
  }
  CHECK(worst <= 2e-7);
}

TEST_CASE("exp of float lanes at the edges") {
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
  float y[16];
  for (int i = 0; i < 16; i += float_lanes) {
    cpu::Lanes<float> x;
    cpu::load(x, at + i);
    cpu::exp_lanes(x);
    cpu::store(x, y + i);
  }
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
  for (int i = 0; i < 80000; i += float_lanes) {
    cpu::Lanes<float> x, e, cdf;
    float at[float_lanes];
    for (int lane = 0; lane < float_lanes; ++lane) at[lane] = static_cast<float>(-12.0 + 24.0 * (i + lane) / 80000.0);
    cpu::load(x, at);
    e = x * x * -0.5f;
    cpu::exp_lanes(e);
    cpu::normal_cdf_lanes(x, e, cdf);
    for (int lane = 0; lane < float_lanes; ++lane) {
      const double expected = 0.5 * std::erfc(-static_cast<double>(at[lane]) / std::sqrt(2.0));
      const double error = std::abs(static_cast<double>(cdf[lane]) - expected);
      worst = std::max(worst, error);
      worst_tail = std::max(worst_tail, error / expected);
    }
  }
  CHECK(worst <= 3e-7);
  CHECK(worst_tail <= 1e-5);  // exp(-x²/2) itself is known to |x²/2| units in the last place
}

TEST_CASE_TEMPLATE("lanes sum by halves", T, float, double) {
  constexpr Index width = cpu::lane_count<T>;
  T values[width];
  std::fill_n(values, width, T(1));
  values[0] = std::ldexp(T(1), 60);  // takes in every 1 that it meets before it is gone again
  values[width / 2] = -values[0];
  cpu::Lanes<T> lanes;
  cpu::load(lanes, values);
  CHECK(cpu::sum_lanes(lanes) == static_cast<T>(width - 2));
}

TEST_CASE_TEMPLATE("several vectors are reduced at once", T, float, double) {
  constexpr Index width = cpu::lane_count<T>;
  const auto check = [&]<int Count>() {
    cpu::Lanes<T> vectors[Count];
    T sums[Count], largest[Count];
    for (int r = 0; r < Count; ++r) {
      T values[width];
      for (Index i = 0; i < width; ++i) values[i] = static_cast<T>((r + 1) * (i == (3 * r) % width ? 100 : i));
      cpu::load(vectors[r], values);
    }
    cpu::sum_each(vectors, sums);
    cpu::max_each(vectors, largest);
    for (int r = 0; r < Count; ++r) {
      const Index usual = width * (width - 1) / 2 - (3 * r) % width;
      CHECK(static_cast<double>(sums[r]) == static_cast<double>((r + 1) * (usual + 100)));
      CHECK(static_cast<double>(largest[r]) == static_cast<double>((r + 1) * 100));
    }
  };
  check.template operator()<1>();
  check.template operator()<2>();
  check.template operator()<4>();
  check.template operator()<8>();
}

TEST_CASE_TEMPLATE("vectors become columns", T, float, double) {
  constexpr int count = static_cast<int>(cpu::narrow_count<T>);
  cpu::NarrowLanes<T> rows[count];
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < count; ++j) rows[i][j] = static_cast<T>(10 * i + j);
  cpu::transpose(rows);
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < count; ++j) CHECK(static_cast<int>(rows[i][j]) == 10 * j + i);
}

TEST_CASE_TEMPLATE("small products of every tile, both ways to store the left factor", T, float, double) {
  RandomSequence draws(derive_key(3, Purpose::user));
  const auto draw = [&](Index size) {
    std::vector<T> values(static_cast<std::size_t>(size));
    for (T& value : values) value = static_cast<T>(2 * draws.uniform() - 1);
    return values;
  };
  const Index narrow = cpu::narrow_count<T>;
  for (const Index rows : {1, 2, 3, 4, 7, 8, 15})
    for (const Index width : {narrow, narrow + 1, 2 * narrow, 3 * narrow - 1, 5 * narrow, 8 * narrow, 15 * narrow + 2})
      for (const Index inner : {1, 2, 9}) {
        const auto left = draw(rows * inner), right = draw(inner * width), mask = draw(rows * width);
        const auto right_mask = draw(inner * width), row_scales = draw(rows), before = draw(rows * width);
        const auto check = [&](bool transposed, bool masked_right, cpu::Into into, bool by_row) {
          auto out = before;
          cpu::SmallProduct<T> product{.left = left.data(),
                                       .left_stride = transposed ? rows : inner,
                                       .right = right.data(),
                                       .right_stride = width,
                                       .inner = inner,
                                       .out = out.data(),
                                       .out_stride = width,
                                       .into = into,
                                       .scale = T(0.5),
                                       .row_scales = by_row ? row_scales.data() : nullptr,
                                       .mask = masked_right ? right_mask.data() : mask.data(),
                                       .mask_stride = width};
          if (!transposed)
            cpu::multiply_small<cpu::Left::rows>(product, rows, width);
          else if (masked_right)
            cpu::multiply_small<cpu::Left::columns, true>(product, rows, width);
          else
            cpu::multiply_small<cpu::Left::columns>(product, rows, width);
          double worst = 0;
          for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < width; ++j) {
              const auto at = [](const std::vector<T>& values, Index place) {
                return static_cast<double>(values[static_cast<std::size_t>(place)]);
              };
              double expected = 0;
              for (Index k = 0; k < inner; ++k)
                expected += at(left, transposed ? k * rows + i : i * inner + k) * at(right, k * width + j) *
                            (masked_right ? at(right_mask, k * width + j) : 1.0);
              expected *= by_row ? at(row_scales, i) : 0.5;
              if (into == cpu::Into::add_masked) expected *= at(mask, i * width + j);
              if (into != cpu::Into::overwrite) expected += at(before, i * width + j);
              worst = std::max(worst, std::abs(at(out, i * width + j) - expected));
            }
          CHECK(worst <= (sizeof(T) == 4 ? 1e-6 : 1e-14));
        };
        for (const bool by_row : {false, true})
          for (const auto into : {cpu::Into::overwrite, cpu::Into::add, cpu::Into::add_masked}) {
            check(false, false, into, by_row);
            check(true, false, into, by_row);
            if (into != cpu::Into::add_masked) check(true, true, into, by_row);
          }
      }
}

}  // namespace fedlora::tests
