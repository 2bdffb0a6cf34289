// SPDX-License-Identifier: Apache-2.0
// What the kernel of pointwise.cuh can do to every element by itself: activations, sums, dropout.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/packed.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/backend/rare_activation.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// f(x) and f'(x). `function` is Function, or any of the rare ones where Function is one.
template <Activation Function>
FEDLORA_DEVICE void activate([[maybe_unused]] Activation function, float x, float& value, float& slope) {
  if constexpr (Function == Activation::gelu) {
    const float cdf = 0.5f + 0.5f * erff(x * 0.70710678118654752f);
    value = x * cdf;
    slope = cdf + x * (expf(-0.5f * x * x) * 0.39894228040143268f);
  } else if constexpr (Function == Activation::gelu_tanh) {
    const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    const float half = 1.0f / (1.0f + expf(-2.0f * inner));  // (1 + tanh(inner)) / 2
    const float bend = half * (1.0f - half);
    value = x * half;
    // Far out the bend is zero and x² may be infinite.
    slope = half + (bend > 0.0f ? x * bend * (1.0f + 0.134145f * x * x) * 1.5957691216057307f : bend);
  } else if constexpr (Function == Activation::relu) {
    value = x <= 0.0f ? 0.0f : x;  // NaN stays NaN
    slope = x <= 0.0f ? 0.0f : 1.0f;
  } else if constexpr (Function == Activation::silu) {
    const float sigmoid = 1.0f / (1.0f + expf(-x));
    value = x * sigmoid;
    slope = sigmoid + value * (1.0f - sigmoid);
  } else if constexpr (Function == Activation::tanh) {
    value = tanhf(x);
    slope = 1.0f - value * value;
  } else {
    rare_activation<float>(function, x, value, slope);
  }
}

/// The operations of `PointwiseKernel`. v[k] is input k before and output k after.
namespace elementwise {

/// v[0] = f(v[0] + v[1])
template <Activation Function>
struct ActivationForward {
  static constexpr int inputs = 2, outputs = 1;
  Activation function = Function;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[2], Index, Index) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) {
      float slope;
      activate<Function>(function, v[0][e] + v[1][e], values[e], slope);
    }
    v[0] = pack<T>(values);
  }
};

/// v[0] = v[0] f'(v[1] + v[2])
template <Activation Function>
struct ActivationBackward {
  static constexpr int inputs = 3, outputs = 1;
  Activation function = Function;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[3], Index, Index) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) {
      float value, slope;
      activate<Function>(function, v[1][e] + v[2][e], value, slope);
      values[e] = v[0][e] * slope;
    }
    v[0] = pack<T>(values);
  }
};

/// v[0] = f(v[0]) v[1]
template <Activation Function>
struct GatedForward {
  static constexpr int inputs = 2, outputs = 1;
  Activation function = Function;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[2], Index, Index) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) {
      float value, slope;
      activate<Function>(function, v[0][e], value, slope);
      values[e] = value * v[1][e];
    }
    v[0] = pack<T>(values);
  }
};

/// (v[0], v[1]) = (v[0] f(v[1]), v[0] v[2] f'(v[1]))
template <Activation Function>
struct GatedBackward {
  static constexpr int inputs = 3, outputs = 2;
  Activation function = Function;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[3], Index, Index) const {
    float of_up[vector_length<T>], of_gate[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) {
      float value, slope;
      activate<Function>(function, v[1][e], value, slope);
      of_up[e] = v[0][e] * value;
      of_gate[e] = v[0][e] * v[2][e] * slope;
    }
    v[0] = pack<T>(of_up);
    v[1] = pack<T>(of_gate);
  }
};

/// What dropout leaves of the elements (row, j), …; `j` is a multiple of 4, and four elements share one draw.
template <int Count>
FEDLORA_DEVICE void drop_elements(float (&values)[Count], const Dropout& dropout, std::int32_t row, Index j) {
  for (int quad = 0; quad < Count; quad += 4) {
    const RandomWords words = dropout_words(dropout, row, j + quad);
    for (int e = 0; e < 4; ++e)
      values[quad + e] =
          words[static_cast<std::size_t>(e)] < dropout.threshold ? 0.0f : values[quad + e] * dropout.scale;
  }
}

/// v[0] = dropout(v[0] + v[1]) + v[2]
struct AddResidual {
  static constexpr int inputs = 3, outputs = 1;
  Dropout dropout;
  const std::int32_t* row_numbers;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[3], Index i, Index j) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) values[e] = v[0][e] + v[1][e];
    if (dropout) drop_elements(values, dropout, row_numbers[i], j);
    for (int e = 0; e < vector_length<T>; ++e) values[e] += v[2][e];
    v[0] = pack<T>(values);
  }
};

/// v[0] = dropout(v[0])
struct Drop {
  static constexpr int inputs = 1, outputs = 1;
  Dropout dropout;
  const std::int32_t* row_numbers;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[1], Index i, Index j) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) values[e] = v[0][e];
    drop_elements(values, dropout, row_numbers[i], j);
    v[0] = pack<T>(values);
  }
};

/// v[0] = v[0] + v[1]
struct Add {
  static constexpr int inputs = 2, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[2], Index, Index) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) values[e] = v[0][e] + v[1][e];
    v[0] = pack<T>(values);
  }
};

/// v[0] stays what it is, bit for bit.
struct Copy {
  static constexpr int inputs = 1, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&)[1], Index, Index) const {}
};

/// v[0] = 0
struct FillZero {
  static constexpr int inputs = 0, outputs = 1;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[1], Index, Index) const {
    v[0] = {};
  }
};

}  // namespace elementwise

}  // namespace fedlora::cuda

#endif
