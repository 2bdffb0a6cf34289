// SPDX-License-Identifier: Apache-2.0
// LayerNorm and RMSNorm on the host, in every type, against float64.
#include "fedlora/backend/cuda/norm.cuh"

#include <doctest/doctest.h>

#include <cmath>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"

namespace fedlora::tests {
namespace {

using cuda::Stream;

/// The two statistics of every row: {mean, 1 / deviation}.
Values statistics_of(NormKind kind, const Values& x, double eps) {
  Values result(x.rows, 2);
  const auto size = static_cast<double>(x.cols);
  for (Index i = 0; i < x.rows; ++i) {
    double mean = 0, square = 0;
    if (kind == NormKind::layer_norm)
      for (Index j = 0; j < x.cols; ++j) mean += x(i, j) / size;
    for (Index j = 0; j < x.cols; ++j) square += (x(i, j) - mean) * (x(i, j) - mean) / size;
    result(i, 0) = mean;
    result(i, 1) = 1 / std::sqrt(square + eps);
  }
  return result;
}

Values norm_of(NormKind kind, const Values& x, const Values& gamma, const Values& beta, double eps) {
  const Values statistics = statistics_of(kind, x, eps);
  Values y(x.rows, x.cols);
  for (Index i = 0; i < x.rows; ++i)
    for (Index j = 0; j < x.cols; ++j)
      y(i, j) = gamma(0, j) * (x(i, j) - statistics(i, 0)) * statistics(i, 1) +
                (kind == NormKind::layer_norm ? beta(0, j) : 0.0);
  return y;
}

/// The gradient, by the chain rule through both statistics.
Values gradient_of(NormKind kind, const Values& x, const Values& gamma, const Values& dy, double eps) {
  const Values statistics = statistics_of(kind, x, eps);
  const auto size = static_cast<double>(x.cols);
  Values dx(x.rows, x.cols);
  for (Index i = 0; i < x.rows; ++i) {
    const double mean = statistics(i, 0), inverse = statistics(i, 1);
    double d_inverse = 0, d_mean = 0;
    for (Index j = 0; j < x.cols; ++j) {
      d_inverse += dy(i, j) * gamma(0, j) * (x(i, j) - mean);
      d_mean -= dy(i, j) * gamma(0, j) * inverse;
    }
    // d(1 / deviation) / dx_j = -(x_j - mean) / (size deviation³); the mean's part of it is zero.
    for (Index j = 0; j < x.cols; ++j)
      dx(i, j) = dy(i, j) * gamma(0, j) * inverse - d_inverse * inverse * inverse * inverse * (x(i, j) - mean) / size +
                 (kind == NormKind::layer_norm ? d_mean / size : 0.0);
  }
  return dx;
}

/// Everything about one shape: both passes, in place, accumulated, and in two orders of blocks and threads.
template <class T>
void check_norm(NormKind kind, Index rows, Index cols, Rows layout, double eps = 1e-5) {
  CAPTURE(static_cast<int>(kind));
  CAPTURE(rows);
  CAPTURE(cols);
  Values x = random_in<T>(rows, cols, 1);
  for (double& value : x.data) value = static_cast<double>(static_cast<float>(T(static_cast<float>(value + 0.5))));
  const Values gamma = random_in<T>(1, cols, 2), beta = random_in<T>(1, cols, 3);
  const Values dy = random_in<T>(rows, cols, 4), dx0 = random_in<T>(rows, cols, 5);
  const DeviceMatrix<T> x_in(x, layout), dy_in(dy, layout), gamma_in(gamma, layout), beta_in(beta, layout);
  const T* const shift = kind == NormKind::layer_norm ? beta_in.in().data : nullptr;

  const auto forward = [&](MatrixView<const T> from, MatrixView<T> to, DeviceMatrix<float>& statistics, Stream stream) {
    cuda::norm_forward<T>(kind, from, gamma_in.in().data, shift, eps, to, statistics.view(), stream);
  };
  DeviceMatrix<T> y(rows, cols, layout), y_again(x, layout);
  DeviceMatrix<float> statistics(rows, 2, layout), statistics_again(rows, 2, layout);
  forward(x_in.in(), y.view(), statistics, Stream{1});
  forward(y_again.in(), y_again.view(), statistics_again, Stream{2});
  check_matrix(y, norm_of(kind, x, gamma, beta, eps), rounding_bound<T>(4e-6), "y");
  if (cols > 0) check_matrix(statistics, statistics_of(kind, x, eps), 1e-6, "statistics");
  CHECK(statistics.intact());
  CHECK(y_again.same_bits(y));
  CHECK(statistics_again.same_bits(statistics));

  const auto backward = [&](MatrixView<const T> from, MatrixView<T> to, bool accumulate, Stream stream) {
    cuda::norm_backward<T>(kind, from, x_in.in(), statistics.in(), gamma_in.in().data, to, accumulate, stream);
  };
  const Values gradient = gradient_of(kind, x, gamma, dy, eps);
  DeviceMatrix<T> dx(rows, cols, layout), over(dy, layout), sum(dx0, layout), sum_again(dx0, layout);
  backward(dy_in.in(), dx.view(), false, Stream{1});
  backward(over.in(), over.view(), false, Stream{2});
  backward(dy_in.in(), sum.view(), true, Stream{1});
  backward(dy_in.in(), sum_again.view(), true, Stream{2});
  check_matrix(dx, gradient, rounding_bound<T>(4e-6), "dx");
  CHECK(over.same_bits(dx));
  check_matrix(sum, sum_of(gradient, dx0), rounding_bound<T>(4e-6), "dx + …");
  CHECK(sum_again.same_bits(sum));
}

}  // namespace

TEST_CASE_TEMPLATE("normalisation at every size", T, float, Bf16, Half) {
  for (const NormKind kind : {NormKind::layer_norm, NormKind::rms_norm})
    for (const Rows layout : {Rows::aligned, Rows::odd}) {
      for (const Index rows : {0, 1, 31, 33}) check_norm<T>(kind, rows, 40, layout);
      for (const Index cols : {0, 1, 31, 32, 33, 61, 384, 768}) check_norm<T>(kind, 5, cols, layout, 0.25);
    }
}

TEST_CASE_TEMPLATE("normalisation by a warp, by blocks, and of rows that registers do not hold", T, float, Bf16, Half) {
  for (const NormKind kind : {NormKind::layer_norm, NormKind::rms_norm}) {
    for (const Index cols : {1024, 1032, 4096, 4104, 8192, 8200, 17000}) check_norm<T>(kind, 2, cols, Rows::aligned);
    for (const Index cols : {1025, 4097, 8193}) check_norm<T>(kind, 2, cols, Rows::odd);
    check_norm<T>(kind, 2, 2047, Rows::aligned);  // whole vectors but for the last
  }
}

TEST_CASE("the gradient of the reference is the slope of its norm") {
  for (const NormKind kind : {NormKind::layer_norm, NormKind::rms_norm}) {
    const Values x = random_values(3, 17, 1), gamma = random_values(1, 17, 2), beta = random_values(1, 17, 3);
    const Values dy = random_values(3, 17, 4), along = random_values(3, 17, 5);
    const auto f = [&](double h) { return dot(norm_of(kind, sum_of(x, along, h), gamma, beta, 1e-3), dy); };
    const double slope = (f(1e-5) - f(-1e-5)) / 2e-5;
    CHECK(dot(gradient_of(kind, x, gamma, dy, 1e-3), along) == doctest::Approx(slope).epsilon(1e-7));
  }
}

TEST_CASE_TEMPLATE("a row does not depend on the others, nor much on how it lies in memory", T, float, Bf16, Half) {
  constexpr Index rows = 7;
  for (const Index cols : {72, 1032, 4104}) {
    CAPTURE(cols);
    const Values x = random_in<T>(rows, cols, 1), gamma = random_in<T>(1, cols, 2), beta = random_in<T>(1, cols, 3);
    const DeviceMatrix<T> x_in(x, Rows::aligned), gamma_in(gamma, Rows::aligned), beta_in(beta, Rows::aligned);
    DeviceMatrix<T> y(rows, cols, Rows::aligned), y_odd(rows, cols, Rows::odd);
    DeviceMatrix<float> statistics(rows, 2, Rows::aligned);
    const auto forward = [&](Index begin, Index end, const DeviceMatrix<T>& weights, DeviceMatrix<T>& to) {
      cuda::norm_forward<T>(NormKind::layer_norm, x_in.in().rows_between(begin, end), weights.in().data,
                            beta_in.in().data, 1e-5, to.view().rows_between(begin, end),
                            statistics.view().rows_between(begin, end), Stream{1});
    };
    forward(0, rows, gamma_in, y);
    DeviceMatrix<T> alone(rows, cols, Rows::aligned);
    for (Index i = 0; i < rows; ++i) forward(i, i + 1, gamma_in, alone);
    CHECK(alone.same_bits(y));
    forward(0, rows, gamma_in, y_odd);
    CHECK(error_of(y_odd.values(), y.values()) <= rounding_bound<T>(4e-6));
    const DeviceMatrix<T> gamma_odd(gamma, Rows::odd);
    forward(0, rows, gamma_odd, alone);
    CHECK(error_of(alone.values(), y.values()) <= rounding_bound<T>(4e-6));
    CHECK(alone.intact());
  }
}

TEST_CASE_TEMPLATE("one operand that cannot be read by vectors is enough", T, float, Bf16, Half) {
  constexpr Index rows = 3, cols = 72;
  constexpr double eps = 1e-5;
  const Values x = random_in<T>(rows, cols, 1), gamma = random_in<T>(1, cols, 2), beta = random_in<T>(1, cols, 3);
  const Values dy = random_in<T>(rows, cols, 4);
  for (int odd = 0; odd < 6; ++odd) {
    CAPTURE(odd);
    const auto layout = [&](int operand) { return operand == odd ? Rows::odd : Rows::aligned; };
    const DeviceMatrix<T> x_in(x, layout(0)), gamma_in(gamma, layout(1)), beta_in(beta, layout(2)),
        dy_in(dy, layout(3));
    DeviceMatrix<T> y(rows, cols, layout(4)), dx(rows, cols, layout(5));
    DeviceMatrix<float> statistics(rows, 2, Rows::aligned);
    cuda::norm_forward<T>(NormKind::layer_norm, x_in.in(), gamma_in.in().data, beta_in.in().data, eps, y.view(),
                          statistics.view(), Stream{1});
    check_matrix(y, norm_of(NormKind::layer_norm, x, gamma, beta, eps), rounding_bound<T>(4e-6), "y");
    cuda::norm_backward<T>(NormKind::layer_norm, dy_in.in(), x_in.in(), statistics.in(), gamma_in.in().data, dx.view(),
                           false, Stream{1});
    check_matrix(dx, gradient_of(NormKind::layer_norm, x, gamma, dy, eps), rounding_bound<T>(4e-6), "dx");
  }
}

TEST_CASE("a far mean does not lose the deviation") {
  // Var as E[x²] - E[x]² would have no correct digit left in float.
  for (const Rows layout : {Rows::aligned, Rows::odd}) {
    Values x = random_values(3, 48, 1), gamma(1, 48), beta(1, 48);
    for (double& value : x.data) value = static_cast<double>(static_cast<float>(4096 + value));
    for (double& value : gamma.data) value = 1;
    const DeviceMatrix<float> x_in(x, layout), gamma_in(gamma, layout), beta_in(beta, layout);
    DeviceMatrix<float> y(3, 48, layout), statistics(3, 2, layout);
    cuda::norm_forward<float>(NormKind::layer_norm, x_in.in(), gamma_in.in().data, beta_in.in().data, 1e-12, y.view(),
                              statistics.view(), Stream{1});
    check_matrix(y, norm_of(NormKind::layer_norm, x, gamma, beta, 1e-12), 1e-3, "y");
  }
}

TEST_CASE("shapes that do not fit are refused by name") {
  DeviceMatrix<float> x(4, 8, Rows::aligned), narrow(4, 7, Rows::aligned), statistics(4, 2, Rows::aligned);
  const auto forward = [&](DeviceMatrix<float>& y, DeviceMatrix<float>& numbers) {
    cuda::norm_forward<float>(NormKind::layer_norm, x.in(), x.in().data, x.in().data, 1e-5, y.view(), numbers.view(),
                              Stream{});
  };
  check_error<ShapeError>([&] { forward(narrow, statistics); }, {"cuda::norm_forward", "y of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { forward(x, narrow); }, {"statistics of shape (4, 2)", "(4, 7)"});
  const auto backward = [&](DeviceMatrix<float>& from, DeviceMatrix<float>& numbers, DeviceMatrix<float>& dx) {
    cuda::norm_backward<float>(NormKind::rms_norm, x.in(), from.in(), numbers.in(), x.in().data, dx.view(), false,
                               Stream{});
  };
  check_error<ShapeError>([&] { backward(narrow, statistics, x); },
                          {"cuda::norm_backward", "x of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { backward(x, narrow, x); }, {"statistics of shape (4, 2)", "(4, 7)"});
  check_error<ShapeError>([&] { backward(x, statistics, narrow); }, {"dx of shape (4, 8)", "(4, 7)"});
}

}  // namespace fedlora::tests
