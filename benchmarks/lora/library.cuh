// SPDX-License-Identifier: Apache-2.0
// What the variants that call the library's linear layers share.
#pragma once

#include <cstddef>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/linear.cuh"
#include "layers.hpp"
#include "setup.cuh"

namespace fedlora::benchmarks {

template <class T>
class LibraryVariant {
 public:
  LibraryVariant(const Setup& setup, cuda::LowRankPath path, std::size_t slot_bytes)
      : arena_(setup.memory, setup.stream),
        blas_(setup.memory, setup.stream),
        linear_(options(setup, path, slot_bytes), setup.memory, setup.stream) {}

  static Index room(Index) { return 0; }
  void prepare(Layer<T>&) {}
  void forward(Layer<T>& layer) { linear_.forward(blas_, arena_, layer.x, layer.parts); }
  void backward(Layer<T>& layer) { linear_.backward(blas_, arena_, layer.x, layer.parts, layer.dx, false); }

 private:
  static cuda::Options options(const Setup& setup, cuda::LowRankPath path, std::size_t slot_bytes) {
    cuda::Options result;
    result.math = setup.math;
    result.low_rank = path;
    result.slot_bytes = slot_bytes;
    return result;
  }

  cuda::Arena arena_;
  cuda::Blas blas_;
  cuda::Linear<T> linear_;
};

}  // namespace fedlora::benchmarks
