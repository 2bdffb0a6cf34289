// SPDX-License-Identifier: Apache-2.0
// The library's kernels around the base product: S Bᵀ is always added to the result.
#pragma once

#include "library.cuh"

namespace fedlora::benchmarks {

template <class T>
struct Expanded : LibraryVariant<T> {
  static constexpr const char* name = "expanded";
  explicit Expanded(const Setup& setup) : LibraryVariant<T>(setup, cuda::LowRankPath::fused, 0) {}
};

}  // namespace fedlora::benchmarks
