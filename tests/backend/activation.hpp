// SPDX-License-Identifier: Apache-2.0
// Activations of every backend, plain and gated, over everything an element can hold, against their formulas in double.
#pragma once

#include "backend/conformance.hpp"

namespace fedlora::tests {
namespace {

constexpr Activation kinds[] = {
    Activation::gelu,    Activation::gelu_tanh,  Activation::relu,       Activation::silu,
    Activation::tanh,    Activation::gelu_10,    Activation::quick_gelu, Activation::hard_swish,
    Activation::laplace, Activation::leaky_relu, Activation::linear,     Activation::mish,
    Activation::relu2,   Activation::relu6,      Activation::sigmoid,    Activation::sqrt_softplus};

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double softplus_of(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

double value_of(Activation kind, double x) {
  switch (kind) {
    case Activation::gelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_10:
      return std::min(value_of(Activation::gelu, x), 10.0);
    case Activation::quick_gelu:
      return x * sigmoid_of(1.702 * x);
    case Activation::hard_swish:
      return x * std::clamp(x + 3, 0.0, 6.0) / 6;
    case Activation::laplace:
      return 0.5 * std::erfc(-(x - 0.707107) / (0.282095 * std::sqrt(2.0)));
    case Activation::leaky_relu:
      return x > 0 ? x : 0.01 * x;
    case Activation::linear:
      return x;
    case Activation::mish:
      return x * std::tanh(softplus_of(x));
    case Activation::relu2:
      return std::max(x, 0.0) * std::max(x, 0.0);
    case Activation::relu6:
      return std::clamp(x, 0.0, 6.0);
    case Activation::sigmoid:
      return sigmoid_of(x);
    case Activation::sqrt_softplus:
      return std::sqrt(softplus_of(x));
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
    case Activation::silu:
      return sigmoid_of(x) * (1 + x * (1 - sigmoid_of(x)));
    case Activation::gelu_10:
      return value_of(Activation::gelu, x) < 10 ? slope_of(Activation::gelu, x) : 0;
    case Activation::quick_gelu:
      return sigmoid_of(1.702 * x) * (1 + 1.702 * x * (1 - sigmoid_of(1.702 * x)));
    case Activation::hard_swish:
      return x <= -3 ? 0 : x >= 3 ? 1 : x / 3 + 0.5;
    case Activation::laplace: {
      const double z = (x - 0.707107) / 0.282095;
      return std::exp(-0.5 * z * z) / (0.282095 * std::sqrt(2 * M_PI));
    }
    case Activation::leaky_relu:
      return x > 0 ? 1 : 0.01;
    case Activation::linear:
      return 1;
    case Activation::mish: {
      const double t = std::tanh(softplus_of(x));
      return t + x * (1 - t * t) * sigmoid_of(x);
    }
    case Activation::relu2:
      return 2 * std::max(x, 0.0);
    case Activation::relu6:
      return x > 0 && x < 6 ? 1 : 0;
    case Activation::sigmoid:
      return sigmoid_of(x) * (1 - sigmoid_of(x));
    case Activation::sqrt_softplus: {
      const double root = std::sqrt(softplus_of(x));
      return root > 0 ? (x > 20 ? 1 : sigmoid_of(x)) / (2 * root) : 0;
    }
    default:
      return 1 - std::tanh(x) * std::tanh(x);
  }
}

/// Arguments from denormal to far out, both signs, exact in `Element`.
template <class B>
Values arguments() {
  std::vector<double> list = {0.0, -0.0};
  for (const double x : {1e-44, 1e-40, 1e-30, 1e-8, 1e-4, 0.01, 0.1,  0.5,  0.75, 1.0,  1.5,   2.0,   3.0, 4.0, 5.0,
                         6.0,   8.0,   10.0,  13.0, 14.0, 20.0, 50.0, 86.0, 87.5, 89.0, 100.0, 710.0, 1e4, 1e6})
    for (const double sign : {1.0, -1.0}) list.push_back(static_cast<double>(static_cast<float>(sign * x)));
  for (int i = -600; i <= 600; ++i) list.push_back(i / 64.0);
  Values x(1, static_cast<Index>(list.size()));
  x.data = list;
  x = rounded<B>(x);
  std::erase_if(x.data, [](double value) { return std::isinf(value); });  // 1e6 as a Half
  x.cols = static_cast<Index>(x.data.size());
  return x;
}

/// Largest error of an entry over max(1, |x|, |f(x)|); what an element cannot hold may be infinite.
double worst_of(const Values& got, const Values& x, const std::function<double(double)>& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const double exact = expected(x.data[i]);
    if (std::isinf(got.data[i]) && std::abs(exact) > 65504) continue;
    const double error = std::abs(got.data[i] - exact) / std::max({1.0, std::abs(x.data[i]), std::abs(exact)});
    worst = error <= worst ? worst : error;  // a NaN stays
  }
  return worst;
}

template <class B>
inline constexpr double bound = by_type<B>(1e-15, on_device<B> ? 8e-7 : 4e-7, 4e-3, 5e-4);

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("activations and their slopes everywhere", B, activation) {
  using T = typename B::Element;
  Worker<B> run;
  const Values x = arguments<B>();
  Values ones(1, x.cols);
  for (double& one : ones.data) one = 1;
  in_every_layout<B>([&] {
    for (const Activation kind : kinds) {
      CAPTURE(static_cast<int>(kind));
      const Guarded<T> x_in(x);
      Guarded<T> y(1, x.cols), in_place(x), slope(ones);
      run.activation_forward(kind, x_in.in(), nullptr, y.view());
      run.activation_forward(kind, in_place.in(), nullptr, in_place.view());
      run.activation_backward(kind, x_in.in(), nullptr, slope.view());
      CHECK(worst_of(y.values(), x, [&](double at) { return value_of(kind, at); }) <= bound<B>);
      CHECK(worst_of(slope.values(), x, [&](double at) { return slope_of(kind, at); }) <= 4 * bound<B>);
      CHECK(in_place.values().data == y.values().data);
      CHECK(y.intact());
      CHECK(slope.intact());
    }
  });
}

TEST_CASE_TEMPLATE_DEFINE("a value that diverged stays diverged", B, activation_nan) {
  using T = typename B::Element;
  Worker<B> run;
  Values x = random_for<B>(1, 37, 1);
  for (const Index j : {3, 36}) x(0, j) = std::numeric_limits<double>::quiet_NaN();
  for (const Activation kind : kinds) {
    CAPTURE(static_cast<int>(kind));
    const Guarded<T> x_in(x);
    Guarded<T> y(1, x.cols);
    run.activation_forward(kind, x_in.in(), nullptr, y.view());
    const Values got = y.values();
    for (Index j = 0; j < x.cols; ++j) CHECK(std::isnan(got(0, j)) == std::isnan(x(0, j)));
  }
}

TEST_CASE_TEMPLATE_DEFINE("activations with a bias on every width", B, activation_bias) {
  using T = typename B::Element;
  Worker<B> run;
  in_every_layout<B>([&] {
    for (const Activation kind : kinds)
      for (const Index width : sizes<Index>({1, 7, 8, 9, 15, 16, 17, 31, 33, 61})) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(width);
        const Values x = random_for<B>(3, width, 1), bias = random_for<B>(1, width, 2), dy = random_for<B>(3, width, 3);
        Values value(3, width), back(3, width);
        for (Index i = 0; i < 3; ++i)
          for (Index j = 0; j < width; ++j) {
            value(i, j) = value_of(kind, x(i, j) + bias(0, j));
            back(i, j) = dy(i, j) * slope_of(kind, x(i, j) + bias(0, j));
          }
        const Guarded<T> x_in(x);
        Guarded<T> bias_in(bias), y(3, width), d(dy);
        run.activation_forward(kind, x_in.in(), bias_in.row(), y.view());
        run.activation_backward(kind, x_in.in(), bias_in.row(), d.view());
        check_close(y, value, 2 * tolerance<B>, "value");
        check_close(d, back, 2 * tolerance<B>, "gradient");
      }
  });
}

TEST_CASE_TEMPLATE_DEFINE("gated activations, forward and backward", B, gated) {
  using T = typename B::Element;
  Worker<B> run;
  in_every_layout<B>([&] {
    for (const Activation kind : kinds)
      for (const Index width : sizes<Index>({1, 8, 15, 16, 17, 33, 61})) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(width);
        const Values gate = random_for<B>(3, width, 1), up = random_for<B>(3, width, 2),
                     dy = random_for<B>(3, width, 3);
        Values value(3, width), dgate(3, width), dup(3, width);
        for (Index i = 0; i < 3; ++i)
          for (Index j = 0; j < width; ++j) {
            value(i, j) = value_of(kind, gate(i, j)) * up(i, j);
            dgate(i, j) = dy(i, j) * up(i, j) * slope_of(kind, gate(i, j));
            dup(i, j) = dy(i, j) * value_of(kind, gate(i, j));
          }
        const Guarded<T> gate_in(gate), up_in(up), dy_in(dy);
        Guarded<T> y(3, width), dgate_out(3, width), dup_out(3, width), over(dy), again(3, width);
        run.gated_forward(kind, gate_in.in(), up_in.in(), y.view());
        run.gated_backward(kind, gate_in.in(), up_in.in(), dy_in.in(), dgate_out.view(), dup_out.view());
        run.gated_backward(kind, gate_in.in(), up_in.in(), over.in(), again.view(), over.view());  // dup may be dy
        check_close(y, value, 2 * tolerance<B>, "value");
        check_close(dgate_out, dgate, 2 * tolerance<B>, "dgate");
        check_close(dup_out, dup, 2 * tolerance<B>, "dup");
        CHECK(over.values().data == dup_out.values().data);
        CHECK(again.values().data == dgate_out.values().data);
      }
  });
}

}  // namespace fedlora::tests
