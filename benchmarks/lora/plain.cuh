// SPDX-License-Identifier: Apache-2.0
// One cuBLAS product after another. Of a layer without low-rank terms it is the bare product of each frozen matrix,
// which every other time is divided by.
#pragma once

#include "library.cuh"

namespace fedlora::benchmarks {

template <class T>
struct Plain : LibraryVariant<T> {
  static constexpr const char* name = "plain";
  explicit Plain(const Setup& setup) : LibraryVariant<T>(setup, cuda::LowRankPath::plain, 0) {}
};

}  // namespace fedlora::benchmarks
