// SPDX-License-Identifier: Apache-2.0
// The CPU backend: the operations a LoRA Transformer is made of, in one scalar type, over one GEMM policy.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fedlora/backend/concepts.hpp"
#include "fedlora/backend/cpu/activation.hpp"
#include "fedlora/backend/cpu/arena.hpp"
#include "fedlora/backend/cpu/attention.hpp"
#include "fedlora/backend/cpu/dropout.hpp"
#include "fedlora/backend/cpu/gemm_eigen.hpp"
#include "fedlora/backend/cpu/linear.hpp"
#include "fedlora/backend/cpu/loss.hpp"
#include "fedlora/backend/cpu/norm.hpp"
#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Computes in T (float or double) on the calling thread. Stateless: copies are free, calls from many threads are safe.
/// Every operation is repeatable to the bit for one build: sums have a fixed order that depends on shapes alone.
template <class T, class Gemm_ = EigenGemm>
struct CpuBackend {
  using Scalar = T;
  using Gemm = Gemm_;
  using Arena = cpu::Arena<T>;
  using ThreadScope = typename Gemm::ThreadScope;

  /// A frozen matrix in T: the stored bytes themselves when they are T already and aligned (a mapped file stays
  /// mapped), a widened copy otherwise. `where` names the tensor. \throws FormatError for a type that is not
  /// floating-point.
  static FrozenMatrix adopt(Dtype dtype, Index rows, Index cols, std::span<const std::byte> bytes,
                            std::shared_ptr<const void> owner, const std::string& where) {
    const auto count = static_cast<std::size_t>(rows * cols);
    if (bytes.size() != count * dtype_size(dtype))
      fail<FormatError>(where, std::to_string(count * dtype_size(dtype)) + " bytes", std::to_string(bytes.size()));
    if (dtype == dtype_of<T> && reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T) == 0)
      return {dtype, rows, cols, bytes.data(), std::move(owner)};
    auto values = std::make_shared<std::vector<T>>(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::byte* at = bytes.data() + i * dtype_size(dtype);
      switch (dtype) {
        case Dtype::f64:
          (*values)[i] = static_cast<T>(read<double>(at));
          break;
        case Dtype::f32:
          (*values)[i] = static_cast<T>(read<float>(at));
          break;
        case Dtype::f16:
          (*values)[i] = static_cast<T>(f16_to_float(read<std::uint16_t>(at)));
          break;
        case Dtype::bf16:
          (*values)[i] = static_cast<T>(bf16_to_float(read<std::uint16_t>(at)));
          break;
        default:
          fail<FormatError>(where, "F64, F32, F16 or BF16", std::string(dtype_name(dtype)));
      }
    }
    return {dtype_of<T>, rows, cols, values->data(), values};
  }

  /// y = x Wᵀ (+ bias). x (rows, in), W (out, in), y (rows, out).
  static void linear_forward(MatrixView<const T> x, const FrozenMatrix& w, const T* bias, MatrixView<T> y) {
    cpu::linear_forward<Gemm>(x, w.view<T>(), bias, y);
  }

  /// dx = dy W, or dx += dy W when `accumulate`.
  static void linear_backward(MatrixView<const T> dy, const FrozenMatrix& w, MatrixView<T> dx, bool accumulate) {
    cpu::multiply_nn<Gemm>(dy, w.view<T>(), dx, accumulate ? T(1) : T(0));
  }

  /// S = dropout(x) Aᵀ and y += scale · S Bᵀ over the term's rows; see cpu::low_rank_forward.
  static void low_rank_forward(MatrixView<const T> x, const LowRankTerm<T>& term, MatrixView<T> s, MatrixView<T> y,
                               Arena& arena) {
    cpu::low_rank_forward<Gemm>(x, term, s, y, arena);
  }

  /// Adds the gradients of A and B and, unless dx is empty, the term's part of dx; see cpu::low_rank_backward.
  static void low_rank_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> s,
                                const LowRankTerm<T>& term, MatrixView<T> dx, Arena& arena) {
    cpu::low_rank_backward<Gemm>(dy, x, s, term, dx, arena);
  }

  /// A trainable linear layer: y = x Wᵀ + bias.
  static void dense_forward(MatrixView<const T> x, MatrixView<const T> w, const T* bias, MatrixView<T> y) {
    cpu::linear_forward<Gemm>(x, w, bias, y);
  }

  /// dw += dyᵀ x, dbias += Σ dy (unless null), dx = dy W (unless empty).
  static void dense_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> w, MatrixView<T> dw,
                             T* dbias, MatrixView<T> dx) {
    if (!dw.empty()) cpu::multiply_tn<Gemm, T>(dy, x, dw, T(1));
    if (dbias != nullptr)
      for (Index i = 0; i < dy.rows; ++i)
        for (Index j = 0; j < dy.cols; ++j) dbias[j] += dy(i, j);
    if (!dx.empty()) cpu::multiply_nn<Gemm, T>(dy, w, dx);
  }

  /// y[i] = Σ tables[t][ids[t][i]].
  static void embed(std::span<const MatrixView<const T>> tables, std::span<const std::int32_t* const> ids,
                    MatrixView<T> y) {
    for (Index i = 0; i < y.rows; ++i) {
      T* row = y.row(i);
      for (std::size_t t = 0; t < tables.size(); ++t) {
        const T* from = tables[t].row(ids[t][i]);
        if (t == 0)
          std::copy_n(from, y.cols, row);
        else
          for (Index j = 0; j < y.cols; ++j) row[j] += from[j];
      }
    }
  }

  static void norm_forward(NormKind kind, MatrixView<const T> x, const T* gamma, const T* beta, double eps,
                           MatrixView<T> y, MatrixView<T> statistics) {
    if (kind == NormKind::layer_norm)
      cpu::norm_forward<NormKind::layer_norm>(x, gamma, beta, static_cast<T>(eps), y, statistics);
    else
      cpu::norm_forward<NormKind::rms_norm>(x, gamma, beta, static_cast<T>(eps), y, statistics);
  }

  static void norm_backward(NormKind kind, MatrixView<const T> dy, MatrixView<const T> x,
                            MatrixView<const T> statistics, const T* gamma, MatrixView<T> dx, bool accumulate) {
    if (kind == NormKind::layer_norm)
      cpu::norm_backward<NormKind::layer_norm>(dy, x, statistics, gamma, dx, accumulate);
    else
      cpu::norm_backward<NormKind::rms_norm>(dy, x, statistics, gamma, dx, accumulate);
  }

  /// x ← dropout(x + bias) + residual, in place, over rows [begin, end).
  static void add_residual(MatrixView<T> x, const T* bias, MatrixView<const T> residual, const Dropout& dropout,
                           const std::int32_t* row_numbers, Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      cpu::residual_row(x.row(i), x.cols, bias, residual.row(i), dropout, row_numbers[i]);
  }

  /// to = mask · scale · from over rows [begin, end); `to` may be `from`.
  static void dropout(const Dropout& dropout, MatrixView<const T> from, MatrixView<T> to,
                      const std::int32_t* row_numbers, Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      cpu::dropout_row(dropout, static_cast<std::uint32_t>(row_numbers[i]), 0, from.cols, from.row(i), to.row(i));
  }

  static void activation_forward(Activation activation, MatrixView<const T> x, const T* bias, MatrixView<T> y) {
    cpu::activation_forward(activation, x, bias, y);
  }
  static void activation_backward(Activation activation, MatrixView<const T> x, const T* bias, MatrixView<T> dy) {
    cpu::activation_backward(activation, x, bias, dy);
  }
  static void gated_forward(Activation activation, MatrixView<const T> gate, MatrixView<const T> up, MatrixView<T> y) {
    cpu::gated_forward(activation, gate, up, y);
  }
  static void gated_backward(Activation activation, MatrixView<const T> gate, MatrixView<const T> up,
                             MatrixView<const T> dy, MatrixView<T> dgate, MatrixView<T> dup) {
    cpu::gated_backward(activation, gate, up, dy, dgate, dup);
  }

  static void attention_forward(const AttentionShape& shape, std::span<const AttentionSpan> spans,
                                MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
                                const std::int32_t* positions, const std::int32_t* row_numbers, MatrixView<T> out,
                                Arena& arena) {
    cpu::attention_forward(shape, spans, q, k, v, positions, row_numbers, out, arena);
  }
  static void attention_backward(const AttentionShape& shape, std::span<const AttentionSpan> spans,
                                 MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
                                 const std::int32_t* positions, const std::int32_t* row_numbers,
                                 MatrixView<const T> d_out, MatrixView<T> dq, MatrixView<T> dk, MatrixView<T> dv,
                                 Arena& arena) {
    cpu::attention_backward(shape, spans, q, k, v, positions, row_numbers, d_out, dq, dk, dv, arena);
  }
  static void rotate(MatrixView<T> x, Index heads, Index head_dim, const std::int32_t* positions,
                     MatrixView<const T> cosines, MatrixView<const T> sines, bool inverse) {
    cpu::rotate(x, heads, head_dim, positions, cosines, sines, inverse);
  }

  /// to[i] = from[rows[i]].
  static void gather_rows(MatrixView<const T> from, std::span<const std::int32_t> rows, MatrixView<T> to) {
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::copy_n(from.row(rows[i]), from.cols, to.row(static_cast<Index>(i)));
  }

  /// to[rows[i]] += from[i].
  static void scatter_rows_add(MatrixView<const T> from, std::span<const std::int32_t> rows, MatrixView<T> to) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const T* source = from.row(static_cast<Index>(i));
      T* target = to.row(rows[i]);
      for (Index j = 0; j < from.cols; ++j) target[j] += source[j];
    }
  }

  static void copy(MatrixView<const T> from, MatrixView<T> to) {
    for (Index i = 0; i < from.rows; ++i) std::copy_n(from.row(i), from.cols, to.row(i));
  }
  static void add(MatrixView<const T> from, MatrixView<T> to) {
    for (Index i = 0; i < from.rows; ++i)
      for (Index j = 0; j < from.cols; ++j) to(i, j) += from(i, j);
  }
  static void fill_zero(MatrixView<T> to) {
    for (Index i = 0; i < to.rows; ++i) std::fill_n(to.row(i), to.cols, T(0));
  }

  /// y[s] = mean of x over the rows of sequence s.
  static void mean_rows(MatrixView<const T> x, std::span<const std::int32_t> cu_seqlens, MatrixView<T> y) {
    for (std::size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
      T* row = y.row(static_cast<Index>(s));
      std::fill_n(row, y.cols, T(0));
      for (Index i = cu_seqlens[s]; i < cu_seqlens[s + 1]; ++i)
        for (Index j = 0; j < x.cols; ++j) row[j] += x(i, j);
      const T factor = T(1) / static_cast<T>(cu_seqlens[s + 1] - cu_seqlens[s]);
      for (Index j = 0; j < y.cols; ++j) row[j] *= factor;
    }
  }

  /// dx[i] = dy[s] / length(s) for every row i of sequence s.
  static void mean_rows_backward(MatrixView<const T> dy, std::span<const std::int32_t> cu_seqlens, MatrixView<T> dx) {
    for (std::size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
      const T factor = T(1) / static_cast<T>(cu_seqlens[s + 1] - cu_seqlens[s]);
      for (Index i = cu_seqlens[s]; i < cu_seqlens[s + 1]; ++i)
        for (Index j = 0; j < dx.cols; ++j) dx(i, j) = dy(static_cast<Index>(s), j) * factor;
    }
  }

  static double cross_entropy(MatrixView<T> logits, const std::int32_t* labels, T weight) {
    return cpu::cross_entropy(logits, labels, weight);
  }
  static double cross_entropy_loss(MatrixView<const T> logits, const std::int32_t* labels) {
    return cpu::cross_entropy_loss(logits, labels);
  }

 private:
  template <class U>
  static U read(const std::byte* at) {
    U value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
};

}  // namespace fedlora
