// SPDX-License-Identifier: Apache-2.0
// The products of Blas on the host, in every type and with every transposition, against float64: the mapping to BLAS,
// which counts columns first, is the one a GPU gets.
#include "fedlora/backend/cuda/blas.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"
#include "fedlora/backend/cuda/arena.cuh"

namespace fedlora::tests {
namespace {

using cuda::Blas;
using cuda::DeviceMemory;
using cuda::FloatMath;
using cuda::Stream;

/// alpha · a b + beta · c, in double.
Values product(double alpha, const Values& a, const Values& b, double beta, const Values& c) {
  Values result(c.rows, c.cols);
  for (Index i = 0; i < c.rows; ++i)
    for (Index j = 0; j < c.cols; ++j) {
      double sum = 0;
      for (Index k = 0; k < a.cols; ++k) sum += a(i, k) * b(k, j);
      result(i, j) = alpha * sum + (beta == 0 ? 0 : beta * c(i, j));
    }
  return result;
}

struct Case {
  Index m, n, k;
  Rows kind;
  double alpha = 1;
  double beta = 0;
};

template <class N, class C>
void check_product(const Case& c, bool transpose_a, bool transpose_b) {
  using T = typename N::T;
  CAPTURE(c.m);
  CAPTURE(c.n);
  CAPTURE(c.k);
  CAPTURE(transpose_a);
  CAPTURE(transpose_b);
  const Values a = random_in<T>(c.m, c.k, 1), b = random_in<T>(c.k, c.n, 2), before = random_in<C>(c.m, c.n, 3);
  const DeviceMatrix<T> a_in(transpose_a ? transposed(a) : a, c.kind), b_in(transpose_b ? transposed(b) : b, c.kind);
  const auto run = [&](std::uint64_t seed) {
    DeviceMatrix<C> result = c.beta == 0 ? DeviceMatrix<C>(c.m, c.n, c.kind) : DeviceMatrix<C>(before, c.kind);
    Blas blas(DeviceMemory(), Stream{seed});
    const MatrixView<C> to = result.view();
    blas.multiply<T>(transpose_a, transpose_b, c.m, c.n, c.k, static_cast<float>(c.alpha), a_in.in().data,
                     a_in.in().stride, b_in.in().data, b_in.in().stride, static_cast<float>(c.beta), to.data, to.stride,
                     N::math);
    return result;
  };
  const DeviceMatrix<C> result = run(1);
  const double bound = std::is_same_v<C, T> ? N::tolerance : 2e-6;  // 16-bit products are exact
  check_matrix(result, product(c.alpha, a, b, c.beta, before), bound, "C");
  CHECK(run(2).same_bits(result));
}

template <class N>
void check_products(const Case& c) {
  using T = typename N::T;
  for (const bool transpose_a : {false, true})
    for (const bool transpose_b : {false, true}) {
      check_product<N, T>(c, transpose_a, transpose_b);
      if constexpr (!std::is_same_v<T, float>) check_product<N, float>(c, transpose_a, transpose_b);
    }
}

template <class N>
void check_bias(Index rows, Index out, Index in, Rows kind, bool with_bias) {
  using T = typename N::T;
  CAPTURE(rows);
  CAPTURE(out);
  CAPTURE(in);
  const Values x = random_in<T>(rows, in, 4), w = random_in<T>(out, in, 5), bias = random_in<T>(1, out, 6);
  const DeviceMatrix<T> x_in(x, kind), w_in(w, kind), bias_in(bias, kind);
  Values expected = times_transposed(x, w);
  for (Index i = 0; i < rows && with_bias; ++i)
    for (Index j = 0; j < out; ++j) expected(i, j) += bias(0, j);
  const auto run = [&](std::uint64_t seed) {
    DeviceMatrix<T> y(rows, out, kind);
    Blas blas(DeviceMemory(), Stream{seed});
    blas.multiply_bias<T>(x_in.in(), w_in.in(), with_bias ? bias_in.in().data : nullptr, y.view(), N::math);
    return y;
  };
  const DeviceMatrix<T> y = run(1);
  check_matrix(y, expected, N::tolerance, "y");
  CHECK(run(2).same_bits(y));
}

}  // namespace

TEST_CASE_TEMPLATE("products at every size, with every transposition", N, FEDLORA_TEST_NUMBERS) {
  for (const Rows kind : {Rows::aligned, Rows::odd})
    for (const Index size : {0, 1, 31, 32, 33, 61}) {
      check_products<N>({size, 33, 17, kind});
      check_products<N>({17, size, 33, kind, 0.5, 1});
      check_products<N>({33, 17, size, kind, -2, 0.5});
    }
}

TEST_CASE_TEMPLATE("a product of nothing scales C, and alone a beta of 0 does not read it", N, FEDLORA_TEST_NUMBERS) {
  for (const Rows kind : {Rows::aligned, Rows::odd})
    for (const double beta : {0.0, 1.0, -0.75}) {
      check_products<N>({70, 37, 0, kind, 1, beta});
      check_products<N>({3, 5, 4, kind, 0, beta});
    }
}

TEST_CASE("an alpha of 0 reads no operand") {
  DeviceMatrix<float> nan(3, 3, Rows::aligned), c(random_values(3, 3, 1), Rows::aligned);
  const MatrixView<float> a = nan.view(), to = c.view();
  Blas blas(DeviceMemory(), Stream{});
  blas.multiply<float>(false, false, 3, 3, 3, 0.0f, a.data, a.stride, a.data, a.stride, 2.0f, to.data, to.stride);
  check_matrix(c, sum_of(random_values(3, 3, 1), random_values(3, 3, 1)), 1e-7, "C");
}

TEST_CASE_TEMPLATE("products with a bias, in one kernel or two", N, FEDLORA_TEST_NUMBERS) {
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    for (const Index size : {0, 1, 31, 32, 33, 61}) {
      check_bias<N>(size, 19, 33, kind, true);
      check_bias<N>(33, size, 16, kind, true);
      check_bias<N>(19, 33, size, kind, true);
    }
    check_bias<N>(5, 300, 40, kind, false);
    check_bias<N>(40, 65, 7, kind, true);
  }
}

TEST_CASE("a bias that no vector begins with is added all the same") {
  const Values x = random_in<Bf16>(4, 16, 1), w = random_in<Bf16>(24, 16, 2), bias = random_in<Bf16>(1, 25, 3);
  const DeviceMatrix<Bf16> x_in(x, Rows::aligned), w_in(w, Rows::aligned), bias_in(bias, Rows::aligned);
  DeviceMatrix<Bf16> y(4, 24, Rows::aligned);
  Blas blas(DeviceMemory(), Stream{});
  blas.multiply_bias(x_in.in(), w_in.in(), bias_in.in().data + 1, y.view());
  Values expected = times_transposed(x, w);
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 24; ++j) expected(i, j) += bias(0, j + 1);
  check_matrix(y, expected, 6e-3, "y");
}

TEST_CASE("float operands are rounded to tf32 where that is asked for") {
  const float a = 1.0f + 0x1p-11f;  // rounds up to 1 + 2^-10
  float c = NAN;
  Blas blas(DeviceMemory(), Stream{});
  blas.multiply<float>(false, false, 1, 1, 1, 1.0f, &a, 1, &a, 1, 0.0f, &c, 1, FloatMath::tf32);
  CHECK(c == 1.0f + 0x1p-9f + 0x1p-20f);
  blas.multiply<float>(false, false, 1, 1, 1, 1.0f, &a, 1, &a, 1, 0.0f, &c, 1, FloatMath::float32);
  CHECK(c == 1.0f + 0x1p-10f + 0x1p-22f);
}

TEST_CASE("the preset of C in blocks of threads, by vectors or not") {
  const Values bias = random_values(1, 1030, 1);
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    const DeviceMatrix<float> bias_in(bias, kind);
    const DeviceMatrix<float> x(7, 0, kind), w(1030, 0, kind);
    DeviceMatrix<float> y(7, 1030, kind);
    Blas blas(DeviceMemory(), Stream{});
    blas.multiply_bias(x.in(), w.in(), bias_in.in().data, y.view());
    Values expected(7, 1030);
    for (Index i = 0; i < 7; ++i)
      for (Index j = 0; j < 1030; ++j) expected(i, j) = bias(0, j);
    check_matrix(y, expected, 0.0, "y");
  }
}

TEST_CASE("shapes that do not fit are refused") {
  float data[64] = {};
  Blas blas(DeviceMemory(), Stream{});
  const auto multiply = [&](bool transpose_a, bool transpose_b, Index m, Index n, Index k, Index lda, Index ldb,
                            Index ldc) {
    blas.multiply<float>(transpose_a, transpose_b, m, n, k, 1.0f, data, lda, data, ldb, 0.0f, data, ldc);
  };
  check_error<ShapeError>([&] { multiply(false, false, -1, 2, 3, 3, 2, 2); },
                          {"[cuda::Blas::multiply]", "(-1, 3) by (3, 2)"});
  check_error<ShapeError>([&] { multiply(false, false, 2, 4, 3, 2, 4, 4); }, {"rows of A at least 3 apart, got 2"});
  check_error<ShapeError>([&] { multiply(true, false, 2, 4, 3, 1, 4, 4); }, {"rows of A at least 2 apart, got 1"});
  check_error<ShapeError>([&] { multiply(false, false, 2, 4, 3, 3, 3, 4); }, {"rows of B at least 4 apart, got 3"});
  check_error<ShapeError>([&] { multiply(false, true, 2, 4, 3, 3, 2, 4); }, {"rows of B at least 3 apart, got 2"});
  check_error<ShapeError>([&] { multiply(false, false, 2, 4, 3, 3, 4, 3); }, {"rows of C at least 4 apart, got 3"});
  const auto bias = [&](MatrixView<float> x, MatrixView<float> w, MatrixView<float> y) {
    blas.multiply_bias<float>(x, w, data, y);
  };
  check_error<ShapeError>(
      [&] {
        bias({data, 2, 3}, {data, 4, 2}, {data, 2, 4});
      },
      {"[cuda::Blas::multiply_bias]", "W of 3 columns, got (4, 2)"});
  check_error<ShapeError>([&] { bias({data, 2, 3}, {data, 4, 3}, {data, 2, 3}); }, {"y of shape (2, 4), got (2, 3)"});
  check_error<ShapeError>([&] { bias({data, 2, 3, 2}, {data, 4, 3}, {data, 2, 4}); }, {"rows of x at least 3 apart"});
}

TEST_CASE("operands that leave their memory are seen") {
  const DeviceMemory memory;
  cuda::Arena arena(memory, Stream{}, "products");
  const MatrixView<float> a = arena.matrix<float>(4, 8), b = arena.matrix<float>(8, 5), c = arena.matrix<float>(4, 5);
  cuda::set_zero(a.data, a.rows * a.stride, Stream{});
  cuda::set_zero(b.data, b.rows * b.stride, Stream{});
  Blas blas(memory, Stream{});
  const auto multiply = [&](Index m, Index n, Index k) {
    blas.multiply<float>(false, false, m, n, k, 1.0f, a.data, a.stride, b.data, b.stride, 0.0f, c.data, c.stride);
  };
  multiply(4, 5, 8);
  CHECK(c(3, 4) == 0.0f);
  check_error<cuda::KernelFault>([&] { multiply(5, 5, 8); }, {"[cuda::Blas, A]", "128 for a piece of products"});
  arena.reset();
  check_error<cuda::KernelFault>([&] { multiply(4, 5, 8); }, {"[cuda::Blas, B]", "memory that is not in use"});
}

}  // namespace fedlora::tests
