// SPDX-License-Identifier: Apache-2.0
// Merging: a low-rank term folded into a dense weight, and taken out again. An export; the base itself is never
// changed.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"
#include "fedlora/lora/adapter.hpp"

namespace fedlora {

/// ΔW = scale · B A of a site, (out, in) row-major, computed in double.
template <class T>
std::vector<double> dense_update(const Adapter<T>& adapter, Index site) {
  const MatrixView<const T> a = adapter.a(site);
  const MatrixView<const T> b = adapter.b(site);
  const double scale = adapter.layout().sites[static_cast<std::size_t>(site)].scale;
  std::vector<double> update(static_cast<std::size_t>(b.rows * a.cols), 0.0);
  for (Index i = 0; i < b.rows; ++i) {
    double* const row = update.data() + i * a.cols;
    for (Index k = 0; k < a.rows; ++k) {
      const double factor = scale * static_cast<double>(b(i, k));
      for (Index j = 0; j < a.cols; ++j) row[j] += factor * static_cast<double>(a(k, j));
    }
  }
  return update;
}

namespace detail {

template <class T, class W>
void add_dense_update(const Adapter<T>& adapter, Index site, std::span<W> weight, double sign) {
  const std::vector<double> update = dense_update(adapter, site);
  if (weight.size() != update.size())
    fail<ShapeError>("merging module " + adapter.layout().sites[static_cast<std::size_t>(site)].name,
                     "a weight of " + std::to_string(update.size()) + " numbers", std::to_string(weight.size()));
  for (std::size_t i = 0; i < update.size(); ++i)
    weight[i] = static_cast<W>(static_cast<double>(weight[i]) + sign * update[i]);
}

}  // namespace detail

/// W ← W + scale · B A, in double and rounded to W's type once. `weight` is (out, in), row-major. ShapeError for
/// another size.
template <class T, class W>
void merge(const Adapter<T>& adapter, Index site, std::span<W> weight) {
  detail::add_dense_update(adapter, site, weight, 1.0);
}

/// W ← W − scale · B A. After `merge` it gives the weight back up to one rounding of each.
template <class T, class W>
void unmerge(const Adapter<T>& adapter, Index site, std::span<W> weight) {
  detail::add_dense_update(adapter, site, weight, -1.0);
}

}  // namespace fedlora
