// SPDX-License-Identifier: Apache-2.0
// What is done to every element by itself, and sums of columns.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <vector>

#include "check.hpp"
#include "fedlora/backend/cuda/pointwise.cuh"
#include "fedlora/backend/operations.hpp"

namespace fedlora::smoke {

inline double activation(Activation function, double x) {
  switch (function) {
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::mish:
      return x * std::tanh(std::log1p(std::exp(x)));
    case Activation::laplace:
      return 0.5 * std::erfc(-(x - 0.707107) / (0.282095 * std::numbers::sqrt2));
    default:
      return std::tanh(x);
  }
}

/// By central differences, good to 1e-9; of ReLU on its own side.
inline double slope(Activation function, double x) {
  if (function == Activation::relu) return x > 0 ? 1 : 0;
  constexpr double step = 1e-4;
  const double near = (activation(function, x + step) - activation(function, x - step)) / (2 * step);
  const double far = (activation(function, x + 2 * step) - activation(function, x - 2 * step)) / (4 * step);
  return (4 * near - far) / 3;
}

template <class T>
void check_pointwise(Check& check) {
  const Shape& shape = check.shape;
  const Index rows = shape.rows(), cols = shape.wide;
  const Gpu& gpu = check.gpu;
  const cuda::Stream stream = gpu.stream();
  const double bound = check.tolerance<T>();
  const Values x = random<T>(rows, cols, 1, 4), y = random<T>(rows, cols, 2), z = random<T>(rows, cols, 3);
  const Values bias = random<T>(1, cols, 4);
  const Matrix<T> on_x(gpu, x, shape.layout), on_y(gpu, y, shape.layout), on_bias(gpu, bias, shape.layout);
  const auto each = [&](const auto& value) {
    return [&value, cols](Index i, double* to) {
      for (Index j = 0; j < cols; ++j) to[j] = value(i, j);
    };
  };

  constexpr std::pair<Activation, const char*> functions[] = {
      {Activation::gelu, "gelu"},      {Activation::gelu_tanh, "gelu_tanh"}, {Activation::relu, "relu"},
      {Activation::silu, "silu"},      {Activation::tanh, "tanh"},           {Activation::mish, "mish"},
      {Activation::laplace, "laplace"}};
  for (const bool with_bias : {true, false}) {
    const T* const b = with_bias ? on_bias.data() : nullptr;
    const std::string added = with_bias ? "" : " without a bias";
    const auto of = [&](Index i, Index j) { return x(i, j) + (with_bias ? bias(0, j) : 0.0); };
    for (const auto& [function, name] : functions) {
      Matrix<T> out(gpu, rows, cols, shape.layout);
      cuda::activation_forward<T>(function, on_x.in(), b, out.view(), stream);
      check.matrix(name + added, out, bound,
                   each([&, f = function](Index i, Index j) { return activation(f, of(i, j)); }));
      Matrix<T> dy(gpu, y, shape.layout);
      cuda::activation_backward<T>(function, on_x.in(), b, dy.view(), stream);
      check.matrix(std::string(name) + " backward" + added, dy, bound,
                   each([&, f = function](Index i, Index j) { return y(i, j) * slope(f, of(i, j)); }));
    }
  }
  {
    Matrix<T> out(gpu, rows, cols, shape.layout), dgate(gpu, rows, cols, shape.layout), dup(gpu, z, shape.layout);
    cuda::gated_forward<T>(Activation::silu, on_x.in(), on_y.in(), out.view(), stream);
    cuda::gated_backward<T>(Activation::silu, on_x.in(), on_y.in(), dup.in(), dgate.view(), dup.view(), stream);
    check.matrix("gated", out, bound,
                 each([&](Index i, Index j) { return activation(Activation::silu, x(i, j)) * y(i, j); }));
    check.matrix("gated backward, gate", dgate, bound,
                 each([&](Index i, Index j) { return z(i, j) * y(i, j) * slope(Activation::silu, x(i, j)); }));
    check.matrix("gated backward, up", dup, bound,
                 each([&](Index i, Index j) { return z(i, j) * activation(Activation::silu, x(i, j)); }));
  }
  const Dropout drop({derive_key(std::uint64_t{5}, Purpose::user, 1)}, 0.3);
  const Table<std::int32_t> number(gpu, numbers(rows, 91));
  const Index begin = 3, end = rows - 2;
  {
    std::vector<Index> chosen = some_of(end - begin);
    for (Index& i : chosen) i += begin;
    for (const bool with_bias : {true, false}) {
      Matrix<T> sum(gpu, x, shape.layout);
      const T* const b = with_bias ? on_bias.data() : nullptr;
      cuda::add_residual<T>(sum.view(), b, on_y.in(), drop, number.data(), begin, end, stream);
      check.rows(with_bias ? "residual" : "residual without a bias", sum, bound, begin, end, chosen,
                 each([&](Index i, Index j) {
                   return (x(i, j) + (with_bias ? bias(0, j) : 0.0)) * mask(drop, number[i], j) + y(i, j);
                 }));
    }
    Matrix<T> dropped(gpu, rows, cols, shape.layout);
    cuda::dropout<T>(drop, on_x.in(), dropped.view(), number.data(), begin, end, stream);
    check.rows("dropout", dropped, bound, begin, end, chosen,
               each([&](Index i, Index j) { return x(i, j) * mask(drop, number[i], j); }));
  }
  {
    Matrix<T> copied(gpu, rows, cols, shape.layout), added(gpu, y, shape.layout), zero(gpu, x, shape.layout);
    cuda::copy<T>(on_x.in(), copied.view(), stream);
    cuda::add<T>(on_x.in(), added.view(), stream);
    cuda::fill_zero<T>(zero.view(), stream);
    check.matrix("copy", copied, 0, each([&](Index i, Index j) { return x(i, j); }));
    check.matrix("add", added, bound, each([&](Index i, Index j) { return x(i, j) + y(i, j); }));
    check.matrix("zero", zero, 0, each([](Index, Index) { return 0.0; }));
  }
  // What is not a matrix, and begins where it likes.
  const Index size = rows * cols - 1;
  const auto flat = [](const Values& values) {
    Values result(1, values.rows * values.cols - 1);
    std::copy(values.data.begin(), values.data.end() - 1, result.data.begin());
    return result;
  };
  {
    const Values values = random<float>(rows, cols, 6);
    const Matrix<float> floats(gpu, flat(values), shape.layout);
    const Matrix<T> own(gpu, flat(x), shape.layout);
    Matrix<T> from_float(gpu, 1, size, shape.layout), same(gpu, 1, size, shape.layout);
    cuda::convert<T, float>(floats.data(), from_float.data(), size, stream);
    cuda::convert<T, T>(own.data(), same.data(), size, stream);
    const auto rounded = [&](Index, double* to) {
      for (Index k = 0; k < size; ++k)
        to[k] =
            static_cast<double>(static_cast<float>(T(static_cast<float>(values.data[static_cast<std::size_t>(k)]))));
    };
    check.matrix("convert", from_float, 0, rounded);
    check.matrix("convert to itself", same, 0, [&](Index, double* to) { std::copy_n(x.data.begin(), size, to); });
  }
  {
    const Values before = random<float>(1, cols, 7);
    Matrix<float> sums(gpu, before, shape.layout);
    const std::size_t bytes = cuda::sum_rows_workspace<T>(rows, cols);
    const cuda::DeviceBuffer work = workspace(gpu, bytes);
    cuda::sum_rows<T>(on_x.in(), sums.data(), work.bytes(), stream);
    check.matrix("sums of columns", sums, 1e-5, [&](Index, double* to) {
      for (Index j = 0; j < cols; ++j) {
        to[j] = before(0, j);
        for (Index i = 0; i < rows; ++i) to[j] += x(i, j);
      }
    });
  }
}

}  // namespace fedlora::smoke
