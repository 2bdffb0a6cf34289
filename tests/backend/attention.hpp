// SPDX-License-Identifier: Apache-2.0
// Attention and rotary positions of every backend against their definition in double, forward and backward.
#pragma once

#include "backend/conformance.hpp"

namespace fedlora::tests {
namespace {

/// One attention problem over packed rows.
struct Problem {
  Index heads, kv_heads, head_dim;
  std::vector<Index> lengths;
  bool causal = false;
  double dropout = 0;
  bool one_query = false;  ///< the last row of every sequence alone
};

struct Tables {
  AttentionShape shape;
  std::vector<AttentionSpan> spans;
  std::vector<std::int32_t> positions, numbers;
  Index queries = 0;
  Index rows = 0;
};

Tables tables_of(const Problem& problem) {
  Tables tables;
  tables.shape = {problem.heads,    problem.kv_heads,
                  problem.head_dim, 1.0 / std::sqrt(static_cast<double>(problem.head_dim)),
                  problem.causal,   3};
  for (std::size_t s = 0; s < problem.lengths.size(); ++s) {
    const Index length = problem.lengths[s];
    AttentionSpan span;
    span.key_begin = tables.rows;
    span.key_end = tables.rows += length;
    span.query_begin = tables.queries;
    span.query_end = tables.queries += problem.one_query ? 1 : length;
    if (problem.dropout > 0)
      span.dropout = Dropout(derive_key(s % 2, Purpose::attention_dropout), problem.dropout);  // two clients
    for (Index i = problem.one_query ? length - 1 : 0; i < length; ++i) {
      tables.positions.push_back(static_cast<std::int32_t>(i));
      tables.numbers.push_back(static_cast<std::int32_t>(span.key_begin + i + 5));
    }
    tables.spans.push_back(span);
  }
  return tables;
}

/// Products, a softmax, products again.
template <class B>
inline constexpr double attention_tolerance = (sizeof(typename B::Element) == 2 ? 1.0 : 2.5) * product_tolerance<B>;

Values attention_of(const Tables& t, const Values& q, const Values& k, const Values& v) {
  Values out(q.rows, q.cols);
  const Index dim = t.shape.head_dim;
  for (const AttentionSpan& span : t.spans)
    for (Index head = 0; head < t.shape.heads; ++head) {
      const Index column = head * dim;
      const Index kv = head / (t.shape.heads / t.shape.kv_heads) * dim;
      for (Index i = span.query_begin; i < span.query_end; ++i) {
        const Index keys =
            t.shape.causal ? t.positions[static_cast<std::size_t>(i)] + 1 : span.key_end - span.key_begin;
        std::vector<double> p(static_cast<std::size_t>(keys));
        double top = -1e300;
        for (Index j = 0; j < keys; ++j) {
          double score = 0;
          for (Index d = 0; d < dim; ++d) score += q(i, column + d) * k(span.key_begin + j, kv + d);
          p[static_cast<std::size_t>(j)] = score * t.shape.scale;
          top = std::max(top, score * t.shape.scale);
        }
        double sum = 0;
        for (double& value : p) sum += value = std::exp(value - top);
        for (Index j = 0; j < keys; ++j) {
          const double kept = mask_of(fedlora::attention_dropout(span, t.shape.layer),
                                      t.numbers[static_cast<std::size_t>(i)], j, static_cast<std::uint32_t>(head));
          for (Index d = 0; d < dim; ++d)
            out(i, column + d) += kept * p[static_cast<std::size_t>(j)] / sum * v(span.key_begin + j, kv + d);
        }
      }
    }
  return out;
}

/// The tables where the operations of a runner read them, as nn/ places them.
template <class Runner>
typename Runner::AttentionTable placed(Runner& run, const Tables& t, bool in_order) {
  const std::int32_t* const positions = in_order ? nullptr : run.place(t.positions);
  const auto table = run.place(t.spans, positions, run.place(t.numbers));
  run.flush();
  return table;
}

template <class B>
void check_attention(const Problem& problem) {
  using T = typename B::Element;
  Worker<B> run;
  CAPTURE(problem.heads);
  CAPTURE(problem.kv_heads);
  CAPTURE(problem.head_dim);
  CAPTURE(problem.causal);
  CAPTURE(problem.one_query);
  CAPTURE(problem.lengths.back());
  const Tables t = tables_of(problem);
  const Index width = problem.heads * problem.head_dim;
  const Index kv_width = problem.kv_heads * problem.head_dim;
  const Values q = random_for<B>(t.queries, width, 1), k = random_for<B>(t.rows, kv_width, 2);
  const Values v = random_for<B>(t.rows, kv_width, 3), d_out = random_for<B>(t.queries, width, 4);
  const Guarded<T> q_in(q), k_in(k), v_in(v), d_in(d_out);
  Guarded<T> out(t.queries, width);
  const auto table = placed(run, t, !problem.one_query);
  run.attention_forward(t.shape, table, q_in.in(), k_in.in(), v_in.in(), out.view());
  check_close(out, attention_of(t, q, k, v), attention_tolerance<B>, "out");

  Guarded<T> dq(t.queries, width), dk(t.rows, kv_width), dv(t.rows, kv_width);
  run.attention_backward(t.shape, table, q_in.in(), k_in.in(), v_in.in(), d_in.in(), dq.view(), dk.view(), dv.view());
  CHECK(dq.intact());
  CHECK(dk.intact());
  CHECK(dv.intact());
  check_slopes([&](const std::vector<Values>& x) { return dot(attention_of(t, x[0], x[1], x[2]), d_out); }, {q, k, v},
               {dq.values(), dk.values(), dv.values()}, product_slope_tolerance<B>, "attention");
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("attention on every width of head", B, attention_dims) {
  in_every_layout<B>([&] {
    for (const Index dim : sizes<Index>({1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128}))
      check_attention<B>({2, 2, dim, {1, 2, 5}, dim % 3 == 0});
    if (!on_device<B>) check_attention<B>({2, 2, 130, {1, 2, 5}});
  });
}

TEST_CASE_TEMPLATE_DEFINE("attention on every length of sequence", B, attention_lengths) {
  in_every_layout<B>([&] {
    for (const Index length : sizes<Index>({1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 63, 64, 65}))
      for (const bool causal : {false, true}) check_attention<B>({1, 1, 4, {length}, causal});
    check_attention<B>({2, 1, 6, {17, 1, 65, 2}, false});
    check_attention<B>({2, 1, 6, {17, 1, 65, 2}, true});
  });
}

TEST_CASE_TEMPLATE_DEFINE("grouped queries share keys and values", B, attention_groups) {
  in_every_layout<B>([&] {
    for (const auto& [heads, kv_heads] : {std::pair<Index, Index>{4, 4}, {4, 2}, {4, 1}, {3, 1}, {6, 2}})
      for (const bool causal : {false, true}) check_attention<B>({heads, kv_heads, 5, {3, 6, 1}, causal});
  });
}

TEST_CASE_TEMPLATE_DEFINE("one query per sequence sees the keys of its position", B, attention_selected) {
  in_every_layout<B>([&] {
    for (const bool causal : {false, true})
      for (const double dropout : {0.0, 0.3}) check_attention<B>({4, 2, 9, {1, 17, 4, 65}, causal, dropout, true});
  });
}

TEST_CASE_TEMPLATE_DEFINE("dropout of probabilities has a mask per head, query and key", B, attention_dropout) {
  in_every_layout<B>([&] {
    for (const bool causal : {false, true}) {
      check_attention<B>({2, 2, 8, {5, 9, 2}, causal, 0.25});
      check_attention<B>({4, 1, 3, {65, 3}, causal, 0.5});
      check_attention<B>({1, 1, 17, {70}, causal, 0.1});
    }
  });
}

TEST_CASE_TEMPLATE_DEFINE("attention of scores far apart neither overflows nor mixes", B, attention_range) {
  using T = typename B::Element;
  Worker<B> run;
  Tables t = tables_of({1, 1, 1, {3}});
  Values q(3, 1), k(3, 1), v(3, 1);
  q.data = {200, -200, 0};
  k.data = {100, 0, -100};
  v.data = {1, 2, 4};
  const Guarded<T> q_in(q), k_in(k), v_in(v);
  Guarded<T> out(3, 1);
  run.attention_forward(t.shape, placed(run, t, true), q_in.in(), k_in.in(), v_in.in(), out.view());
  check_close(out, attention_of(t, q, k, v), product_tolerance<B>, "out");
}

TEST_CASE_TEMPLATE_DEFINE("a key that a query does not see is nothing to its softmax", B, attention_unseen) {
  using T = typename B::Element;
  Worker<B> run;
  for (const Index length : {2, 6, 7, 17, 34}) {
    CAPTURE(length);
    const Tables t = tables_of({1, 1, 4, {length}, true});
    Values q = random_for<B>(length, 4, 1), k = random_for<B>(length, 4, 2);
    const Values v = random_for<B>(length, 4, 3);
    for (Index d = 0; d < 4; ++d) {
      for (Index i = 0; i < length; ++i) q(i, d) = 1;
      k(length - 1, d) = 200;  // a score of 400, which the last query alone may see
    }
    const Guarded<T> q_in(q), k_in(k), v_in(v);
    Guarded<T> out(length, 4);
    run.attention_forward(t.shape, placed(run, t, true), q_in.in(), k_in.in(), v_in.in(), out.view());
    check_close(out, attention_of(t, q, k, v), attention_tolerance<B>, "out");
  }
}

TEST_CASE_TEMPLATE_DEFINE("rows that no span covers are left alone", B, attention_uncovered) {
  using T = typename B::Element;
  Worker<B> run;
  Tables t = tables_of({1, 1, 3, {2, 4}});
  t.spans.erase(t.spans.begin());  // rows 0 and 1 belong to nobody
  const Values q = random_for<B>(6, 3, 1), before = random_for<B>(6, 3, 2);
  const Guarded<T> q_in(q);
  Guarded<T> out(before), dq(before), dk(before), dv(before);
  const auto table = placed(run, t, true);
  run.attention_forward(t.shape, table, q_in.in(), q_in.in(), q_in.in(), out.view());
  run.attention_backward(t.shape, table, q_in.in(), q_in.in(), q_in.in(), q_in.in(), dq.view(), dk.view(), dv.view());
  for (const auto* matrix : {&out, &dq, &dk, &dv}) {
    const Values got = matrix->values();
    for (Index i = 0; i < 2; ++i)
      for (Index j = 0; j < 3; ++j) CHECK(got(i, j) == before(i, j));
  }
}

TEST_CASE_TEMPLATE_DEFINE("rotary positions turn each pair of halves by its angle", B, rotary) {
  using T = typename B::Element;
  using S = typename B::Scalar;
  Worker<B> run;
  const std::vector<std::int32_t> positions = {0, 1, 2, 0, 7};
  const std::int32_t* const at = run.place(positions);
  run.flush();
  in_every_layout<B>([&] {
    for (const Index head_dim : {2, 6, 16, 34}) {
      const Index half = head_dim / 2;
      Values cosines(8, half), sines(8, half);
      for (Index p = 0; p < 8; ++p)
        for (Index d = 0; d < half; ++d) {
          const double angle =
              static_cast<double>(p) * std::pow(100.0, -2.0 * static_cast<double>(d) / static_cast<double>(head_dim));
          cosines(p, d) = std::cos(angle);
          sines(p, d) = std::sin(angle);
        }
      const Values x = random_for<B>(5, 3 * head_dim, 1);
      Values expected = x;
      for (Index i = 0; i < 5; ++i)
        for (Index head = 0; head < 3; ++head)
          for (Index d = 0; d < half; ++d) {
            const Index p = positions[static_cast<std::size_t>(i)];
            const double a = x(i, head * head_dim + d), b = x(i, head * head_dim + half + d);
            expected(i, head * head_dim + d) = a * cosines(p, d) - b * sines(p, d);
            expected(i, head * head_dim + half + d) = b * cosines(p, d) + a * sines(p, d);
          }
      run.set_rotary(8, std::vector<S>(cosines.data.begin(), cosines.data.end()),
                     std::vector<S>(sines.data.begin(), sines.data.end()));
      CHECK(run.rotary_positions() == 8);
      Guarded<T> turned(x);
      run.rotate(turned.view(), 3, head_dim, at, false);
      check_close(turned, expected, tolerance<B>, "turned");
      run.rotate(turned.view(), 3, head_dim, at, true);
      check_close(turned, x, (sizeof(T) == 2 ? 2 : 1) * tolerance<B>, "turned back");
    }
  });
}

}  // namespace fedlora::tests
