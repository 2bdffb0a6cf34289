// SPDX-License-Identifier: Apache-2.0
// Rows, element by element: sums, products, the residual sum.
#pragma once

#include <cstdint>

#include "fedlora/backend/cpu/dropout.hpp"
#include "fedlora/backend/cpu/lanes.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL {

/// to ← to + from.
template <class T>
void add_row(const T* from, Index size, T* to) {
  for (Index j = 0; j < size; ++j) to[j] += from[j];
}

/// result ← a ∘ b; it may be one of them.
template <class T>
void multiply_row(const T* a, const T* b, Index size, T* result) {
  for (Index j = 0; j < size; ++j) result[j] = a[j] * b[j];
}

/// x ← dropout(x + bias) + residual, in place. `bias` may be null; `row_numbers` address the dropout.
template <class T>
void residual_row(T* x, Index size, const T* bias, const T* residual, const Dropout& dropout, std::int32_t row_number) {
  if (dropout) {
    if (bias != nullptr)
      for (Index j = 0; j < size; ++j) x[j] += bias[j];
    dropout_row(dropout, static_cast<std::uint32_t>(row_number), 0, size, x, x);
    for (Index j = 0; j < size; ++j) x[j] += residual[j];
  } else if (bias != nullptr) {
    for (Index j = 0; j < size; ++j) x[j] += bias[j] + residual[j];
  } else {
    for (Index j = 0; j < size; ++j) x[j] += residual[j];
  }
}

}  // namespace fedlora::cpu::inline FEDLORA_CPU_LEVEL
