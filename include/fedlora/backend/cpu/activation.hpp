// SPDX-License-Identifier: Apache-2.0
// Activations and gated activations, forward and backward, over rows.
#pragma once

#include <cmath>

#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/backend/rare_activation.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// f(x) and f'(x) of one vector. `function` is Function, or any of the rare ones where Function is one.
template <Activation Function, class T>
[[gnu::always_inline]] inline void activation_lanes([[maybe_unused]] Activation function, const Lanes<T>& x,
                                                    Lanes<T>& value, Lanes<T>& slope) {
  const Lanes<T> zero{};
  if constexpr (Function == Activation::gelu) {
    Lanes<T> e = x * x * T(-0.5);
    exp_lanes(e);
    Lanes<T> cdf;
    normal_cdf_lanes(x, e, cdf);
    value = x * cdf;
    slope = cdf + x * e * T(0.39894228040143267794);
  } else if constexpr (Function == Activation::gelu_tanh) {
    const Lanes<T> inner = (x + x * x * x * T(0.044715)) * T(0.79788456080286535588);
    Lanes<T> e = inner * T(-2);
    exp_lanes(e);
    const Lanes<T> half = T(1) / (e + T(1));  // (1 + tanh(inner)) / 2
    value = x * half;
    slope = half + x * half * (T(1) - half) * (x * x * T(3 * 0.044715) + T(1)) * T(2 * 0.79788456080286535588);
  } else if constexpr (Function == Activation::relu) {
    value = x <= zero ? zero : x;  // NaN stays NaN
    slope = x <= zero ? zero : zero + T(1);
  } else if constexpr (Function == Activation::silu) {
    Lanes<T> e = -x;
    exp_lanes(e);
    const Lanes<T> sigmoid = T(1) / (e + T(1));
    value = x * sigmoid;
    slope = sigmoid + value * (T(1) - sigmoid);
  } else if constexpr (Function == Activation::tanh) {
    each<static_cast<int>(lane_count<T>)>([&](auto lane)
                                              __attribute__((always_inline)) { value[lane()] = std::tanh(x[lane()]); });
    slope = T(1) - value * value;
  } else {
    for (Index lane = 0; lane < lane_count<T>; ++lane) {
      T one_value, one_slope;
      rare_activation<T, Level>(function, x[lane], one_value, one_slope);
      value[lane] = one_value;
      slope[lane] = one_slope;
    }
  }
}

/// Calls `body` with the activation as a compile-time constant; one constant stands for all rare ones.
template <class Body>
void with_activation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::gelu:
      return body.template operator()<Activation::gelu>();
    case Activation::gelu_tanh:
      return body.template operator()<Activation::gelu_tanh>();
    case Activation::relu:
      return body.template operator()<Activation::relu>();
    case Activation::silu:
      return body.template operator()<Activation::silu>();
    case Activation::tanh:
      return body.template operator()<Activation::tanh>();
    default:
      return body.template operator()<Activation::linear>();
  }
}

/// One row of y = f(x + bias).
template <Activation Function, class T>
[[gnu::noinline]] void activation_row(Activation activation, Index size, const T* x, const T* bias, T* y) {
  T* const outputs[1] = {y};
  const auto activate = [&](auto& x_lanes) __attribute__((always_inline)) {
    Lanes<T> value, slope;
    activation_lanes<Function, T>(activation, x_lanes, value, slope);
    x_lanes = value;
  };
  if (bias != nullptr) {
    const T* const inputs[2] = {x, bias};
    for_lanes<T>(
        size, inputs, outputs, [&](auto& v) __attribute__((always_inline)) {
          v[0] += v[1];
          activate(v[0]);
        });
  } else {
    const T* const inputs[1] = {x};
    for_lanes<T>(
        size, inputs, outputs, [&](auto& v) __attribute__((always_inline)) { activate(v[0]); });
  }
}

/// y = f(x + bias); `bias` may be null, y may be x.
template <class T>
void activation_forward(Activation activation, const MatrixView<const T>& x, const T* bias, const MatrixView<T>& y) {
  with_activation(activation, [&]<Activation Function>() {
    for (Index i = 0; i < x.rows; ++i) activation_row<Function>(activation, x.cols, x.row(i), bias, y.row(i));
  });
}

/// One row of dy ← dy ∘ f'(x + bias).
template <Activation Function, class T>
[[gnu::noinline]] void activation_row_backward(Activation activation, Index size, const T* x, const T* bias, T* dy) {
  T* const outputs[1] = {dy};
  const auto turn = [&](auto& gradient, const Lanes<T>& x_lanes) __attribute__((always_inline)) {
    Lanes<T> value, slope;
    activation_lanes<Function, T>(activation, x_lanes, value, slope);
    gradient *= slope;
  };
  if (bias != nullptr) {
    const T* const inputs[3] = {dy, x, bias};
    for_lanes<T>(
        size, inputs, outputs, [&](auto& v) __attribute__((always_inline)) {
          v[1] += v[2];
          turn(v[0], v[1]);
        });
  } else {
    const T* const inputs[2] = {dy, x};
    for_lanes<T>(
        size, inputs, outputs, [&](auto& v) __attribute__((always_inline)) { turn(v[0], v[1]); });
  }
}

/// dy ← dy ∘ f'(x + bias), in place.
template <class T>
void activation_backward(Activation activation, const MatrixView<const T>& x, const T* bias, const MatrixView<T>& dy) {
  with_activation(activation, [&]<Activation Function>() {
    for (Index i = 0; i < x.rows; ++i) activation_row_backward<Function>(activation, x.cols, x.row(i), bias, dy.row(i));
  });
}

/// One row of y = f(gate) ∘ up.
template <Activation Function, class T>
[[gnu::noinline]] void gated_row(Activation activation, Index size, const T* gate, const T* up, T* y) {
  const T* const inputs[2] = {gate, up};
  T* const outputs[1] = {y};
  for_lanes<T>(
      size, inputs, outputs, [&](auto& v) __attribute__((always_inline)) {
        Lanes<T> value, slope;
        activation_lanes<Function, T>(activation, v[0], value, slope);
        v[0] = value * v[1];
      });
}

/// y = f(gate) ∘ up (SwiGLU: Shazeer 2020, arXiv 2002.05202).
template <class T>
void gated_forward(Activation activation, const MatrixView<const T>& gate, const MatrixView<const T>& up,
                   const MatrixView<T>& y) {
  with_activation(activation, [&]<Activation Function>() {
    for (Index i = 0; i < gate.rows; ++i) gated_row<Function>(activation, gate.cols, gate.row(i), up.row(i), y.row(i));
  });
}

/// One row of dgate = dy ∘ up ∘ f'(gate) and dup = dy ∘ f(gate).
template <Activation Function, class T>
[[gnu::noinline]] void gated_row_backward(Activation activation, Index size, const T* gate, const T* up, const T* dy,
                                          T* dgate, T* dup) {
  const T* const inputs[3] = {dy, gate, up};
  T* const outputs[2] = {dup, dgate};
  for_lanes<T>(
      size, inputs, outputs, [&](auto& v) __attribute__((always_inline)) {
        Lanes<T> value, slope;
        activation_lanes<Function, T>(activation, v[1], value, slope);
        v[1] = v[0] * v[2] * slope;
        v[0] = v[0] * value;
      });
}

/// Given dy: dgate = dy ∘ up ∘ f'(gate) and dup = dy ∘ f(gate). dup may be dy.
template <class T>
void gated_backward(Activation activation, const MatrixView<const T>& gate, const MatrixView<const T>& up,
                    const MatrixView<const T>& dy, const MatrixView<T>& dgate, const MatrixView<T>& dup) {
  with_activation(activation, [&]<Activation Function>() {
    for (Index i = 0; i < gate.rows; ++i)
      gated_row_backward<Function>(activation, gate.cols, gate.row(i), up.row(i), dy.row(i), dgate.row(i), dup.row(i));
  });
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
