// SPDX-License-Identifier: Apache-2.0
// LayerNorm and RMSNorm.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "check.hpp"
#include "fedlora/backend/cuda/norm.cuh"
#include "fedlora/backend/operations.hpp"

namespace fedlora::smoke {

template <class T>
void check_norm(Check& check) {
  const Shape& shape = check.shape;
  const Gpu& gpu = check.gpu;
  const double bound = check.tolerance<T>();
  constexpr double eps = 1e-2;  // so large that a norm without it is seen
  for (const Index cols : shape.norm_cols) {
    const Index rows = cols == shape.norm_cols.front() ? shape.rows() : std::min<Index>(shape.rows(), 40);
    Values x = random<T>(rows, cols, 11, 2);
    for (Index i = 0; i < rows; ++i)  // far means: E[x²] - E[x]² would not do
      for (Index j = 0; j < cols; ++j)
        x(i, j) = static_cast<double>(static_cast<float>(T(static_cast<float>(x(i, j) + 3))));
    const Values dy = random<T>(rows, cols, 12), gamma = random<T>(1, cols, 13), beta = random<T>(1, cols, 14);
    const Values before = random<T>(rows, cols, 15);
    const Matrix<T> on_x(gpu, x, shape.layout), on_dy(gpu, dy, shape.layout);
    const Matrix<T> on_gamma(gpu, gamma, shape.layout), on_beta(gpu, beta, shape.layout);
    for (const NormKind kind : {NormKind::layer_norm, NormKind::rms_norm}) {
      const bool layer = kind == NormKind::layer_norm;
      const std::string name = (layer ? "layer " : "rms ") + std::to_string(cols);
      Values statistics(rows, 2);
      for (Index i = 0; i < rows; ++i) {
        double mean = 0, square = 0;
        for (Index j = 0; layer && j < cols; ++j) mean += x(i, j) / static_cast<double>(cols);
        for (Index j = 0; j < cols; ++j) square += (x(i, j) - mean) * (x(i, j) - mean) / static_cast<double>(cols);
        statistics(i, 0) = mean;
        statistics(i, 1) = 1 / std::sqrt(square + eps);
      }
      const auto normal = [&](Index i, Index j) { return (x(i, j) - statistics(i, 0)) * statistics(i, 1); };
      Matrix<T> y(gpu, rows, cols, shape.layout);
      Matrix<float> found(gpu, rows, 2, Layout::odd);
      cuda::norm_forward<T>(kind, on_x.in(), on_gamma.data(), layer ? on_beta.data() : nullptr, eps, y.view(),
                            found.view(), gpu.stream());
      check.matrix(name, y, bound, [&](Index i, double* to) {
        for (Index j = 0; j < cols; ++j) to[j] = normal(i, j) * gamma(0, j) + (layer ? beta(0, j) : 0.0);
      });
      check.matrix(name + ", statistics", found, 1e-5, [&](Index i, double* to) {
        to[0] = statistics(i, 0);
        to[1] = statistics(i, 1);
      });

      const Matrix<float> given(gpu, statistics, Layout::odd);
      for (const bool accumulate : {false, true}) {
        Matrix<T> dx(gpu, rows, cols, shape.layout);
        if (accumulate) dx.set(before);
        cuda::norm_backward<T>(kind, on_dy.in(), on_x.in(), given.in(), on_gamma.data(), dx.view(), accumulate,
                               gpu.stream());
        check.matrix(name + (accumulate ? ", backward added" : ", backward"), dx, bound, [&](Index i, double* to) {
          double mean = 0, product = 0;
          for (Index j = 0; j < cols; ++j) {
            const double g = dy(i, j) * gamma(0, j) / static_cast<double>(cols);
            if (layer) mean += g;
            product += g * normal(i, j);
          }
          for (Index j = 0; j < cols; ++j)
            to[j] = (dy(i, j) * gamma(0, j) - mean - normal(i, j) * product) * statistics(i, 1) +
                    (accumulate ? before(i, j) : 0.0);
        });
      }
    }
  }
}

}  // namespace fedlora::smoke
