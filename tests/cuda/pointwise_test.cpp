// SPDX-License-Identifier: Apache-2.0
// Activations, residual sums, dropout, copies, conversions and column sums on the host, in every type, against float64.
#include "fedlora/backend/cuda/pointwise.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"
#include "fedlora/backend/cpu/dropout.hpp"

namespace fedlora::tests {
namespace {

using cuda::Stream;

constexpr Activation activations[] = {Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                      Activation::silu, Activation::tanh,      Activation::mish};

struct Shape {
  Index rows, cols;
};
/// Every size in both directions; more than one tile of rows and columns; few rows, and wide ones.
constexpr Shape every_shape[] = {{0, 40}, {1, 40},  {31, 40}, {32, 40}, {33, 40},  {61, 40},  {35, 0},
                                 {35, 1}, {35, 31}, {35, 32}, {35, 33}, {35, 300}, {3, 1100}, {1, 2100}};

double value_of(Activation kind, double x) {
  switch (kind) {
    case Activation::gelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::mish:
      return x * std::tanh(x > 20 ? x : std::log1p(std::exp(x)));
    default:
      return std::tanh(x);
  }
}

double slope_of(Activation kind, double x) {
  switch (kind) {
    case Activation::gelu:
      return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
    case Activation::gelu_tanh: {
      const double t = std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
    }
    case Activation::relu:
      return x > 0 ? 1 : 0;
    case Activation::silu: {
      const double s = 1 / (1 + std::exp(-x));
      return s * (1 + x * (1 - s));
    }
    case Activation::mish: {
      const double t = std::tanh(x > 20 ? x : std::log1p(std::exp(x)));
      return t + x * (1 - t * t) / (1 + std::exp(-x));
    }
    default:
      return 1 - std::tanh(x) * std::tanh(x);
  }
}

/// f(i, j) for every element.
Values values_of(Index rows, Index cols, const std::function<double(Index, Index)>& f) {
  Values result(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) result(i, j) = f(i, j);
  return result;
}

/// Calls body for every shape, with rows that can and cannot be read by vectors.
template <class Body>
void for_shapes(Body&& body) {
  for (const Shape& shape : every_shape)
    for (const Rows kind : {Rows::aligned, Rows::odd}) {
      CAPTURE(shape.rows);
      CAPTURE(shape.cols);
      body(shape.rows, shape.cols, kind);
    }
}

/// Runs `operation(to, stream)` on what was `before`, in two orders of blocks and threads, and compares with
/// `expected`.
template <class T>
void check_in_place(const Values& before, Rows kind, const Values& expected, const char* what,
                    const std::function<void(MatrixView<T>, Stream)>& operation) {
  DeviceMatrix<T> to(before, kind), again(before, kind);
  operation(to.view(), Stream{1});
  operation(again.view(), Stream{2});
  check_matrix(to, expected, rounding_bound<T>(4e-6), what);
  CHECK(again.same_bits(to));
}

/// The same where nothing is read of what is written.
template <class T>
void check_output(Rows kind, const Values& expected, const char* what,
                  const std::function<void(MatrixView<T>, Stream)>& operation) {
  DeviceMatrix<T> to(expected.rows, expected.cols, kind), again(expected.rows, expected.cols, kind);
  operation(to.view(), Stream{1});
  operation(again.view(), Stream{2});
  check_matrix(to, expected, rounding_bound<T>(4e-6), what);
  CHECK(again.same_bits(to));
}

}  // namespace

TEST_CASE_TEMPLATE("activations, forward and backward", T, float, Bf16, Half) {
  for_shapes([](Index rows, Index cols, Rows kind) {
    const Values x = random_in<T>(rows, cols, 1, 2.0), bias = random_in<T>(1, cols, 2),
                 dy = random_in<T>(rows, cols, 3);
    const DeviceMatrix<T> x_in(x, kind), bias_in(bias, kind);
    for (const Activation activation : activations)
      for (const bool biased : {false, true}) {
        if (biased && rows % 2 == 0) continue;  // half of the cases are enough
        CAPTURE(static_cast<int>(activation));
        const T* const shift = biased ? bias_in.in().data : nullptr;
        const auto at = [&](Index i, Index j) { return x(i, j) + (biased ? bias(0, j) : 0.0); };
        const Values y = values_of(rows, cols, [&](Index i, Index j) { return value_of(activation, at(i, j)); });
        check_output<T>(kind, y, "y", [&](MatrixView<T> to, Stream stream) {
          cuda::activation_forward<T>(activation, x_in.in(), shift, to, stream);
        });
        check_in_place<T>(x, kind, y, "y in place", [&](MatrixView<T> to, Stream stream) {
          cuda::activation_forward<T>(activation, to, shift, to, stream);
        });
        const Values dx =
            values_of(rows, cols, [&](Index i, Index j) { return dy(i, j) * slope_of(activation, at(i, j)); });
        check_in_place<T>(dy, kind, dx, "dx", [&](MatrixView<T> to, Stream stream) {
          cuda::activation_backward<T>(activation, x_in.in(), shift, to, stream);
        });
      }
  });
}

TEST_CASE("activations of everything a float can hold") {
  std::vector<double> list = {0.0, -0.0};
  for (const double x : {1e-44, 1e-40, 1e-30, 1e-8, 1e-4, 0.01, 0.75, 13.0, 50.0, 86.0, 89.0, 710.0, 1e6, 1e20, 1e38})
    for (const double sign : {1.0, -1.0}) list.push_back(static_cast<double>(static_cast<float>(sign * x)));
  for (int i = -600; i <= 600; ++i) list.push_back(i / 64.0);
  Values x(1, static_cast<Index>(list.size()));
  x.data = list;
  Values ones(1, x.cols);
  for (double& one : ones.data) one = 1;
  const DeviceMatrix<float> x_in(x, Rows::aligned);
  for (const Activation activation : activations) {
    CAPTURE(static_cast<int>(activation));
    DeviceMatrix<float> y(1, x.cols, Rows::aligned), slope(ones, Rows::aligned);
    cuda::activation_forward<float>(activation, x_in.in(), nullptr, y.view(), Stream{1});
    cuda::activation_backward<float>(activation, x_in.in(), nullptr, slope.view(), Stream{1});
    for (Index j = 0; j < x.cols; ++j) {
      const double at = x(0, j);
      CAPTURE(at);
      CHECK(std::abs(y.values()(0, j) - value_of(activation, at)) <= 4e-7 * std::max(1.0, std::abs(at)));
      // Beyond this the formula itself is infinity times zero.
      const double expected = std::abs(at) < 1e15              ? slope_of(activation, at)
                              : activation == Activation::tanh ? 0.0
                                                               : (at > 0 ? 1.0 : 0.0);
      CHECK(std::abs(slope.values()(0, j) - expected) <= 4e-7 * std::max(1.0, std::min(20.0, std::abs(at))));
    }
  }
}

TEST_CASE_TEMPLATE("a diverged value stays one", T, float, Bf16, Half) {
  Values x(1, 9);
  x(0, 8) = std::numeric_limits<double>::quiet_NaN();
  x(0, 2) = std::numeric_limits<double>::quiet_NaN();
  for (const Activation activation :
       {Activation::gelu, Activation::gelu_tanh, Activation::silu, Activation::tanh, Activation::mish}) {
    const DeviceMatrix<T> x_in(x, Rows::aligned);
    DeviceMatrix<T> y(1, 9, Rows::aligned), dy(Values(1, 9), Rows::aligned);
    cuda::activation_forward<T>(activation, x_in.in(), nullptr, y.view(), Stream{1});
    cuda::activation_backward<T>(activation, x_in.in(), nullptr, dy.view(), Stream{1});
    for (const Index j : {0, 2, 8}) {
      CHECK(std::isnan(y.values()(0, j)) == (j != 0));
      CHECK(std::isnan(dy.values()(0, j)) == (j != 0));
    }
  }
}

TEST_CASE_TEMPLATE("gated activations, forward and backward", T, float, Bf16, Half) {
  for_shapes([](Index rows, Index cols, Rows kind) {
    const Values gate = random_in<T>(rows, cols, 1, 2.0), up = random_in<T>(rows, cols, 2);
    const Values dy = random_in<T>(rows, cols, 3);
    const DeviceMatrix<T> gate_in(gate, kind), up_in(up, kind), dy_in(dy, kind);
    for (const Activation activation : activations) {
      CAPTURE(static_cast<int>(activation));
      const auto f = [&](Index i, Index j) { return value_of(activation, gate(i, j)); };
      const Values y = values_of(rows, cols, [&](Index i, Index j) { return f(i, j) * up(i, j); });
      check_output<T>(kind, y, "y", [&](MatrixView<T> to, Stream stream) {
        cuda::gated_forward<T>(activation, gate_in.in(), up_in.in(), to, stream);
      });
      check_in_place<T>(gate, kind, y, "y over gate", [&](MatrixView<T> to, Stream stream) {
        cuda::gated_forward<T>(activation, to, up_in.in(), to, stream);
      });
      const Values dup = values_of(rows, cols, [&](Index i, Index j) { return dy(i, j) * f(i, j); });
      const Values dgate = values_of(
          rows, cols, [&](Index i, Index j) { return dy(i, j) * up(i, j) * slope_of(activation, gate(i, j)); });
      DeviceMatrix<T> dgate_out(rows, cols, kind), dup_out(rows, cols, kind);
      cuda::gated_backward<T>(activation, gate_in.in(), up_in.in(), dy_in.in(), dgate_out.view(), dup_out.view(),
                              Stream{1});
      check_matrix(dgate_out, dgate, rounding_bound<T>(4e-6), "dgate");
      check_matrix(dup_out, dup, rounding_bound<T>(4e-6), "dup");
      check_in_place<T>(dy, kind, dup, "dup over dy", [&](MatrixView<T> to, Stream stream) {
        DeviceMatrix<T> dgate_again(gate, kind);
        cuda::gated_backward<T>(activation, dgate_again.in(), up_in.in(), to, dgate_again.view(), to, stream);
        CHECK(dgate_again.same_bits(dgate_out));
      });
    }
  });
}

TEST_CASE_TEMPLATE("residual sums and dropout keep to their rows", T, float, Bf16, Half) {
  for_shapes([](Index rows, Index cols, Rows kind) {
    const Index begin = rows > 2 ? 1 : 0;
    const Index end = rows > 2 ? rows - 1 : rows;
    const auto numbers = row_numbers(rows);
    const Values x = random_in<T>(rows, cols, 1), bias = random_in<T>(1, cols, 2), r = random_in<T>(rows, cols, 3);
    const DeviceMatrix<T> x_in(x, kind), bias_in(bias, kind), r_in(r, kind);
    for (const double probability : {0.0, 0.3})
      for (const bool biased : {false, true}) {
        CAPTURE(probability);
        CAPTURE(biased);
        const Dropout dropout(derive_key(1, Purpose::hidden_dropout), probability);
        const std::int32_t* const table = probability > 0 ? numbers.data() : nullptr;
        const auto mask = [&](Index i, Index j) { return mask_of(dropout, numbers[static_cast<std::size_t>(i)], j); };
        const Values sums = values_of(rows, cols, [&](Index i, Index j) {
          if (i < begin || i >= end) return x(i, j);
          return (x(i, j) + (biased ? bias(0, j) : 0.0)) * mask(i, j) + r(i, j);
        });
        check_in_place<T>(x, kind, sums, "residual", [&](MatrixView<T> to, Stream stream) {
          cuda::add_residual<T>(to, biased ? bias_in.in().data : nullptr, r_in.in(), dropout, table, begin, end,
                                stream);
        });
        if (biased) continue;
        const Values kept = values_of(
            rows, cols, [&](Index i, Index j) { return i < begin || i >= end ? r(i, j) : x(i, j) * mask(i, j); });
        check_in_place<T>(r, kind, kept, "dropout", [&](MatrixView<T> to, Stream stream) {
          cuda::dropout<T>(dropout, x_in.in(), to, table, begin, end, stream);
        });
        const Values kept_in_place = values_of(
            rows, cols, [&](Index i, Index j) { return i < begin || i >= end ? x(i, j) : x(i, j) * mask(i, j); });
        check_in_place<T>(x, kind, kept_in_place, "dropout in place", [&](MatrixView<T> to, Stream stream) {
          cuda::dropout<T>(dropout, to, to, table, begin, end, stream);
        });
      }
  });
}

TEST_CASE("dropout is the one of the CPU, to the bit") {
  constexpr Index rows = 5, cols = 133;
  const Dropout drop(derive_key(9, Purpose::hidden_dropout, 3), 0.3);
  const std::vector<std::int32_t> numbers = {0, 5, 1 << 20, 2, 7};
  const Values x = random_in<float>(rows, cols, 1);
  const DeviceMatrix<float> x_in(x, Rows::aligned);
  DeviceMatrix<float> y(rows, cols, Rows::aligned);
  cuda::dropout<float>(drop, x_in.in(), y.view(), numbers.data(), 0, rows, Stream{1});
  for (Index i = 0; i < rows; ++i) {
    float expected[cols];
    cpu::dropout_row(drop, static_cast<std::uint32_t>(numbers[static_cast<std::size_t>(i)]), 0, cols, x_in.in().row(i),
                     expected);
    for (Index j = 0; j < cols; ++j) CHECK(y.in()(i, j) == expected[j]);
  }
}

TEST_CASE_TEMPLATE("copies, sums and zeros", T, float, Bf16, Half) {
  for_shapes([](Index rows, Index cols, Rows kind) {
    const Values x = random_in<T>(rows, cols, 1), z = random_in<T>(rows, cols, 3);
    const DeviceMatrix<T> x_in(x, kind);
    check_in_place<T>(z, kind, sum_of(z, x), "sum",
                      [&](MatrixView<T> to, Stream stream) { cuda::add<T>(x_in.in(), to, stream); });
    check_output<T>(kind, Values(rows, cols), "zeros",
                    [&](MatrixView<T> to, Stream stream) { cuda::fill_zero<T>(to, stream); });
    DeviceMatrix<T> copied(rows, cols, kind);
    cuda::copy<T>(x_in.in(), copied.view(), Stream{1});
    CHECK(copied.same_bits(x_in));
    DeviceMatrix<T> elsewhere(rows, cols, Rows::odd);  // one of both by vectors
    cuda::copy<T>(x_in.in(), elsewhere.view(), Stream{1});
    CHECK(elsewhere.values().data == x.data);
    CHECK(elsewhere.intact());
  });
}

TEST_CASE("a copy keeps the bits of what is not a number") {
  DeviceMatrix<Bf16> from(2, 9, Rows::aligned), to(2, 9, Rows::aligned);
  for (Index j = 0; j < 9; ++j) from.view()(0, j).bits = static_cast<std::uint16_t>(0x7f81 + j);
  cuda::copy<Bf16>(from.in(), to.view(), Stream{1});
  CHECK(to.same_bits(from));
}

TEST_CASE("conversions of every number of 16 bits, and back") {
  constexpr Index size = 65536;
  DeviceMatrix<Half> half(1, size, Rows::aligned), half_again(1, size, Rows::aligned);
  DeviceMatrix<Bf16> brain(1, size, Rows::aligned), brain_again(1, size, Rows::aligned);
  DeviceMatrix<float> from_half(1, size, Rows::aligned), from_brain(1, size, Rows::aligned);
  for (Index i = 0; i < size; ++i) {
    half.view()(0, i).bits = static_cast<std::uint16_t>(i);
    brain.view()(0, i).bits = static_cast<std::uint16_t>(i);
  }
  cuda::convert(half.in().data, from_half.view().data, size, Stream{1});
  cuda::convert(brain.in().data, from_brain.view().data, size, Stream{1});
  cuda::convert<Half, float>(from_half.in().data, half_again.view().data, size, Stream{1});
  cuda::convert<Bf16, float>(from_brain.in().data, brain_again.view().data, size, Stream{1});
  bool widened = true;
  for (Index i = 0; i < size; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    widened = widened &&
              __builtin_bit_cast(std::uint32_t, from_half.in()(0, i)) ==
                  __builtin_bit_cast(std::uint32_t, f16_to_float(bits)) &&
              __builtin_bit_cast(std::uint32_t, from_brain.in()(0, i)) ==
                  __builtin_bit_cast(std::uint32_t, bf16_to_float(bits)) &&
              half_again.in()(0, i).bits == float_to_f16(f16_to_float(bits)) &&
              brain_again.in()(0, i).bits == float_to_bf16(bf16_to_float(bits));
  }
  CHECK(widened);
}

TEST_CASE("conversions round once, at every size") {
  for (const Index size : {0, 1, 3, 4, 7, 8, 9, 31, 32, 33, 61, 2048, 4101})
    for (const Rows kind : {Rows::aligned, Rows::odd}) {
      CAPTURE(size);
      const Values x = random_values(1, size, 1);
      const DeviceMatrix<float> from(x, kind);
      DeviceMatrix<float> same(1, size, kind);
      DeviceMatrix<Half> half(1, size, kind);
      DeviceMatrix<Bf16> brain(1, size, kind), brain_of_half(1, size, kind);
      const auto run = [&](Stream stream) {
        cuda::convert(from.in().data, same.view().data, size, stream);
        cuda::convert(from.in().data, half.view().data, size, stream);
        cuda::convert(from.in().data, brain.view().data, size, stream);
        cuda::convert<Bf16, Half>(half.in().data, brain_of_half.view().data, size, stream);
      };
      run(Stream{1});
      CHECK(same.same_bits(from));
      for (Index i = 0; i < size; ++i) {
        CHECK(half.in()(0, i).bits == float_to_f16(from.in()(0, i)));
        CHECK(brain.in()(0, i).bits == float_to_bf16(from.in()(0, i)));
        CHECK(brain_of_half.in()(0, i).bits == float_to_bf16(half.in()(0, i)));
      }
      CHECK(half.intact());
      CHECK(brain.intact());
      CHECK(brain_of_half.intact());
      run(Stream{2});
      CHECK(same.same_bits(from));
      DeviceMatrix<Half> beside(1, size, kind == Rows::aligned ? Rows::odd : Rows::aligned);
      cuda::convert(from.in().data, beside.view().data, size, Stream{1});
      for (Index i = 0; i < size; ++i) CHECK(beside.in()(0, i).bits == half.in()(0, i).bits);
      CHECK(beside.intact());
    }
}

TEST_CASE_TEMPLATE("sums of columns", T, float, Bf16, Half) {
  const auto check = [](Index rows, Index cols, Rows kind) {
    CAPTURE(rows);
    CAPTURE(cols);
    const Values x = random_in<T>(rows, cols, 1), before = random_values(1, cols, 2);
    Values expected = before;
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j) expected(0, j) += x(i, j);
    const DeviceMatrix<T> x_in(x, kind);
    DeviceMatrix<float> to(before, kind), again(before, kind);
    const auto run = [&](DeviceMatrix<float>& sums, Stream stream) {
      Workspace workspace(cuda::sum_rows_workspace<T>(rows, cols));
      cuda::sum_rows<T>(x_in.in(), sums.view().data, workspace.bytes(), stream);
      CHECK(workspace.intact());
    };
    run(to, Stream{1});
    run(again, Stream{2});
    check_matrix(to, expected, 1e-6, "sums");
    CHECK(again.same_bits(to));
  };
  for_shapes(check);
  check(331, 5, Rows::odd);
  check(2311, 3, Rows::aligned);
  check(150, 300, Rows::aligned);
}

TEST_CASE("runs of rows depend on shapes, and fill a GPU where the columns do not") {
  const auto cut = [](Index rows, Index cols) {
    const cuda::detail::ColumnSumRuns runs(rows, cols, 2);
    CHECK(runs.count * runs.rows_per_run >= rows);
    return runs.count;
  };
  CHECK(cut(32, 768) == 1);
  CHECK(cut(512, 768) == 16);
  CHECK(cut(8192, 768) == 64);
  CHECK(cut(8192, 4096) == 17);
  CHECK(cut(8192, 1 << 20) == 1);
  CHECK(cut(8192, 0) == 64);
  CHECK(cuda::sum_rows_workspace<Bf16>(32, 768) == 0);
  CHECK(cuda::sum_rows_workspace<Bf16>(512, 767) == 16 * 768 * 4);
}

TEST_CASE("shapes that do not fit are refused by name") {
  DeviceMatrix<float> x(4, 8, Rows::aligned), narrow(4, 7, Rows::aligned), low(3, 8, Rows::aligned);
  const Dropout none;
  const Stream s;
  check_error<ShapeError>([&] { cuda::activation_forward<float>(Activation::gelu, x.in(), nullptr, narrow.view(), s); },
                          {"cuda::activation_forward", "y of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { cuda::activation_backward<float>(Activation::gelu, x.in(), nullptr, low.view(), s); },
                          {"cuda::activation_backward", "dy of shape (4, 8)", "(3, 8)"});
  check_error<ShapeError>([&] { cuda::gated_forward<float>(Activation::silu, x.in(), low.in(), x.view(), s); },
                          {"cuda::gated_forward", "up of shape (4, 8)", "(3, 8)"});
  check_error<ShapeError>([&] { cuda::gated_forward<float>(Activation::silu, x.in(), x.in(), low.view(), s); },
                          {"y of shape (4, 8)", "(3, 8)"});
  const auto backward = [&](DeviceMatrix<float>& up, DeviceMatrix<float>& dy, DeviceMatrix<float>& dgate,
                            DeviceMatrix<float>& dup) {
    cuda::gated_backward<float>(Activation::silu, x.in(), up.in(), dy.in(), dgate.view(), dup.view(), s);
  };
  check_error<ShapeError>([&] { backward(low, x, x, x); }, {"cuda::gated_backward", "up of shape (4, 8)", "(3, 8)"});
  check_error<ShapeError>([&] { backward(x, low, x, x); }, {"dy of shape (4, 8)", "(3, 8)"});
  check_error<ShapeError>([&] { backward(x, x, low, x); }, {"dgate of shape (4, 8)", "(3, 8)"});
  check_error<ShapeError>([&] { backward(x, x, x, narrow); }, {"dup of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { cuda::add_residual<float>(x.view(), nullptr, narrow.in(), none, nullptr, 0, 4, s); },
                          {"cuda::add_residual", "residual of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { cuda::add_residual<float>(x.view(), nullptr, x.in(), none, nullptr, 2, 5, s); },
                          {"rows within [0, 4)", "[2, 5)"});
  check_error<ShapeError>([&] { cuda::dropout<float>(none, x.in(), narrow.view(), nullptr, 0, 4, s); },
                          {"cuda::dropout", "of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { cuda::dropout<float>(none, x.in(), x.view(), nullptr, 3, 2, s); },
                          {"rows within [0, 4)", "[3, 2)"});
  check_error<ShapeError>([&] { cuda::copy<float>(x.in(), narrow.view(), s); },
                          {"cuda::copy", "of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { cuda::add<float>(low.in(), x.view(), s); }, {"cuda::add", "of shape (3, 8)", "(4, 8)"});
  DeviceMatrix<float> tall(200, 8, Rows::aligned), sums(1, 8, Rows::aligned);
  check_error<ShapeError>([&] { cuda::sum_rows<float>(tall.in(), sums.view().data, {}, s); },
                          {"cuda::sum_rows", "bytes of workspace", "got 0"});
}

}  // namespace fedlora::tests
