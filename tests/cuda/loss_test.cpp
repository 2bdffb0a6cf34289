// SPDX-License-Identifier: Apache-2.0
// Losses on the host, in every type, against float64.
#include "fedlora/backend/cuda/loss.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"

namespace fedlora::tests {
namespace {

/// Labels of which about every fifth is negative; the first is not.
std::vector<std::int32_t> some_labels(Index rows, Index classes) {
  RandomSequence draws(derive_key(3, Purpose::user, rows, classes));
  std::vector<std::int32_t> labels;
  for (Index i = 0; i < rows; ++i) {
    const auto drawn = static_cast<std::int32_t>(draws.below(static_cast<std::uint64_t>(classes)));
    labels.push_back(i > 0 && draws.below(5) == 0 ? -1 - static_cast<std::int32_t>(i) : drawn);
  }
  return labels;
}

struct Expected {
  Values losses, gradient;
  std::vector<std::int32_t> best;
};

/// −log softmax[label] and weight(i) · (softmax − one_hot).
template <class Weight>
Expected reference(const Values& logits, const std::vector<std::int32_t>& labels, Weight&& weight) {
  Expected result{Values(logits.rows, 1), Values(logits.rows, logits.cols), {}};
  for (Index i = 0; i < logits.rows; ++i) {
    Index best = 0;
    for (Index j = 1; j < logits.cols; ++j)
      if (logits(i, j) > logits(i, best)) best = j;
    result.best.push_back(static_cast<std::int32_t>(best));
    const std::int32_t label = labels[static_cast<std::size_t>(i)];
    if (label < 0) continue;
    double sum = 0;
    for (Index j = 0; j < logits.cols; ++j) sum += std::exp(logits(i, j) - logits(i, best));
    result.losses(i, 0) = std::log(sum) - (logits(i, label) - logits(i, best));
    for (Index j = 0; j < logits.cols; ++j)
      result.gradient(i, j) = weight(i) * (std::exp(logits(i, j) - logits(i, best)) / sum - (j == label ? 1.0 : 0.0));
  }
  return result;
}

template <class T>
void check_losses(const Values& logits, Rows kind, float weight = 0.25f) {
  CAPTURE(logits.rows);
  CAPTURE(logits.cols);
  const auto labels = some_labels(logits.rows, logits.cols);
  const Expected expected = reference(logits, labels, [&](Index) { return static_cast<double>(weight); });
  const auto rows = static_cast<std::size_t>(logits.rows);

  const auto run = [&](std::uint64_t seed, DeviceMatrix<T>& gradient, DeviceMatrix<float>& losses) {
    cuda::cross_entropy<T>(gradient.view(), labels.data(), &weight, losses.view().data, cuda::Stream{seed});
  };
  DeviceMatrix<T> gradient(logits, kind), again(logits, kind);
  DeviceMatrix<float> losses(1, logits.rows, Rows::odd), losses_again(1, logits.rows, Rows::odd);
  run(1, gradient, losses);
  run(2, again, losses_again);
  CHECK(gradient.same_bits(again));
  CHECK(losses.same_bits(losses_again));
  check_matrix(gradient, expected.gradient, rounding_bound<T>(1e-6), "gradient");
  check_matrix(losses, transposed(expected.losses), 1e-6, "losses");

  // The losses alone: the same bits, and the best columns.
  DeviceMatrix<T> untouched(logits, kind);
  const DeviceMatrix<T> before(logits, kind);
  DeviceMatrix<float> alone(1, logits.rows, Rows::odd), without_best(1, logits.rows, Rows::odd);
  std::vector<std::int32_t> best(rows + 1, -77);
  cuda::cross_entropy_loss<T>(untouched.in(), labels.data(), alone.view().data, best.data(), cuda::Stream{3});
  cuda::cross_entropy_loss<T>(untouched.in(), labels.data(), without_best.view().data, nullptr, cuda::Stream{4});
  CHECK(untouched.same_bits(before));
  CHECK(alone.same_bits(losses));
  CHECK(without_best.same_bits(losses));
  CHECK(best.back() == -77);
  best.pop_back();
  CHECK(best == expected.best);
}

}  // namespace

TEST_CASE_TEMPLATE("losses and gradients of few classes", T, float, Bf16, Half) {
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    for (const Index size : {0, 1, 31, 32, 33, 61}) {
      check_losses<T>(random_in<T>(size, 5, 1, 2.0), kind);
      if (size > 0) check_losses<T>(random_in<T>(5, size, 2, 3.0), kind);
    }
    check_losses<T>(random_in<T>(9, 2, 1, 2.0), kind);
    check_losses<T>(random_in<T>(6, 2048, 3, 4.0), kind);
  }
}

TEST_CASE_TEMPLATE("losses and gradients of a vocabulary", T, float, Bf16, Half) {
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    check_losses<T>(random_in<T>(3, 2049, 4, 4.0), kind);
    check_losses<T>(random_in<T>(5, 5003, 5, 4.0), kind);
    check_losses<T>(random_in<T>(3, 50257, 6, 4.0), kind);
  }
  check_losses<T>(random_in<T>(2, 128256, 7, 4.0), Rows::aligned, 65536.0f / 16.0f);
}

TEST_CASE_TEMPLATE("the order of sums does not depend on how rows lie in memory", T, float, Bf16, Half) {
  for (const Index cols : {2, 77, 6007}) {
    const Values logits = random_in<T>(4, cols, 8, 3.0);
    DeviceMatrix<T> aligned(logits, Rows::aligned), odd(logits, Rows::odd);
    const std::int32_t labels[4] = {1, 0, 1, 0};
    const float weight = 0.5f;
    float losses[2][4];
    cuda::cross_entropy<T>(aligned.view(), labels, &weight, losses[0], cuda::Stream{});
    cuda::cross_entropy<T>(odd.view(), labels, &weight, losses[1], cuda::Stream{});
    for (Index i = 0; i < 4; ++i) CHECK(losses[0][i] == losses[1][i]);
    CHECK(error_of(aligned.values(), odd.values()) == 0.0);
  }
}

TEST_CASE("logits far from zero, equal logits and excluded classes") {
  for (const Index cols : {7, 3001}) {
    Values logits = random_in<float>(4, cols, 9);
    const std::int32_t drawn = some_labels(4, cols)[2];
    for (Index j = 0; j < cols; ++j) {
      logits(0, j) += 3e4;
      logits(1, j) = -2.0;
      logits(2, j) = j % 3 == 1 || j == drawn ? logits(2, j) : static_cast<double>(-infinity);
      logits(3, j) *= 3e4;
    }
    logits(0, 5) = logits(0, 6) = 31000.0;
    check_losses<float>(logits, Rows::odd);

    const std::int32_t labels[4] = {5, 3, 4, 1};
    const Expected expected = reference(logits, {5, 3, 4, 1}, [](Index) { return 1.0; });
    DeviceMatrix<float> losses(1, 4, Rows::aligned);
    const DeviceMatrix<float> in(logits, Rows::aligned);
    std::int32_t best[4];
    cuda::cross_entropy_loss<float>(in.in(), labels, losses.view().data, best, cuda::Stream{});
    check_matrix(losses, transposed(expected.losses), 1e-6, "losses");
    CHECK(best[0] == 5);
    CHECK(best[1] == 0);
  }
}

TEST_CASE("logits that are not numbers make a loss and gradients that are not") {
  const float weight = 1.0f;
  for (const Index cols : {5, 3000})
    for (const float bad : {nan_value, infinity}) {
      DeviceMatrix<Half> logits(random_in<Half>(2, cols, 1), Rows::aligned);
      logits.view()(0, 3) = Half(bad);
      const std::int32_t labels[2] = {0, 1};
      float losses[2];
      cuda::cross_entropy<Half>(logits.view(), labels, &weight, losses, cuda::Stream{});
      CHECK_FALSE(std::isfinite(losses[0]));
      CHECK_FALSE(std::isfinite(static_cast<float>(logits.in()(0, 3))));
      CHECK(std::isfinite(losses[1]));
    }
}

TEST_CASE_TEMPLATE("clients in one batch have a weight each", T, float, Bf16, Half) {
  const Values logits = random_in<T>(9, 12, 2, 2.0);
  const std::int32_t slots[9] = {2, 2, 0, 0, 0, 1, 1, 2, 0};
  const float weights[3] = {0.5f, 0.125f, 2.0f};
  const auto labels = some_labels(9, 12);
  const Expected expected = reference(logits, labels, [&](Index i) { return static_cast<double>(weights[slots[i]]); });
  DeviceMatrix<T> gradient(logits, Rows::aligned);
  DeviceMatrix<float> losses(1, 9, Rows::aligned);
  cuda::cross_entropy<T>(gradient.view(), labels.data(), {weights, slots}, losses.view().data, cuda::Stream{});
  check_matrix(gradient, expected.gradient, rounding_bound<T>(1e-6), "gradient");
  check_matrix(losses, transposed(expected.losses), 1e-6, "losses");
}

TEST_CASE_TEMPLATE("losses of numbers and of flags do not depend on how rows lie, and a client has its weight", T,
                   float, Bf16, Half) {
  const std::int32_t slots[9] = {2, 2, 0, 0, 0, 1, 1, 2, 0};
  const float weights[3] = {0.5f, 0.125f, 2.0f};
  for (const Index cols : {1, 31, 32, 33, 100}) {
    CAPTURE(cols);
    const Values outputs = random_in<T>(9, cols, 2, 2.0);
    std::vector<float> flags(static_cast<std::size_t>(9 * cols));
    for (std::size_t i = 0; i < flags.size(); ++i) flags[i] = i % 3 == 0 ? 1.0f : 0.0f;
    Values expected(9, cols), losses(1, 9);
    for (Index i = 0; i < 9; ++i)
      for (Index j = 0; j < cols; ++j) {
        const double x = outputs(i, j), t = static_cast<double>(flags[static_cast<std::size_t>(i * cols + j)]);
        const double likely = 1 / (1 + std::exp(-x));
        losses(0, i) -= (t * std::log(likely) + (1 - t) * std::log(1 - likely)) / static_cast<double>(cols);
        expected(i, j) = static_cast<double>(weights[slots[i]]) * (likely - t) / static_cast<double>(cols);
      }
    DeviceMatrix<T> aligned(outputs, Rows::aligned), odd(outputs, Rows::odd);
    DeviceMatrix<float> first(1, 9, Rows::aligned), second(1, 9, Rows::aligned);
    cuda::binary_cross_entropy<T>(aligned.view(), flags.data(), {weights, slots}, first.view().data, cuda::Stream{1});
    cuda::binary_cross_entropy<T>(odd.view(), flags.data(), {weights, slots}, second.view().data, cuda::Stream{2});
    check_matrix(aligned, expected, rounding_bound<T>(1e-6), "gradient");
    check_matrix(first, losses, 1e-6, "losses");
    CHECK(first.same_bits(second));
    CHECK(error_of(aligned.values(), odd.values()) == 0.0);
  }
}

TEST_CASE("logits of a thousand have a finite loss, whatever the flag") {
  Values logits(2, 2);
  logits.data = {1000, -1000, 1000, -1000};
  const float flags[4] = {1, 0, 0, 1}, weight = 1;
  DeviceMatrix<float> gradient(logits, Rows::aligned), losses(1, 2, Rows::aligned);
  cuda::binary_cross_entropy<float>(gradient.view(), flags, &weight, losses.view().data, cuda::Stream{});
  CHECK(losses.values().data == std::vector<double>{0, 1000});
  CHECK(gradient.values().data == std::vector<double>{0, 0, 0.5, -0.5});
}

TEST_CASE("losses are summed in double, in one order") {
  for (const Index count : {0, 1, 31, 32, 33, 61, 1024, 5003}) {
    CAPTURE(count);
    DeviceMatrix<float> losses(random_values(1, count, 1), Rows::odd);
    double expected = 0, sizes = 0;
    for (Index i = 0; i < count; ++i) {
      expected += static_cast<double>(losses.in()(0, i));
      sizes += std::abs(static_cast<double>(losses.in()(0, i)));
    }
    double sums[4] = {std::nan(""), std::nan(""), 100.0, 100.0};
    for (int i = 0; i < 4; ++i)
      cuda::sum_losses(losses.in().data, count, &sums[i], i >= 2, cuda::Stream{static_cast<std::uint64_t>(i)});
    CHECK(std::abs(sums[0] - expected) <= 1e-14 * sizes);
    CHECK(sums[1] == sums[0]);
    CHECK(sums[2] == 100.0 + sums[0]);
    CHECK(sums[3] == sums[2]);
  }
  DeviceMatrix<float> losses(random_values(1, 4000, 2), Rows::aligned);
  const std::int32_t bounds[4] = {0, 37, 37, 4000};
  double sums[3] = {std::nan(""), std::nan(""), std::nan("")}, alone = std::nan("");
  cuda::sum_losses(losses.in().data, bounds, 3, sums, false, cuda::Stream{1});
  cuda::sum_losses(losses.in().data + 37, 3963, &alone, false, cuda::Stream{2});
  CHECK(sums[2] == alone);
  CHECK(sums[1] == 0.0);
  cuda::sum_losses(losses.in().data, 37, &alone, false, cuda::Stream{2});
  CHECK(sums[0] == alone);
}

TEST_CASE("logits without classes are refused") {
  DeviceMatrix<float> empty(2, 0, Rows::aligned);
  const std::int32_t labels[2] = {0, 0};
  float losses[2];
  const float weight = 1.0f;
  check_error<ShapeError>([&] { cuda::cross_entropy<float>(empty.view(), labels, &weight, losses, cuda::Stream{}); },
                          {"cuda::cross_entropy", "1 to 2^30 columns", "got 0"});
  check_error<ShapeError>([&] { cuda::cross_entropy_loss<float>(empty.in(), labels, losses, nullptr, cuda::Stream{}); },
                          {"cuda::cross_entropy_loss", "got 0"});
  check_error<ShapeError>(
      [&] { cuda::mean_squared_error<float>(empty.view(), nullptr, &weight, losses, cuda::Stream{}); },
      {"cuda::mean_squared_error", "at least one column", "got 0"});
}

}  // namespace fedlora::tests
