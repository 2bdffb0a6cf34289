// SPDX-License-Identifier: Apache-2.0
// What the plain path of a low-rank term, one matrix product after another, needs beside the products: dropout on the
// way in is `dropout` (pointwise.cuh), and dropout on the way back is here.
#pragma once

#include <cstdint>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/elementwise.cuh"
#include "fedlora/backend/cuda/packed.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

namespace elementwise {

/// v[0] = dropout(v[0]) + v[1]
struct AddDropped {
  static constexpr int inputs = 2;
  static constexpr int outputs = 1;
  Dropout dropout;
  const std::int32_t* row_numbers;
  template <class T>
  FEDLORA_DEVICE void operator()(Packed<T> (&v)[2], Index i, Index j) const {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) values[e] = v[0][e];
    drop_elements(values, dropout, row_numbers[i], j);
    for (int e = 0; e < vector_length<T>; ++e) values[e] += v[1][e];
    v[0] = pack<T>(values);
  }
};

}  // namespace elementwise

/// dX += mask ∘ product, times the scale, rounded once. The mask is that of core/random.hpp for (row_numbers[i],
/// channel): the one that dropout drew on the way in.
/// Shapes:      product, dx (rows, cols), row_numbers (rows), unread without dropout; all in device memory
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void masked_add(MatrixView<const T> product, const Dropout& dropout, const std::int32_t* row_numbers, MatrixView<T> dx,
                Stream stream) {
  detail::check_shape("cuda::masked_add", "dX", product.rows, product.cols, dx.rows, dx.cols);
  if (dropout)
    detail::pointwise<T>(stream, elementwise::AddDropped{dropout, row_numbers}, {product, dx}, {dx});
  else
    detail::pointwise<T>(stream, elementwise::Add{}, {product, dx}, {dx});
}

}  // namespace fedlora::cuda

#endif
