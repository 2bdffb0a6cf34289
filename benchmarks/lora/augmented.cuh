// SPDX-License-Identifier: Apache-2.0
// The low-rank term as part of the base product, in both directions, with a second copy of each W that is kept beside
// its factors: only these are written again in every step. S and dS are written where the products read them.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/low_rank_augmented.cuh"
#include "fedlora/backend/cuda/low_rank_backward.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "layers.hpp"
#include "setup.cuh"

namespace fedlora::benchmarks {

template <class T>
class Augmented {
 public:
  static constexpr const char* name = "augmented";

  explicit Augmented(const Setup& setup)
      : stream_(setup.stream),
        math_(setup.math),
        kept_(setup.memory, setup.stream),
        arena_(setup.memory, setup.stream),
        blas_(setup.memory, setup.stream) {}

  static Index room(Index ranks) { return ranks; }

  /// Of each part, in one matrix: [W | scale · B] is its first `out` rows, and [W ; A] its first `in` columns.
  void prepare(Layer<T>& layer) {
    if (slots_.size() <= layer.number) slots_.resize(layer.number + 1);
    for (const LinearPart<T, float>& part : layer.parts) {
      const FrozenMatrix& w = *part.weight;
      slots_[layer.number].push_back(kept_.matrix<T>(w.rows + padded(part), w.cols + columns(layer)));
      cuda::fill_augmented<T>(cuda::Augmented::by_columns, w.view<T>(), {},
                              slots_[layer.number].back().rows_between(0, w.rows), stream_);
    }
  }

  void forward(Layer<T>& layer) {
    cuda::ShrinkTerm<T> terms[cuda::largest_group];
    Index column = 0;
    for (std::size_t i = 0; i < layer.parts.size(); ++i) {
      const LinearPart<T, float>& part = layer.parts[i];
      const FrozenMatrix& w = *part.weight;
      const cuda::AugmentedPiece<T> piece{layer.terms[i].b, layer.terms[i].scale, 0, column};
      cuda::refresh_augmented<T>(cuda::Augmented::by_columns, w.rows, w.cols, {&piece, 1},
                                 slots_[layer.number][i].rows_between(0, w.rows), stream_);
      terms[i] = {layer.terms[i], behind(layer.x, column, padded(part))};
      column += padded(part);
    }
    const auto scope = arena_.scope();
    const std::vector<cuda::TermShape> shapes = shapes_of(layer);
    cuda::low_rank_shrink_group<T>(
        layer.x, {terms, layer.parts.size()},
        arena_.bytes(cuda::low_rank_shrink_group_workspace<T>(layer.x.rows, layer.x.cols, shapes)), stream_, math_);
    for (std::size_t i = 0; i < layer.parts.size(); ++i)
      blas_.multiply_bias<T>(longer(layer.x, column), slots_[layer.number][i].rows_between(0, layer.parts[i].y.cols),
                             nullptr, layer.parts[i].y, math_);
  }

  void backward(Layer<T>& layer) {
    // The mask of dropout comes between dS A and dX, so that dX cannot be one product.
    const bool one_product = !layer.terms[0].dropout;
    bool accumulate = false;
    const auto base = [&](MatrixView<const T> dy, MatrixView<const T> w) {
      blas_.multiply<T, T>(false, false, dy.rows, w.cols, dy.cols, 1.0f, dy.data, dy.stride, w.data, w.stride,
                           accumulate ? 1.0f : 0.0f, layer.dx.data, layer.dx.stride, math_);
      accumulate = true;
    };
    cuda::BackwardTerm<T> terms[cuda::largest_group];
    Index column = 0;
    for (std::size_t i = 0; i < layer.parts.size(); ++i) {
      const LinearPart<T, float>& part = layer.parts[i];
      MatrixView<T> ds;
      if (one_product)
        ds = behind(layer.dy[i], 0, padded(part));
      else
        base(part.dy, part.weight->template view<T>());
      terms[i] = {layer.terms[i], part.dy, behind(layer.x, column, layer.terms[i].rank()), ds};
      column += padded(part);
    }
    const std::vector<cuda::TermShape> shapes = shapes_of(layer);
    {
      const auto scope = arena_.scope();
      cuda::low_rank_backward_group<T>(
          layer.x, {terms, layer.parts.size()}, one_product ? MatrixView<T>{} : layer.dx,
          arena_.bytes(cuda::low_rank_backward_group_workspace<T>(layer.x.rows, layer.x.cols, shapes)), stream_, math_);
    }
    for (std::size_t i = 0; one_product && i < layer.parts.size(); ++i) {
      const FrozenMatrix& w = *layer.parts[i].weight;
      const MatrixView<T> slot = slots_[layer.number][i].left(w.cols);
      const cuda::AugmentedPiece<T> piece{layer.terms[i].a};
      cuda::refresh_augmented<T>(cuda::Augmented::by_rows, w.rows, w.cols, {&piece, 1}, slot, stream_);
      base(longer(layer.dy[i], padded(layer.parts[i])), slot);
    }
  }

 private:
  static Index padded(const LinearPart<T, float>& part) { return cuda::padded_rank(part.terms[0].rank()); }
  static Index columns(const Layer<T>& layer) {
    Index sum = 0;
    for (const LinearPart<T, float>& part : layer.parts) sum += padded(part);
    return sum;
  }
  static MatrixView<T> behind(MatrixView<T> matrix, Index column, Index count) {
    return {matrix.data + matrix.cols + column, matrix.rows, count, matrix.stride};
  }
  static MatrixView<T> longer(MatrixView<T> matrix, Index count) {
    return {matrix.data, matrix.rows, matrix.cols + count, matrix.stride};
  }
  static std::vector<cuda::TermShape> shapes_of(const Layer<T>& layer) {
    std::vector<cuda::TermShape> shapes;
    for (const LinearPart<T, float>& part : layer.parts) shapes.push_back({part.weight->rows, part.terms[0].rank()});
    return shapes;
  }

  cuda::Stream stream_;
  cuda::FloatMath math_;
  cuda::Arena kept_, arena_;
  cuda::Blas blas_;
  std::vector<std::vector<MatrixView<T>>> slots_;
};

}  // namespace fedlora::benchmarks
