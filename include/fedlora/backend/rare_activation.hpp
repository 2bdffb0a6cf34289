// SPDX-License-Identifier: Apache-2.0
// The activations that few models have: one function for all of them, so that no backend compiles a loop for each.
// Every formula is that of transformers' ACT2FN (transformers/activations.py), its slope that of torch's autograd.
#pragma once

#include <cmath>

#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"

namespace fedlora {

/// f(x) and f'(x) of a rare activation (`is_rare`) in T, float or double. Comparisons are such that NaN stays NaN. `Level`
/// names the level of CPU instructions that it is compiled for (backend/cpu/level.hpp).
template <class T, class Level = void>
FEDLORA_HOST_DEVICE inline void rare_activation(Activation function, T x, T& value, T& slope) {
  using std::erfc, std::exp, std::log1p, std::sqrt;
  const auto sigmoid = [](T at) { return T(1) / (T(1) + exp(-at)); };
  const T zero = T(0), one = T(1);
  switch (function) {
    case Activation::gelu_10: {
      const T cdf = T(0.5) * erfc(x * T(-0.70710678118654752440));
      const bool above = x * cdf >= T(10);  // it is never below -0.17
      value = above ? T(10) : x * cdf;
      slope = above ? zero : cdf + x * exp(T(-0.5) * x * x) * T(0.39894228040143267794);
      return;
    }
    case Activation::quick_gelu: {
      const T s = sigmoid(T(1.702) * x);
      value = x * s;
      slope = s + T(1.702) * value * (one - s);
      return;
    }
    case Activation::hard_swish:
      value = x <= T(-3) ? zero : x >= T(3) ? x : x * (x + T(3)) / T(6);
      slope = x <= T(-3) ? zero : x >= T(3) ? one : x / T(3) + T(0.5);
      return;
    case Activation::laplace: {
      constexpr T mean = T(0.707107), deviation = T(0.282095);
      const T z = (x - mean) / (deviation * T(1.41421356237309504880));
      value = T(0.5) * erfc(-z);
      slope = exp(-z * z) * T(0.39894228040143267794) / deviation;
      return;
    }
    case Activation::leaky_relu:
      slope = x > zero ? one : T(0.01);
      value = x * slope;
      return;
    case Activation::mish: {  // x tanh(log(1 + eˣ))
      const T e = exp(x < T(20) ? x : T(20)), n = e * (e + T(2));
      const T t = n / (n + T(2));
      value = x * t;
      slope = t + x * (one - t * t) * sigmoid(x);
      return;
    }
    case Activation::relu2:
      value = x <= zero ? zero : x * x;
      slope = x <= zero ? zero : T(2) * x;
      return;
    case Activation::relu6:
      value = x <= zero ? zero : x >= T(6) ? T(6) : x;
      slope = x <= zero || x >= T(6) ? zero : one;
      return;
    case Activation::sigmoid:
      value = sigmoid(x);
      slope = value * (one - value);
      return;
    case Activation::sqrt_softplus: {  // torch takes x itself for softplus(x) above 20
      value = sqrt(x > T(20) ? x : log1p(exp(x)));
      slope = value == zero ? zero : (x > T(20) ? one : sigmoid(x)) / (T(2) * value);
      return;
    }
    default:  // linear
      value = x;
      slope = one;
  }
}

}  // namespace fedlora
