// SPDX-License-Identifier: Apache-2.0
// Attention over packed sequences, forward and backward.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"
#include "fedlora/backend/cuda/attention_backward.cuh"
#include "fedlora/backend/cuda/attention_forward.cuh"
#include "fedlora/backend/operations.hpp"
#include "rows.hpp"

namespace fedlora::smoke {

/// One way to attend, with operands and everything a reference needs.
template <class T>
struct Attention {
  const Shape& sizes;
  AttentionShape shape;
  std::vector<AttentionSpan> spans;
  Index rows, cols, kv_cols;
  Values q, k, v, d_out;
  Matrix<T> on_q, on_k, on_v, on_d;
  Table<std::int32_t> number;
  Table<AttentionSpan> on_spans;
  Table<cuda::AttentionTile> queries, keys;

  Attention(Check& check, bool causal, double dropout)
      : sizes(check.shape),
        shape{
            sizes.heads, sizes.kv_heads, sizes.head_dim, 1 / std::sqrt(static_cast<double>(sizes.head_dim)), causal, 3},
        spans(spans_of(sizes, dropout)),
        rows(sizes.rows()),
        cols(sizes.heads * sizes.head_dim),
        kv_cols(sizes.kv_heads * sizes.head_dim),
        q(random<T>(rows, cols, 31, 2)),
        k(random<T>(rows, kv_cols, 32, 2)),
        v(random<T>(rows, kv_cols, 33)),
        d_out(random<T>(rows, cols, 34)),
        on_q(check.gpu, q, sizes.layout),
        on_k(check.gpu, k, sizes.layout),
        on_v(check.gpu, v, sizes.layout),
        on_d(check.gpu, d_out, sizes.layout),
        number(check.gpu, numbers(rows, 91)),
        on_spans(check.gpu, spans),
        queries(check.gpu, cuda::query_tiles(spans)),
        keys(check.gpu, cuda::key_tiles(spans)) {}

  cuda::AttentionTables tables() const {
    cuda::AttentionTables tables;
    tables.spans = on_spans.data();
    tables.span_count = static_cast<Index>(spans.size());
    tables.query_tiles = queries.data();
    tables.query_tile_count = static_cast<Index>(queries.sent().size());
    tables.key_tiles = keys.data();
    tables.key_tile_count = static_cast<Index>(keys.sent().size());
    tables.row_numbers = number.data();
    return tables;
  }

  /// The spans that are compared: the first and the last. (All rows must be numbers.)
  std::vector<Index> compared_rows() const {
    std::vector<Index> result;
    for (std::size_t s = 0; s < spans.size(); ++s)
      if (spans.size() <= 3 || s == 0 || s + 1 == spans.size())
        for (Index i = spans[s].query_begin; i < spans[s].query_end; ++i) result.push_back(i);
    return result;
  }

  const AttentionSpan& span_of(Index row) const {
    for (const AttentionSpan& span : spans)
      if (row < span.query_end) return span;
    return spans.back();
  }

  /// Probabilities of one query and head, before dropout; zero for what it does not see.
  std::vector<double> probabilities(const AttentionSpan& span, Index query, Index head) const {
    const Index count = span.key_end - span.key_begin;
    const Index visible = shape.causal ? query - span.query_begin + 1 : count;
    std::vector<double> p(static_cast<std::size_t>(count));
    double sum = 0;
    for (Index j = 0; j < visible; ++j) {
      double score = 0;
      for (Index d = 0; d < shape.head_dim; ++d)
        score += q(query, head * shape.head_dim + d) * k(span.key_begin + j, kv_head(head) * shape.head_dim + d);
      sum += p[static_cast<std::size_t>(j)] = std::exp(score * shape.scale);
    }
    for (double& each : p) each /= sum;
    return p;
  }
  double kept(const AttentionSpan& span, Index query, Index head, Index key) const {
    return mask(attention_dropout(span, shape.layer), number[query], key, head);
  }
  Index kv_head(Index head) const { return head / (shape.heads / shape.kv_heads); }

 private:
  static std::vector<AttentionSpan> spans_of(const Shape& sizes, double dropout) {
    std::vector<AttentionSpan> spans;
    const std::vector<std::int32_t> bounds = bounds_of(sizes);
    for (std::size_t s = 0; s + 1 < bounds.size(); ++s) {
      AttentionSpan span{bounds[s], bounds[s + 1], bounds[s], bounds[s + 1], {}};
      if (dropout > 0) span.dropout = Dropout(derive_key(std::uint64_t{6}, Purpose::user, s), dropout);
      spans.push_back(span);
    }
    return spans;
  }
};

template <class T, class Body>
void each_attention(Check& check, const Body& body) {
  body(Attention<T>(check, false, 0), "");
  body(Attention<T>(check, true, 0.1), "causal, dropout: ");
}

template <class T>
void check_attention(Check& check) {
  each_attention<T>(check, [&](const Attention<T>& a, const std::string& name) {
    Matrix<T> out(check.gpu, a.rows, a.cols, check.shape.layout);
    cuda::attention_forward<T>(a.shape, a.tables(), a.on_q.in(), a.on_k.in(), a.on_v.in(), out.view(),
                               check.gpu.stream(), check.math);
    check.rows(name + "out", out, check.tolerance<T>(), 0, a.rows, a.compared_rows(), [&](Index i, double* to) {
      const AttentionSpan& span = a.span_of(i);
      std::fill_n(to, a.cols, 0.0);
      for (Index h = 0; h < a.shape.heads; ++h) {
        const std::vector<double> p = a.probabilities(span, i, h);
        for (Index j = 0; j < span.key_end - span.key_begin; ++j) {
          const double weight = p[static_cast<std::size_t>(j)] * a.kept(span, i, h, j);
          for (Index d = 0; weight != 0 && d < a.shape.head_dim; ++d)
            to[h * a.shape.head_dim + d] += weight * a.v(span.key_begin + j, a.kv_head(h) * a.shape.head_dim + d);
        }
      }
    });
  });
}

template <class T>
void check_attention_backward(Check& check) {
  each_attention<T>(check, [&](const Attention<T>& a, const std::string& name) {
    Matrix<T> dq(check.gpu, a.rows, a.cols, check.shape.layout);
    Matrix<T> dk(check.gpu, a.rows, a.kv_cols, check.shape.layout),
        dv(check.gpu, a.rows, a.kv_cols, check.shape.layout);
    const cuda::DeviceBuffer work = workspace(check.gpu, cuda::attention_backward_workspace<T>(a.shape, a.rows));
    cuda::attention_backward<T>(a.shape, a.tables(), a.on_q.in(), a.on_k.in(), a.on_v.in(), a.on_d.in(), dq.view(),
                                dk.view(), dv.view(), work.bytes(), check.gpu.stream(), check.math);
    Values of_q(a.rows, a.cols), of_k(a.rows, a.kv_cols), of_v(a.rows, a.kv_cols);
    const Index dim = a.shape.head_dim;
    const std::vector<Index> compared = a.compared_rows();
    for (const Index i : compared) {
      const AttentionSpan& span = a.span_of(i);
      const Index count = span.key_end - span.key_begin;
      for (Index h = 0; h < a.shape.heads; ++h) {
        const Index own = h * dim, shared = a.kv_head(h) * dim;
        const std::vector<double> p = a.probabilities(span, i, h);
        std::vector<double> dp(p.size());
        double mean = 0;
        for (Index j = 0; j < count; ++j) {
          const auto at = static_cast<std::size_t>(j);
          const double keep = p[at] > 0 ? a.kept(span, i, h, j) : 0.0;
          for (Index d = 0; d < dim; ++d) {
            dp[at] += keep * a.d_out(i, own + d) * a.v(span.key_begin + j, shared + d);
            of_v(span.key_begin + j, shared + d) += keep * p[at] * a.d_out(i, own + d);
          }
          mean += p[at] * dp[at];
        }
        for (Index j = 0; j < count; ++j) {
          const double ds = p[static_cast<std::size_t>(j)] * (dp[static_cast<std::size_t>(j)] - mean) * a.shape.scale;
          for (Index d = 0; d < dim; ++d) {
            of_q(i, own + d) += ds * a.k(span.key_begin + j, shared + d);
            of_k(span.key_begin + j, shared + d) += ds * a.q(i, own + d);
          }
        }
      }
    }
    const auto against = [&](const std::string& what, Matrix<T>& got, const Values& values) {
      check.rows(name + what, got, 2 * check.tolerance<T>(), 0, a.rows, compared, [&](Index i, double* to) {
        for (Index j = 0; j < values.cols; ++j) to[j] = values(i, j);
      });
    };
    against("dq", dq, of_q);
    against("dk", dk, of_k);
    against("dv", dv, of_v);
  });
}

}  // namespace fedlora::smoke
