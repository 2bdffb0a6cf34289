// SPDX-License-Identifier: Apache-2.0
// What moves, averages and rotates rows.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "fedlora/backend/cuda/rows.cuh"

namespace fedlora::smoke {

/// Where the sequences of a shape begin, and the end of the last.
inline std::vector<std::int32_t> bounds_of(const Shape& shape) {
  std::vector<std::int32_t> bounds = {0};
  for (const Index length : shape.lengths) bounds.push_back(bounds.back() + static_cast<std::int32_t>(length));
  return bounds;
}

template <class T>
void check_rows(Check& check) {
  const Shape& shape = check.shape;
  const Gpu& gpu = check.gpu;
  const cuda::Stream stream = gpu.stream();
  const double bound = check.tolerance<T>();
  const Index rows = shape.rows(), cols = shape.hidden, known = std::min<Index>(shape.vocabulary, 4096),
              positions = 2 * rows;
  const auto sequences = static_cast<Index>(shape.lengths.size());
  const Values words = random<T>(known, cols, 21), places = random<T>(positions, cols, 22),
               kinds = random<T>(2, cols, 23);
  const Matrix<T> on_words(gpu, words, shape.layout), on_places(gpu, places, shape.layout),
      on_kinds(gpu, kinds, shape.layout);
  const Table<std::int32_t> word(gpu, numbers(rows, known)), place(gpu, numbers(rows, positions, 1)),
      kind(gpu, numbers(rows, 2));

  const MatrixView<const T> tables[] = {on_words.in(), on_places.in(), on_kinds.in()};
  const std::int32_t* const ids[] = {word.data(), place.data(), kind.data()};
  for (const std::size_t count : {std::size_t{1}, std::size_t{2}, std::size_t{3}}) {
    Matrix<T> y(gpu, rows, cols, shape.layout);
    cuda::embed<T>({tables, count}, {ids, count}, y.view(), stream);
    check.matrix("embedding of " + std::to_string(count), y, count == 1 ? 0 : bound, [&](Index i, double* to) {
      for (Index j = 0; j < cols; ++j)
        to[j] = words(word[i], j) + (count > 1 ? places(place[i], j) : 0) + (count > 2 ? kinds(kind[i], j) : 0);
    });
  }
  const Values x = random<T>(rows, cols, 24);
  const Matrix<T> on_x(gpu, x, shape.layout);
  const Index some = rows / 3;
  const Table<std::int32_t> chosen(gpu, [&] {
    std::vector<std::int32_t> result;
    for (Index k = 0; k < some; ++k) result.push_back(static_cast<std::int32_t>(rows - 1 - 3 * k));  // distinct
    return result;
  }());
  {
    Matrix<T> taken(gpu, some, cols, shape.layout), whole(gpu, x, shape.layout);
    cuda::gather_rows<T>(on_x.in(), chosen.data(), taken.view(), stream);
    check.matrix("gathered", taken, 0, [&](Index i, double* to) {
      for (Index j = 0; j < cols; ++j) to[j] = x(chosen[i], j);
    });
    const Values more = random<T>(some, cols, 25);
    const Matrix<T> on_more(gpu, more, shape.layout);
    cuda::scatter_rows_add<T>(on_more.in(), chosen.data(), whole.view(), stream);
    check.matrix("scattered", whole, bound, [&](Index i, double* to) {
      const Index k = (rows - 1 - i) % 3 == 0 && (rows - 1 - i) / 3 < some ? (rows - 1 - i) / 3 : -1;
      for (Index j = 0; j < cols; ++j) to[j] = x(i, j) + (k >= 0 ? more(k, j) : 0.0);
    });
  }
  const std::vector<std::int32_t> bounds = bounds_of(shape);
  const auto at = [&](Index s) { return Index{bounds[static_cast<std::size_t>(s)]}; };
  const Table<std::int32_t> on_bounds(gpu, bounds);
  {
    Matrix<T> means(gpu, sequences, cols, shape.layout), dx(gpu, rows, cols, shape.layout);
    cuda::mean_rows<T>(on_x.in(), on_bounds.data(), means.view(), stream);
    check.matrix("means", means, bound, [&](Index s, double* to) {
      for (Index j = 0; j < cols; ++j) {
        to[j] = 0;
        for (Index i = at(s); i < at(s + 1); ++i) to[j] += x(i, j) / static_cast<double>(at(s + 1) - at(s));
      }
    });
    const Values dy = random<T>(sequences, cols, 26);
    const Matrix<T> on_dy(gpu, dy, shape.layout);
    cuda::mean_rows_backward<T>(on_dy.in(), on_bounds.data(), dx.view(), stream);
    check.matrix("means backward", dx, bound, [&](Index i, double* to) {
      Index s = 0;
      while (at(s + 1) <= i) ++s;
      for (Index j = 0; j < cols; ++j) to[j] = dy(s, j) / static_cast<double>(at(s + 1) - at(s));
    });
  }
  const Index half = shape.head_dim / 2;
  const Index turned = shape.heads * shape.head_dim;
  const Values q = random<T>(rows, turned, 27);
  Values cosines(positions, half), sines(positions, half);
  for (Index p = 0; p < positions; ++p)
    for (Index d = 0; d < half; ++d) {
      const double angle = static_cast<double>(p) * std::pow(1e4, -static_cast<double>(d) / static_cast<double>(half));
      cosines(p, d) = static_cast<double>(static_cast<float>(std::cos(angle)));
      sines(p, d) = static_cast<double>(static_cast<float>(std::sin(angle)));
    }
  const Matrix<float> on_cosines(gpu, cosines, shape.layout), on_sines(gpu, sines, shape.layout);
  for (const bool inverse : {false, true}) {
    Matrix<T> rotated(gpu, q, shape.layout);
    cuda::rotate<T>(rotated.view(), shape.heads, shape.head_dim, place.data(), on_cosines.in(), on_sines.in(), inverse,
                    stream);
    check.matrix(inverse ? "rotated back" : "rotated", rotated, bound, [&](Index i, double* to) {
      for (Index h = 0; h < shape.heads; ++h)
        for (Index d = 0; d < half; ++d) {
          const Index low = h * shape.head_dim + d, high = low + half;
          const double c = cosines(place[i], d), s = sines(place[i], d) * (inverse ? -1 : 1);
          to[low] = q(i, low) * c - q(i, high) * s;
          to[high] = q(i, high) * c + q(i, low) * s;
        }
    });
  }
}

}  // namespace fedlora::smoke
