// SPDX-License-Identifier: Apache-2.0
// LayerNorm, RMSNorm and the residual sum of every backend against their formulas in double.
#pragma once

#include "backend/conformance.hpp"

namespace fedlora::tests {
namespace {

Values norm_of(NormKind kind, const Values& x, const Values& gamma, const Values& beta, double eps) {
  Values y = x;
  const auto size = static_cast<double>(x.cols);
  for (Index i = 0; i < x.rows; ++i) {
    double mean = 0;
    double square = 0;
    if (kind == NormKind::layer_norm)
      for (Index j = 0; j < x.cols; ++j) mean += x(i, j) / size;
    for (Index j = 0; j < x.cols; ++j) square += (x(i, j) - mean) * (x(i, j) - mean) / size;
    for (Index j = 0; j < x.cols; ++j) {
      y(i, j) = gamma(0, j) * (x(i, j) - mean) / std::sqrt(square + eps);
      if (kind == NormKind::layer_norm) y(i, j) += beta(0, j);
    }
  }
  return y;
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("normalisation, forward and backward", B, norm) {
  using T = typename B::Element;
  using S = typename B::Scalar;
  Worker<B> run;
  in_every_layout<B>([&] {
    for (const NormKind kind : {NormKind::layer_norm, NormKind::rms_norm})
      for (const Index rows : {0, 1, 5})
        for (const Index width : sizes<Index>({1, 2, 15, 16, 17, 31, 32, 33, 61}))
          for (const double eps : {1e-5, 0.5}) {
            CAPTURE(static_cast<int>(kind));
            CAPTURE(width);
            CAPTURE(eps);
            Values x = random_values(rows, width, 1);
            for (double& value : x.data) value += 2;  // a mean that matters
            x = rounded<B>(x);
            const Values gamma = random_for<B>(1, width, 2), beta = random_for<B>(1, width, 3);
            const Values dy = random_for<B>(rows, width, 4), dx0 = random_for<B>(rows, width, 5);
            const Guarded<T> x_in(x), dy_in(dy);
            Guarded<T> gamma_in(gamma), beta_in(beta), y(rows, width);
            Guarded<S> statistics(rows, 2);
            const T* shift = kind == NormKind::layer_norm ? beta_in.row() : nullptr;
            run.norm_forward(kind, x_in.in(), gamma_in.row(), shift, eps, y.view(), statistics.view());
            check_close(y, norm_of(kind, x, gamma, beta, eps), 4 * tolerance<B>, "y");
            CHECK(statistics.intact());

            Guarded<T> in_place(x);
            Guarded<S> statistics_again(rows, 2);
            run.norm_forward(kind, in_place.in(), gamma_in.row(), shift, eps, in_place.view(), statistics_again.view());
            CHECK(in_place.values().data == y.values().data);

            Guarded<T> dx(rows, width), added(dx0), over(dy);
            run.norm_backward(kind, dy_in.in(), x_in.in(), statistics.in(), gamma_in.row(), dx.view(), false);
            run.norm_backward(kind, dy_in.in(), x_in.in(), statistics.in(), gamma_in.row(), added.view(), true);
            run.norm_backward(kind, over.in(), x_in.in(), statistics.in(), gamma_in.row(), over.view(), false);
            CHECK(dx.intact());
            CHECK(over.values().data == dx.values().data);
            // A row of one or two channels is nearly constant after LayerNorm: its gradient is a difference of nearly
            // equal numbers, known to the size of dy.
            const double size = std::max(1.0, largest(dy) * (rows > 0 ? largest(gamma) : 0.0));
            if (rows > 0 && width > 2)
              check_slopes([&](const std::vector<Values>& v) { return dot(norm_of(kind, v[0], gamma, beta, eps), dy); },
                           {x}, {dx.values()}, 2 * slope_tolerance<B>, "norm");
            if (rows > 0 && width == 1 && kind == NormKind::layer_norm)
              CHECK(largest(dx.values()) <= 1e-5 * size / eps);
            check_close(added, sum_of(dx.values(), dx0), tolerance<B> * (sizeof(T) == 2 ? 2 : 10), "dx + …");
          }
  });
}

TEST_CASE_TEMPLATE_DEFINE("normalisation of a far mean does not lose the deviation", B, norm_mean) {
  using T = typename B::Element;
  using S = typename B::Scalar;
  Worker<B> run;
  // Var as E[x²] - E[x]² would have no correct digit left in float. Elements of 16 bits do not hold such numbers:
  // theirs are as far as leaves the deviation a few bits.
  Values x = random_values(3, 33, 1);
  for (double& value : x.data) value += by_type<B>(4096, 4096, 8, 64);
  for (double& value : x.data) value = static_cast<double>(static_cast<float>(value));
  x = rounded<B>(x);
  Values gamma(1, 33), beta(1, 33);
  for (double& value : gamma.data) value = 1;
  const Guarded<T> x_in(x);
  Guarded<T> gamma_in(gamma), beta_in(beta), y(3, 33);
  Guarded<S> statistics(3, 2);
  run.norm_forward(NormKind::layer_norm, x_in.in(), gamma_in.row(), beta_in.row(), 1e-12, y.view(), statistics.view());
  CHECK(error_of(y.values(), norm_of(NormKind::layer_norm, x, gamma, beta, 1e-12)) <=
        by_type<B>(1e-11, 1e-3, 4e-3, 1e-3));
}

TEST_CASE_TEMPLATE_DEFINE("residual sum with bias and dropout", B, residual) {
  using T = typename B::Element;
  Worker<B> run;
  const std::vector<std::int32_t> numbers = {4, 0, 9, 2, 7};
  const std::int32_t* const placed = run.place(numbers);
  run.flush();
  in_every_layout<B>([&] {
    for (const Index width : {1, 17, 64, 70})
      for (const bool biased : {false, true})
        for (const double probability : {0.0, 0.3}) {
          CAPTURE(width);
          const Dropout dropout(derive_key(1, Purpose::hidden_dropout), probability);
          const Values x = random_for<B>(5, width, 1), bias = random_for<B>(1, width, 2),
                       r = random_for<B>(5, width, 3);
          Guarded<T> in_place(x), bias_in(bias);
          const Guarded<T> r_in(r);
          run.add_residual(in_place.view(), biased ? bias_in.row() : nullptr, r_in.in(), dropout, placed, 1, 4);
          Values expected = x;  // rows 0 and 4 are not in the run
          for (Index i = 1; i < 4; ++i)
            for (Index j = 0; j < width; ++j)
              expected(i, j) =
                  (x(i, j) + (biased ? bias(0, j) : 0.0)) * mask_of(dropout, numbers[static_cast<std::size_t>(i)], j) +
                  r(i, j);
          check_close(in_place, expected, tolerance<B>, "residual");
        }
  });
}

}  // namespace fedlora::tests
