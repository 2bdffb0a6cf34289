// SPDX-License-Identifier: Apache-2.0
// What the library does unless it is told otherwise: its kernels, with S Bᵀ as part of the base product where that is
// worth the copy of W.
#pragma once

#include "library.cuh"

namespace fedlora::benchmarks {

template <class T>
struct Fused : LibraryVariant<T> {
  static constexpr const char* name = "fused";
  explicit Fused(const Setup& setup) : LibraryVariant<T>(setup, cuda::LowRankPath::fused, cuda::Options{}.slot_bytes) {}
  static Index room(Index) { return cuda::augmented_columns; }
};

}  // namespace fedlora::benchmarks
