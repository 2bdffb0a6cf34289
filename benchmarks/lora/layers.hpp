// SPDX-License-Identifier: Apache-2.0
// The data of a case: random operands, and results that begin as NaN.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cases.hpp"
#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/random.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora::benchmarks {

/// Linear layers that read the same x, with a low-rank term on each: what a variant gets to compute. The formulas are
/// those of `LowRankTerm`; `parts[i]` has W, y, dy and S, `terms[i]` the factors, the scale, the dropout and where the
/// gradients are added.
template <class T>
struct Layer {
  std::size_t number = 0;  ///< among all layers that a variant gets, from 0
  MatrixView<T> x, dx;     ///< (rows, in)
  std::vector<LinearPart<T, float>> parts;
  std::vector<LowRankTerm<T, float>> terms;  ///< empty without low-rank terms
  std::vector<MatrixView<T>> dy;             ///< each part's, for who writes behind its rows
  std::vector<FrozenMatrix> weights;

  Layer() = default;
  Layer(Layer&&) = default;  // the parts point to the others, which stay where they are
  Layer& operator=(Layer&&) = default;
};

/// Element (row, col) of a random matrix, uniform in [-1, 1): with the same key, the same number on every device.
FEDLORA_HOST_DEVICE inline void random_values(RandomKey key, Index row, Index col, float (&values)[4]) {
  const RandomWords words =
      philox<7>({static_cast<std::uint32_t>(col) / 4, static_cast<std::uint32_t>(row), 0, 0}, key);
  for (std::size_t e = 0; e < 4; ++e) values[e] = static_cast<float>(words[e] >> 8) * 0x1p-23f - 1.0f;
}

/// The layers of a case. A term adds to y about as much as the frozen product does, so that none goes wrong unseen.
/// `place` gives memory and fills it:
///   matrix<U>(rows, cols, room)  (rows, cols) elements, with room for more columns behind the rows
///   fill(matrix, key, scale)     scale · random_values
///   row_numbers(rows)            0, 1, 2, …
/// `room(ranks)` is how many columns there shall be behind x and dy of terms of so many ranks together, each rounded up
/// to a multiple of 8; `copy` tells data apart that differ in nothing else.
template <class T, class Place, class Room>
std::vector<Layer<T>> make_layers(const Case& shape, Place& place, Index copy, const Room& room) {
  std::vector<Layer<T>> layers;
  std::uint64_t drawn = 0;
  const auto random = [&](auto matrix, double scale) {
    place.fill(matrix, derive_key(std::uint64_t{1}, Purpose::user, copy, drawn++), static_cast<float>(scale));
    return matrix;
  };
  const auto normal = [](Index inner) { return std::sqrt(3.0 / static_cast<double>(inner)); };
  const Index rows = shape.rows;
  const Index rank = shape.rank;
  const Index padded = (rank + 7) / 8 * 8;
  for (const auto& [in, outs] : shape.layers) {
    Layer<T> layer;
    layer.number = static_cast<std::size_t>(copy) * shape.layers.size() + layers.size();
    const Index parts = static_cast<Index>(outs.size());
    layer.x = random(place.template matrix<T>(rows, in, room(parts * padded)), 1);
    layer.dx = place.template matrix<T>(rows, in, 0);
    for (const Index out : outs) {
      const MatrixView<T> w = random(place.template matrix<T>(out, in, 0), normal(in));
      layer.weights.push_back({dtype_of<T>, out, in, w.data, nullptr});
      LinearPart<T, float> part;
      part.y = place.template matrix<T>(rows, out, 0);
      layer.dy.push_back(random(place.template matrix<T>(rows, out, room(padded)), 1));
      part.dy = layer.dy.back();
      if (rank > 0) {
        part.s = place.template matrix<T>(rows, rank, 0);
        LowRankTerm<T, float> term;
        term.end = rows;
        term.a = random(place.template matrix<T>(rank, in, 0), normal(in));
        term.b = random(place.template matrix<T>(out, rank, 0), normal(rank));
        term.scale = 2;
        term.grad_a = place.template matrix<float>(rank, in, 0);
        term.grad_b = place.template matrix<float>(out, rank, 0);
        if (shape.dropout > 0)
          term.dropout =
              Dropout(derive_key(std::uint64_t{2}, Purpose::user, layers.size(), layer.terms.size()), shape.dropout);
        term.row_numbers = place.row_numbers(rows);
        layer.terms.push_back(term);
      }
      layer.parts.push_back(part);
    }
    for (std::size_t i = 0; i < outs.size(); ++i) {
      layer.parts[i].weight = &layer.weights[i];
      if (rank > 0) layer.parts[i].terms = {&layer.terms[i], 1};
    }
    layers.push_back(std::move(layer));
  }
  return layers;
}

/// What a pass computes: a matrix in T, or a gradient.
template <class T>
struct Result {
  MatrixView<T> values;
  MatrixView<float> gradient;

  Index size() const { return values.empty() ? gradient.size() : values.size(); }
};

/// All results of a case, in an order that is the same for all variants.
template <class T>
std::vector<Result<T>> results_of(const std::vector<Layer<T>>& layers, const Case& shape) {
  std::vector<Result<T>> results;
  for (const Layer<T>& layer : layers) {
    if (shape.has_forward())
      for (const LinearPart<T, float>& part : layer.parts) results.push_back({part.y, {}});
    if (!shape.has_backward()) continue;
    results.push_back({layer.dx, {}});
    for (const LowRankTerm<T, float>& term : layer.terms) {
      results.push_back({{}, term.grad_a});
      results.push_back({{}, term.grad_b});
    }
  }
  return results;
}

/// Results become NaN, so that none is read or left out, and gradients 0, as they are added to.
template <class T, class Place>
void reset_results(std::vector<Layer<T>>& layers, Place& place) {
  const auto spoil = [&](MatrixView<T> matrix) {
    place.fill(matrix, RandomKey{}, std::numeric_limits<float>::quiet_NaN());
  };
  for (Layer<T>& layer : layers) {
    spoil(layer.dx);
    for (LinearPart<T, float>& part : layer.parts) {
      spoil(part.y);
      if (!part.s.empty()) spoil(part.s);
    }
    for (LowRankTerm<T, float>& term : layer.terms) {
      place.fill(term.grad_a, RandomKey{}, 0.0f);
      place.fill(term.grad_b, RandomKey{}, 0.0f);
    }
  }
}

}  // namespace fedlora::benchmarks
