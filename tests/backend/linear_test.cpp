// SPDX-License-Identifier: Apache-2.0
// Linear layers of every backend against naive products in double.
#include "conformance.hpp"

namespace fedlora::tests {
namespace {

constexpr Index row_counts[] = {0, 1, 2, 17, 65};
constexpr Index widths[] = {1, 15, 16, 17, 31, 32, 33, 61};

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
  using T = typename B::Scalar;
  [[maybe_unused]] const typename B::ThreadScope scope{};
  for (const Index rows : row_counts)
    for (const Index in : widths)
      for (const Index out : {Index{1}, Index{16}, Index{33}}) {
        CAPTURE(rows);
        CAPTURE(in);
        CAPTURE(out);
        const Values x = random_values(rows, in, 1);
        const Values w = random_values(out, in, 2);
        const Values bias = random_values(1, out, 3);
        const FrozenMatrix weight = frozen<B>(w);
        const Guarded<T> x_in(x);
        Guarded<T> bias_in(bias);
        Guarded<T> plain(rows, out);
        Guarded<T> biased(rows, out);
        B::linear_forward(x_in.in(), weight, nullptr, plain.view());
        B::linear_forward(x_in.in(), weight, bias_in.row(), biased.view());
        check_close(plain, times_transposed(x, w), tolerance<B>, "x Wᵀ");
        check_close(biased, with_bias(times_transposed(x, w), bias), tolerance<B>, "x Wᵀ + bias");

        const Values dy = random_values(rows, out, 4);
        const Values dx0 = random_values(rows, in, 5);
        const Guarded<T> dy_in(dy);
        Guarded<T> dx(rows, in);
        Guarded<T> added(dx0);
        B::linear_backward(dy_in.in(), weight, dx.view(), false);
        B::linear_backward(dy_in.in(), weight, added.view(), true);
        check_close(dx, times(dy, w), tolerance<B>, "dy W");
        check_close(added, sum_of(times(dy, w), dx0), tolerance<B>, "dx + dy W");
      }
}
TEST_CASE_TEMPLATE_APPLY(linear, Backends);

TEST_CASE_TEMPLATE_DEFINE("a trainable linear layer, forward and backward", B, dense) {
  using T = typename B::Scalar;
  [[maybe_unused]] const typename B::ThreadScope scope{};
  for (const Index rows : {Index{1}, Index{5}, Index{33}})
    for (const Index in : {Index{1}, Index{17}, Index{32}})
      for (const Index out : {Index{1}, Index{3}, Index{16}}) {
        const Values x = random_values(rows, in, 1), w = random_values(out, in, 2), bias = random_values(1, out, 3);
        const Values dy = random_values(rows, out, 4), dw0 = random_values(out, in, 5), db0 = random_values(1, out, 6);
        const Guarded<T> x_in(x), w_in(w), dy_in(dy);
        Guarded<T> bias_in(bias), y(rows, out), dw(dw0), db(db0), dx(rows, in);
        B::dense_forward(x_in.in(), w_in.in(), bias_in.row(), y.view());
        check_close(y, with_bias(times_transposed(x, w), bias), tolerance<B>, "y");
        B::dense_backward(dy_in.in(), x_in.in(), w_in.in(), dw.view(), db.row(), dx.view());
        check_close(dw, sum_of(transposed_times(dy, x), dw0), tolerance<B>, "dw");
        check_close(dx, times(dy, w), tolerance<B>, "dx");
        Values sums = db0;
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < out; ++j) sums(0, j) += dy(i, j);
        check_close(db, sums, tolerance<B>, "dbias");

        Guarded<T> only(dw0);  // without bias and dx
        B::dense_backward(dy_in.in(), x_in.in(), w_in.in(), only.view(), nullptr, MatrixView<T>{});
        CHECK(only.values().data == dw.values().data);
      }
}
TEST_CASE_TEMPLATE_APPLY(dense, Backends);

TEST_CASE_TEMPLATE_DEFINE("adopt widens what is stored, and keeps what need not be", B, adopt) {
  using T = typename B::Scalar;
  const auto values = std::make_shared<std::vector<T>>(std::vector<T>{1, 2, 3, 4, 5, 6});
  const auto bytes = std::as_bytes(std::span<const T>(*values));
  const FrozenMatrix same = B::adopt(dtype_of<T>, 2, 3, bytes, values, "w");
  CHECK(same.data == values->data());
  CHECK(same.rows == 2);
  CHECK(same.cols == 3);
  CHECK(same.dtype == dtype_of<T>);

  std::vector<std::byte> shifted(bytes.size() + 1);
  std::memcpy(shifted.data() + 1, bytes.data(), bytes.size());
  const FrozenMatrix copied = B::adopt(dtype_of<T>, 2, 3, std::span<const std::byte>(shifted).subspan(1), nullptr, "w");
  CHECK(copied.data != shifted.data() + 1);
  CHECK(copied.template view<T>()(1, 2) == T(6));

  const std::uint16_t half[2] = {0x3c00, 0xc000};   // 1, -2
  const std::uint16_t brain[2] = {0x3f80, 0xc000};  // 1, -2
  const double wide[2] = {0.5, -3};
  const auto f16 = B::adopt(Dtype::f16, 1, 2, std::as_bytes(std::span(half)), nullptr, "w");
  const auto bf16 = B::adopt(Dtype::bf16, 1, 2, std::as_bytes(std::span(brain)), nullptr, "w");
  const auto f64 = B::adopt(Dtype::f64, 1, 2, std::as_bytes(std::span(wide)), nullptr, "w");
  CHECK(f16.template view<T>()(0, 0) == T(1));
  CHECK(f16.template view<T>()(0, 1) == T(-2));
  CHECK(bf16.template view<T>()(0, 1) == T(-2));
  CHECK(f64.template view<T>()(0, 0) == T(0.5));
  CHECK(f64.template view<T>()(0, 1) == T(-3));
  CHECK_THROWS_AS(B::adopt(Dtype::i16, 1, 2, std::as_bytes(std::span(half)), nullptr, "w"), FormatError);
  CHECK_THROWS_AS(B::adopt(Dtype::f16, 1, 3, std::as_bytes(std::span(half)), nullptr, "w"), FormatError);
  const FrozenMatrix other{dtype_of<T> == Dtype::f32 ? Dtype::f64 : Dtype::f32, 1, 1, wide, nullptr};
  CHECK_THROWS_AS(other.template view<T>(), ShapeError);
}
TEST_CASE_TEMPLATE_APPLY(adopt, Backends);

}  // namespace fedlora::tests
