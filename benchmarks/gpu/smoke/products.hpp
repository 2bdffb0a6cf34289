// SPDX-License-Identifier: Apache-2.0
// cuBLAS's products, and one linear layer with a low-rank term as a runner computes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.hpp"
#include "fedlora/backend/cuda.cuh"
#include "fedlora/backend/cuda/blas.cuh"

namespace fedlora::smoke {

template <class T>
void check_products(Check& check) {
  const Shape& shape = check.shape;
  const Gpu& gpu = check.gpu;
  const double bound = check.tolerance<T>();
  const Index m = shape.rows(), n = shape.hidden, k = shape.wide;
  cuda::Blas blas(gpu.memory, gpu.stream());
  const double size = std::sqrt(3.0 / static_cast<double>(k));
  for (const bool transpose_a : {false, true})
    for (const bool transpose_b : {false, true}) {
      const Values a = transpose_a ? random<T>(k, m, 81) : random<T>(m, k, 81);
      const Values b = transpose_b ? random<T>(n, k, 82, size) : random<T>(k, n, 82, size);
      const Values before = random<T>(m, n, 83);
      const Matrix<T> on_a(gpu, a, shape.layout), on_b(gpu, b, shape.layout);
      Matrix<T> c(gpu, m, n, shape.layout);
      Matrix<float> sums(gpu, before, shape.layout);
      const auto multiply = [&](float alpha, float beta, auto& to) {
        using C = std::remove_cvref_t<decltype(*to.data())>;
        blas.multiply<T, C>(transpose_a, transpose_b, m, n, k, alpha, on_a.in().data, on_a.in().stride, on_b.in().data,
                            on_b.in().stride, beta, to.data(), to.view().stride, check.math);
      };
      multiply(1.0f, 0.0f, c);
      multiply(0.5f, 1.0f, sums);
      const auto expected = [&](double alpha, double beta) {
        return [&, alpha, beta](Index i, double* to) {
          for (Index j = 0; j < n; ++j) {
            double sum = 0;
            for (Index l = 0; l < k; ++l) sum += (transpose_a ? a(l, i) : a(i, l)) * (transpose_b ? b(j, l) : b(l, j));
            to[j] = alpha * sum + (beta != 0 ? beta * before(i, j) : 0.0);
          }
        };
      };
      const std::string name = std::string("A") + (transpose_a ? "ᵀ" : "") + " B" + (transpose_b ? "ᵀ" : "");
      check.rows(name, c, bound, 0, m, some_of(m, 12), expected(1, 0));
      check.rows(name + " in float32, added", sums, bound, 0, m, some_of(m, 12), expected(0.5, 1));
    }
  const Values x = random<T>(m, k, 84), w = random<T>(n, k, 85, size), bias = random<T>(1, n, 86);
  const Matrix<T> on_x(gpu, x, shape.layout), on_w(gpu, w, shape.layout), on_bias(gpu, bias, shape.layout);
  for (const bool with_bias : {false, true}) {
    Matrix<T> y(gpu, m, n, shape.layout);
    blas.multiply_bias<T>(on_x.in(), on_w.in(), with_bias ? on_bias.data() : nullptr, y.view(), check.math);
    check.rows(with_bias ? "x Wᵀ + bias" : "x Wᵀ", y, bound, 0, m, some_of(m, 12), [&](Index i, double* to) {
      for (Index j = 0; j < n; ++j) {
        to[j] = with_bias ? bias(0, j) : 0;
        for (Index l = 0; l < k; ++l) to[j] += x(i, l) * w(j, l);
      }
    });
  }
}

/// Forward and backward of one layer, in memory that the runner itself lays out.
template <class T>
void check_runner(Check& check) {
  const Shape& shape = check.shape;
  const Index rows = shape.rows(), in = shape.hidden, out = shape.wide, rank = shape.rank;
  const double bound = 2 * check.tolerance<T>();  // what is added to has been rounded before
  const double size = std::sqrt(3.0 / static_cast<double>(in));
  const Values x = random<T>(rows, in, 91), w = random<T>(out, in, 92, size), bias = random<T>(1, out, 93);
  const Values a = random<T>(rank, in, 94, size), b = random<T>(out, rank, 95);
  const Values dy = random<T>(rows, out, 96, std::sqrt(3.0 / static_cast<double>(out)));
  const std::vector<std::int32_t> number = numbers(rows, 91);
  for (const auto path : {cuda::LowRankPath::fused, cuda::LowRankPath::plain})
    for (const double probability : {0.0, 0.25}) {
      CudaOptions options;
      options.math = check.math;
      options.low_rank = path;
      const CudaBackend<T> backend(options);
      cuda::Runner<T> run(backend);
      const std::string name =
          std::string(path == cuda::LowRankPath::fused ? "fused" : "plain") + (probability > 0 ? ", dropout: " : ": ");
      const auto adopted = [&](const Values& values, const char* what) {
        std::vector<float> floats(values.data.begin(), values.data.end());
        return backend.adopt(Dtype::f32, values.rows, values.cols, std::as_bytes(std::span<const float>(floats)),
                             nullptr, what);
      };
      const FrozenMatrix on_w = adopted(w, "W"), on_bias = adopted(bias, "bias");
      // As an adapter has them: A, then B.
      std::vector<float> factors(a.data.begin(), a.data.end());
      factors.insert(factors.end(), b.data.begin(), b.data.end());
      const std::span<const T> parameters = run.parameters(factors);
      std::vector<float> gradients(factors.size(), 0.25f);
      const std::span<float> gradient = run.open_gradient(gradients);
      run.expect(rows);
      const auto fill = [&](MatrixView<T> to, const Values& from) {
        std::vector<T> values;
        for (const double value : from.data) values.push_back(T(static_cast<float>(value)));
        cuda::upload<T>(MatrixView<const T>(values.data(), from.rows, from.cols), to, run.stream());
      };
      const MatrixView<T> on_x = run.operand(rows, in), on_dy = run.operand(rows, out);
      const MatrixView<T> y = run.matrix(rows, out), dx = run.matrix(rows, in), s = run.matrix(rows, rank);
      fill(on_x, x);
      fill(on_dy, dy);
      Values poison(rows, out);
      for (double& value : poison.data) value = std::numeric_limits<double>::quiet_NaN();
      fill(y, poison);
      poison = Values(rows, in);
      for (double& value : poison.data) value = std::numeric_limits<double>::quiet_NaN();
      fill(dx, poison);
      LowRankTerm<T, float> term;
      term.end = rows;
      term.a = {parameters.data(), rank, in};
      term.b = {parameters.data() + rank * in, out, rank};
      term.scale = 2;
      term.grad_a = {gradient.data(), rank, in};
      term.grad_b = {gradient.data() + rank * in, out, rank};
      if (probability > 0) term.dropout = Dropout(derive_key(std::uint64_t{10}, Purpose::user, 1), probability);
      term.row_numbers = run.place(number);
      run.flush();
      LinearPart<T, float> part;
      part.weight = &on_w;
      part.bias = static_cast<const T*>(on_bias.data);
      part.y = y;
      part.dy = on_dy;
      part.s = s;
      part.terms = {&term, 1};
      run.linear_forward(on_x, std::span<const LinearPart<T, float>>(&part, 1));
      run.linear_backward(on_x, std::span<const LinearPart<T, float>>(&part, 1), dx, false);
      std::vector<float> of_y(static_cast<std::size_t>(rows * out)), of_dx(static_cast<std::size_t>(rows * in));
      run.download(y, of_y.data());
      run.download(dx, of_dx.data());
      run.close_gradient(gradients);

      // The loss scale is no business of a layer: without a loss the gradient is divided by it all the same.
      const double scale = cuda::default_loss_scaling<T>.initial;
      Values dropped(rows, in);
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < in; ++j)
          dropped(i, j) = x(i, j) * mask(term.dropout, number[static_cast<std::size_t>(i)], j);
      Values of_s(rows, rank), ds(rows, rank);
      for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < in; ++j) {
          const double value = dropped(i, j);
          for (Index r = 0; r < rank; ++r) of_s(i, r) += value * a(r, j);
        }
        for (Index j = 0; j < out; ++j)
          for (Index r = 0; r < rank; ++r) ds(i, r) += 2 * dy(i, j) * b(j, r);
      }
      const auto against = [&](const std::string& what, const float* got, Index got_rows, Index cols, double factor,
                               double offset, const auto& expected) {
        // By way of the device again, so that one comparison serves all.
        Values values(got_rows, cols);
        for (std::size_t k = 0; k < values.data.size(); ++k)
          values.data[k] = (static_cast<double>(got[k]) - offset) * factor;
        Matrix<float> matrix(check.gpu, values, Layout::odd);
        check.rows(name + what, matrix, bound, 0, got_rows, some_of(got_rows, 16), expected);
      };
      against("y", of_y.data(), rows, out, 1, 0, [&](Index i, double* to) {
        for (Index j = 0; j < out; ++j) {
          to[j] = bias(0, j);
          for (Index k = 0; k < in; ++k) to[j] += x(i, k) * w(j, k);
          for (Index r = 0; r < rank; ++r) to[j] += 2 * of_s(i, r) * b(j, r);
        }
      });
      against("dX", of_dx.data(), rows, in, 1, 0, [&](Index i, double* to) {
        std::fill_n(to, in, 0.0);
        for (Index j = 0; j < out; ++j)
          for (Index k = 0; k < in; ++k) to[k] += dy(i, j) * w(j, k);
        for (Index k = 0; k < in; ++k)
          for (Index r = 0; r < rank; ++r)
            to[k] += ds(i, r) * a(r, k) * mask(term.dropout, number[static_cast<std::size_t>(i)], k);
      });
      against("dA", gradients.data(), rank, in, scale, 0.25, [&](Index r, double* to) {
        std::fill_n(to, in, 0.0);
        for (Index i = 0; i < rows; ++i)
          for (Index k = 0; k < in; ++k) to[k] += ds(i, r) * dropped(i, k);
      });
      against("dB", gradients.data() + rank * in, out, rank, scale, 0.25, [&](Index j, double* to) {
        for (Index r = 0; r < rank; ++r) {
          to[r] = 0;
          for (Index i = 0; i < rows; ++i) to[r] += 2 * dy(i, j) * of_s(i, r);
        }
      });
    }
}

}  // namespace fedlora::smoke
