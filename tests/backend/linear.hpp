// SPDX-License-Identifier: Apache-2.0
// Linear layers of every backend against naive products in double.
#pragma once

#include "backend/conformance.hpp"

namespace fedlora::tests {
namespace {

Values with_bias(Values y, const Values& bias) {
  for (Index i = 0; i < y.rows; ++i)
    for (Index j = 0; j < y.cols; ++j) y(i, j) += bias(0, j);
  return y;
}

Values times(const Values& a, const Values& b) {
  Values result(a.rows, b.cols);
  for (Index i = 0; i < a.rows; ++i)
    for (Index k = 0; k < a.cols; ++k)
      for (Index j = 0; j < b.cols; ++j) result(i, j) += a(i, k) * b(k, j);
  return result;
}

Values transposed_times(const Values& a, const Values& b) {
  Values result(a.cols, b.cols);
  for (Index k = 0; k < a.rows; ++k)
    for (Index i = 0; i < a.cols; ++i)
      for (Index j = 0; j < b.cols; ++j) result(i, j) += a(k, i) * b(k, j);
  return result;
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("a frozen linear layer, forward and backward", B, linear) {
  using T = typename B::Element;
  Worker<B> run;
  in_every_layout<B>([&] {
    for (const Index rows : sizes<Index>({0, 1, 2, 17, 65}))
      for (const Index in : sizes<Index>({1, 15, 16, 17, 31, 32, 33, 61}))
        for (const Index out : sizes<Index>({1, 16, 33})) {
          CAPTURE(rows);
          CAPTURE(in);
          CAPTURE(out);
          const Values x = random_for<B>(rows, in, 1);
          const Values w = random_for<B>(out, in, 2);
          const Values bias = random_for<B>(1, out, 3);
          const FrozenMatrix weight = run.frozen(w);
          const Guarded<T> x_in(x);
          Guarded<T> bias_in(bias), plain(rows, out), biased(rows, out);
          run.linear_forward(x_in.in(), weight, nullptr, plain.view());
          run.linear_forward(x_in.in(), weight, bias_in.row(), biased.view());
          check_close(plain, times_transposed(x, w), product_tolerance<B>, "x Wᵀ");
          check_close(biased, with_bias(times_transposed(x, w), bias), product_tolerance<B>, "x Wᵀ + bias");

          const Values dy = random_for<B>(rows, out, 4);
          const Values dx0 = random_for<B>(rows, in, 5);
          const Guarded<T> dy_in(dy);
          Guarded<T> dx(rows, in), added(dx0);
          run.linear_backward(dy_in.in(), weight, dx.view(), false);
          run.linear_backward(dy_in.in(), weight, added.view(), true);
          check_close(dx, times(dy, w), product_tolerance<B>, "dy W");
          check_close(added, sum_of(times(dy, w), dx0), product_tolerance<B>, "dx + dy W");
        }
  });
}

TEST_CASE_TEMPLATE_DEFINE("a trainable linear layer, forward and backward", B, dense) {
  using T = typename B::Element;
  using S = typename B::Scalar;
  Worker<B> run;
  in_every_layout<B>([&] {
    for (const Index rows : {1, 5, 33})
      for (const Index in : {1, 17, 32})
        for (const Index out : {1, 3, 16}) {
          const Values x = random_for<B>(rows, in, 1), w = random_for<B>(out, in, 2), bias = random_for<B>(1, out, 3);
          const Values dy = random_for<B>(rows, out, 4);
          const Values dw0 = random_values(out, in, 5), db0 = random_values(1, out, 6);
          const Guarded<T> x_in(x), w_in(w), dy_in(dy);
          Guarded<T> bias_in(bias), y(rows, out), dx(rows, in);
          Guarded<S> dw(dw0), db(db0);
          run.dense_forward(x_in.in(), w_in.in(), bias_in.row(), y.view());
          check_close(y, with_bias(times_transposed(x, w), bias), product_tolerance<B>, "y");
          run.dense_backward(dy_in.in(), x_in.in(), w_in.in(), dw.view(), db.row(), dx.view());
          const double bound = rounds_operands<B> ? product_tolerance<B> : sum_tolerance<B>;
          check_close(dw, sum_of(transposed_times(dy, x), dw0), bound, "dw");
          check_close(dx, times(dy, w), product_tolerance<B>, "dx");
          Values sums = db0;
          for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < out; ++j) sums(0, j) += dy(i, j);
          check_close(db, sums, sum_tolerance<B>, "dbias");

          Guarded<S> only(dw0);  // without bias and dx
          run.dense_backward(dy_in.in(), x_in.in(), w_in.in(), only.view(), nullptr, MatrixView<T>{});
          CHECK(only.values().data == dw.values().data);
        }
  });
}

TEST_CASE_TEMPLATE_DEFINE("adopt converts what is stored, and keeps what need not be", B, adopt) {
  using T = typename B::Element;
  const B backend{};
  const auto numbers_in = [&](const FrozenMatrix& matrix) {
    const auto& values = backend.values(matrix);
    return std::vector<double>(values.begin(), values.end());
  };
  const auto values = std::make_shared<std::vector<T>>();
  for (int i = 1; i <= 6; ++i) values->push_back(element_of<T>(i));
  const auto bytes = std::as_bytes(std::span<const T>(*values));
  const FrozenMatrix same = backend.adopt(dtype_of<T>, 2, 3, bytes, values, "w");
  CHECK((same.data == values->data()) == !on_device<B>);
  CHECK(same.rows == 2);
  CHECK(same.cols == 3);
  CHECK(same.dtype == dtype_of<T>);
  CHECK(numbers_in(same) == std::vector<double>{1, 2, 3, 4, 5, 6});

  std::vector<std::byte> shifted(bytes.size() + 1);
  std::memcpy(shifted.data() + 1, bytes.data(), bytes.size());
  const FrozenMatrix copied =
      backend.adopt(dtype_of<T>, 2, 3, std::span<const std::byte>(shifted).subspan(1), nullptr, "w");
  CHECK(copied.data != shifted.data() + 1);
  CHECK(numbers_in(copied) == std::vector<double>{1, 2, 3, 4, 5, 6});

  const std::uint16_t half[2] = {0x3c00, 0xc000};   // 1, -2
  const std::uint16_t brain[2] = {0x3f80, 0xc000};  // 1, -2
  const float narrow[2] = {-0.25, 8};
  const double wide[2] = {0.5, -3};
  const auto adopted = [&](Dtype dtype, auto& stored) {
    return numbers_in(backend.adopt(dtype, 1, 2, std::as_bytes(std::span(stored)), nullptr, "w"));
  };
  CHECK(adopted(Dtype::f16, half) == std::vector<double>{1, -2});
  CHECK(adopted(Dtype::bf16, brain) == std::vector<double>{1, -2});
  CHECK(adopted(Dtype::f32, narrow) == std::vector<double>{-0.25, 8});
  CHECK(adopted(Dtype::f64, wide) == std::vector<double>{0.5, -3});
  CHECK_THROWS_AS(backend.adopt(Dtype::i16, 1, 2, std::as_bytes(std::span(half)), nullptr, "w"), FormatError);
  CHECK_THROWS_AS(backend.adopt(Dtype::f16, 1, 3, std::as_bytes(std::span(half)), nullptr, "w"), FormatError);
  const FrozenMatrix other{dtype_of<T> == Dtype::f32 ? Dtype::f64 : Dtype::f32, 1, 1, wide, nullptr};
  CHECK_THROWS_AS(other.template view<T>(), ShapeError);
}

}  // namespace fedlora::tests
