// SPDX-License-Identifier: Apache-2.0
// The variants that are measured. One is a class template over the type of elements (float, Bf16 or Half) with
//
//   static constexpr const char* name
//   explicit V(const Setup&)       what it needs for all layers
//   static Index room(Index ranks) columns it wants behind the rows of x and of each dY, whose terms have so many ranks
//                                  together, each rounded up to a multiple of 8
//   void prepare(Layer<T>&)        once for each layer, before anything is timed; may allocate
//   void forward(Layer<T>&)        puts work into the stream that writes each y; what backward needs of it stays in s,
//                                  behind x, or in memory of its own
//   void backward(Layer<T>&)       work that writes dx and adds to grad_a and grad_b; after a forward of that layer
//
// forward and backward are captured as a graph after they have run once: from then on they allocate nothing, and touch
// no host memory. Before anything is timed, results are compared with those of `Plain`, and two runs bit by bit. With
// dropout that means the mask of core/random.hpp (`Dropout`).
#pragma once

#include "augmented.cuh"
#include "expanded.cuh"
#include "fused.cuh"
#include "plain.cuh"

namespace fedlora::benchmarks {

template <template <class> class... V>
struct VariantList {};

using Variants = VariantList<Plain, Fused, Expanded, Augmented>;

}  // namespace fedlora::benchmarks
