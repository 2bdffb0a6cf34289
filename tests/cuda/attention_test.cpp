// SPDX-License-Identifier: Apache-2.0
// Attention on the host, forward and backward, in every type, against its definition in float64.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"
#include "fedlora/backend/cuda/attention_backward.cuh"
#include "fedlora/backend/cuda/attention_forward.cuh"

namespace fedlora::tests {
namespace {

/// Which rows of a sequence are its queries.
enum class Queries { all, last, every_third };

/// One attention problem over packed rows.
struct Problem {
  Index heads, kv_heads, head_dim;
  std::vector<Index> lengths;
  bool causal = false;
  double dropout = 0;
  Queries queries = Queries::all;
  Rows kind = Rows::aligned;
};

/// The tables of a problem. A row that no span covers comes before each sequence and behind all, of q and of k alike.
struct Tables {
  AttentionShape shape;
  std::vector<AttentionSpan> spans;
  std::vector<std::int32_t> positions, numbers;
  std::vector<bool> is_query, is_key;
  bool in_order = false;
  std::vector<cuda::AttentionTile> query_tiles, key_tiles;

  Index queries() const { return static_cast<Index>(is_query.size()); }
  Index rows() const { return static_cast<Index>(is_key.size()); }

  void add_query(std::int32_t position, std::int32_t number, bool exists = true) {
    positions.push_back(position);
    numbers.push_back(number);
    is_query.push_back(exists);
  }
  void build_tiles() {
    query_tiles = cuda::query_tiles(spans);
    key_tiles = cuda::key_tiles(spans);
  }
  cuda::AttentionTables device() const {
    cuda::AttentionTables tables;
    tables.spans = spans.data();
    tables.span_count = static_cast<Index>(spans.size());
    tables.query_tiles = query_tiles.data();
    tables.query_tile_count = static_cast<Index>(query_tiles.size());
    tables.key_tiles = key_tiles.data();
    tables.key_tile_count = static_cast<Index>(key_tiles.size());
    if (!in_order) tables.positions = positions.data();
    if (!spans.empty() && spans.front().dropout) tables.row_numbers = numbers.data();
    return tables;
  }
};

Tables tables_of(const Problem& problem) {
  Tables tables;
  tables.shape = {problem.heads,    problem.kv_heads,
                  problem.head_dim, 1.0 / std::sqrt(static_cast<double>(problem.head_dim)),
                  problem.causal,   3};
  tables.in_order = problem.queries == Queries::all;
  for (std::size_t s = 0; s < problem.lengths.size(); ++s) {
    const Index length = problem.lengths[s];
    tables.add_query(0, 0, false);
    tables.is_key.push_back(false);
    AttentionSpan span;
    span.query_begin = tables.queries();
    span.key_begin = tables.rows();
    for (Index i = 0; i < length; ++i) {
      tables.is_key.push_back(true);
      if (problem.queries == Queries::last && i + 1 < length) continue;
      if (problem.queries == Queries::every_third && i % 3 != 0) continue;
      tables.add_query(static_cast<std::int32_t>(i), static_cast<std::int32_t>(5 * s) + static_cast<std::int32_t>(i));
    }
    span.query_end = tables.queries();
    span.key_end = tables.rows();
    if (problem.dropout > 0)  // of two clients
      span.dropout = Dropout(derive_key(s % 2, Purpose::attention_dropout), problem.dropout);
    tables.spans.push_back(span);
  }
  tables.add_query(0, 0, false);
  tables.is_key.push_back(false);
  tables.build_tiles();
  return tables;
}

/// Calls body(span, i, head, query columns, key columns, p, mask) for every query and head, p its probabilities.
template <class Body>
void for_queries(const Tables& t, const Values& q, const Values& k, Body&& body) {
  const Index dim = t.shape.head_dim;
  for (const AttentionSpan& span : t.spans)
    for (Index head = 0; head < t.shape.heads; ++head)
      for (Index i = span.query_begin; i < span.query_end; ++i) {
        const Index column = head * dim;
        const Index kv = head / (t.shape.heads / t.shape.kv_heads) * dim;
        Index keys = span.key_end - span.key_begin;
        if (t.shape.causal) keys = std::clamp<Index>(t.positions[static_cast<std::size_t>(i)] + 1, 0, keys);
        std::vector<double> p(static_cast<std::size_t>(keys)), mask(p.size());
        double top = -1e300;
        for (Index j = 0; j < keys; ++j) {
          double score = 0;
          for (Index d = 0; d < dim; ++d) score += q(i, column + d) * k(span.key_begin + j, kv + d);
          p[static_cast<std::size_t>(j)] = score * t.shape.scale;
          top = std::max(top, score * t.shape.scale);
          mask[static_cast<std::size_t>(j)] =
              mask_of(attention_dropout(span, t.shape.layer), t.numbers[static_cast<std::size_t>(i)], j,
                      static_cast<std::uint32_t>(head));
        }
        double sum = 0;
        for (double& value : p) sum += value = std::exp(value - top);
        for (double& value : p) value /= sum;
        body(span, i, column, kv, p, mask);
      }
}

Values attention_of(const Tables& t, const Values& q, const Values& k, const Values& v) {
  Values out(q.rows, q.cols);
  for_queries(t, q, k,
              [&](const AttentionSpan& span, Index i, Index column, Index kv, const std::vector<double>& p,
                  const std::vector<double>& mask) {
                for (std::size_t j = 0; j < p.size(); ++j)
                  for (Index d = 0; d < t.shape.head_dim; ++d)
                    out(i, column + d) += mask[j] * p[j] * v(span.key_begin + static_cast<Index>(j), kv + d);
              });
  return out;
}

struct Gradients {
  Values q, k, v;
};

Gradients gradients_of(const Tables& t, const Values& q, const Values& k, const Values& v, const Values& d_out) {
  Gradients d = {Values(q.rows, q.cols), Values(k.rows, k.cols), Values(v.rows, v.cols)};
  for_queries(t, q, k,
              [&](const AttentionSpan& span, Index i, Index column, Index kv, const std::vector<double>& p,
                  const std::vector<double>& mask) {
                std::vector<double> dp(p.size());
                double mean = 0;
                for (std::size_t j = 0; j < p.size(); ++j) {
                  const Index row = span.key_begin + static_cast<Index>(j);
                  for (Index c = 0; c < t.shape.head_dim; ++c) {
                    dp[j] += mask[j] * d_out(i, column + c) * v(row, kv + c);
                    d.v(row, kv + c) += mask[j] * p[j] * d_out(i, column + c);
                  }
                  mean += p[j] * dp[j];
                }
                for (std::size_t j = 0; j < p.size(); ++j) {
                  const Index row = span.key_begin + static_cast<Index>(j);
                  const double ds = p[j] * (dp[j] - mean) * t.shape.scale;
                  for (Index c = 0; c < t.shape.head_dim; ++c) {
                    d.q(i, column + c) += ds * k(row, kv + c);
                    d.k(row, kv + c) += ds * q(i, column + c);
                  }
                }
              });
  return d;
}

/// What covered rows hold, and that the others were left alone.
template <class T>
void check_rows(const DeviceMatrix<T>& got, const std::vector<bool>& covered, const Values& expected, double bound,
                const char* what) {
  Values values = got.values();
  for (Index i = 0; i < values.rows; ++i) {
    if (covered[static_cast<std::size_t>(i)]) continue;
    for (Index j = 0; j < values.cols; ++j) {
      CHECK(std::isnan(values(i, j)));
      values(i, j) = expected(i, j);
    }
  }
  const double error = error_of(values, expected);
  CHECK_MESSAGE(error <= bound, what << " is off by " << error);
  CHECK_MESSAGE(got.intact(), what << " was written beside");
}

/// Numbers that T holds, NaN in the rows that are not to be read.
template <class T>
Values random_rows(const std::vector<bool>& covered, Index cols, std::uint64_t seed, double scale = 1) {
  Values values = random_in<T>(static_cast<Index>(covered.size()), cols, seed, scale);
  for (Index i = 0; i < values.rows; ++i)
    for (Index j = 0; j < cols && !covered[static_cast<std::size_t>(i)]; ++j)
      values(i, j) = std::numeric_limits<double>::quiet_NaN();
  return values;
}

/// The outputs of one forward and backward pass.
template <class N>
struct Pass {
  using T = typename N::T;
  DeviceMatrix<T> out, dq, dk, dv;

  Pass(const Tables& t, const DeviceMatrix<T>& q, const DeviceMatrix<T>& k, const DeviceMatrix<T>& v,
       const DeviceMatrix<T>& d_out, Rows kind, std::uint64_t seed)
      : out(q.in().rows, q.in().cols, kind),
        dq(q.in().rows, q.in().cols, kind),
        dk(k.in().rows, k.in().cols, kind),
        dv(k.in().rows, k.in().cols, kind) {
    const cuda::Stream stream{seed};
    cuda::attention_forward<T>(t.shape, t.device(), q.in(), k.in(), v.in(), out.view(), stream, N::math);
    Workspace workspace(cuda::attention_backward_workspace<T>(t.shape, t.queries()));
    cuda::attention_backward<T>(t.shape, t.device(), q.in(), k.in(), v.in(), d_out.in(), dq.view(), dk.view(),
                                dv.view(), workspace.bytes(), stream, N::math);
    CHECK(workspace.intact());
  }
};

/// q and k are numbers that Exact holds, `size` times as large as those of v and d_out.
template <class N, class Exact = typename N::T>
void check_tables(const Tables& t, Rows kind, double size = 1, bool twice = false) {
  using T = typename N::T;
  const Index width = t.shape.heads * t.shape.head_dim;
  const Index kv_width = t.shape.kv_heads * t.shape.head_dim;
  const Values q = random_rows<Exact>(t.is_query, width, 1, size), d_out = random_rows<T>(t.is_query, width, 2);
  const Values k = random_rows<Exact>(t.is_key, kv_width, 3, size), v = random_rows<T>(t.is_key, kv_width, 4);
  const DeviceMatrix<T> q_in(q, kind), k_in(k, kind), v_in(v, kind), d_in(d_out, kind);
  const Pass<N> pass(t, q_in, k_in, v_in, d_in, kind, 1);
  const double bound = 3 * N::tolerance;
  check_rows(pass.out, t.is_query, attention_of(t, q, k, v), bound, "out");
  const Gradients expected = gradients_of(t, q, k, v, d_out);
  check_rows(pass.dq, t.is_query, expected.q, bound, "dq");
  check_rows(pass.dk, t.is_key, expected.k, bound, "dk");
  check_rows(pass.dv, t.is_key, expected.v, bound, "dv");
  if (!twice) return;
  const Pass<N> again(t, q_in, k_in, v_in, d_in, kind, 2);
  CHECK(again.out.same_bits(pass.out));
  CHECK(again.dq.same_bits(pass.dq));
  CHECK(again.dk.same_bits(pass.dk));
  CHECK(again.dv.same_bits(pass.dv));
}

template <class N>
void check(const Problem& problem, bool twice = false) {
  CAPTURE(problem.heads);
  CAPTURE(problem.kv_heads);
  CAPTURE(problem.head_dim);
  CAPTURE(problem.causal);
  CAPTURE(problem.dropout);
  CAPTURE(problem.lengths.front());
  check_tables<N>(tables_of(problem), problem.kind, 1, twice);
}

}  // namespace

TEST_CASE("the reference's gradients are the slopes of its output") {
  for (const Queries queries : {Queries::all, Queries::every_third}) {
    const Tables t = tables_of({4, 2, 3, {5, 2}, true, 0.3, queries});
    std::vector<Values> x = {random_values(t.queries(), 12, 1), random_values(t.rows(), 6, 2),
                             random_values(t.rows(), 6, 3)};
    const Values d_out = random_values(t.queries(), 12, 4);
    const Gradients d = gradients_of(t, x[0], x[1], x[2], d_out);
    const Values* const gradients[] = {&d.q, &d.k, &d.v};
    constexpr double step = 1e-5;
    for (std::size_t which = 0; which < 3; ++which)
      for (std::size_t at = 0; at < x[which].data.size(); ++at) {
        const double kept = x[which].data[at];
        x[which].data[at] = kept + step;
        const double above = dot(attention_of(t, x[0], x[1], x[2]), d_out);
        x[which].data[at] = kept - step;
        const double below = dot(attention_of(t, x[0], x[1], x[2]), d_out);
        x[which].data[at] = kept;
        CHECK(std::abs((above - below) / (2 * step) - gradients[which]->data[at]) <= 1e-8);
      }
  }
}

TEST_CASE_TEMPLATE("attention over sequences of every length", N, FEDLORA_TEST_NUMBERS) {
  check<N>({1, 1, 8, {1}, false, 0.0, Queries::all, Rows::odd});
  check<N>({2, 2, 8, {31, 2, 61, 1}, false, 0.0, Queries::all, Rows::aligned}, true);
  check<N>({2, 1, 8, {33, 32, 1, 2}, true, 0.0, Queries::all, Rows::odd}, true);
  check<N>({1, 1, 8, {129}, false, 0.0, Queries::all, Rows::odd});
  check<N>({1, 1, 8, {129}, true, 0.0, Queries::all, Rows::aligned});
}

TEST_CASE_TEMPLATE("attention on heads of every width", N, FEDLORA_TEST_NUMBERS) {
  for (const Index dim : {1, 5, 16, 24, 32})
    check<N>({2, 1, dim, {3, 34}, dim % 3 == 0, 0.2, Queries::all, dim % 2 == 0 ? Rows::aligned : Rows::odd});
  check<N>({2, 2, 33, {18}, false, 0.2, Queries::all, Rows::odd});
  check<N>({1, 1, 64, {66, 3}, true, 0.2, Queries::all, Rows::aligned});
  check<N>({2, 1, 72, {20}, false, 0.2, Queries::all, Rows::aligned});
  check<N>({1, 1, 128, {69, 2}, true, 0.0, Queries::all, Rows::aligned});
  check<N>({1, 1, 128, {35}, false, 0.2, Queries::all, Rows::odd});
}

TEST_CASE_TEMPLATE("grouped queries share keys and values", N, FEDLORA_TEST_NUMBERS) {
  for (const auto& [heads, kv_heads] : {std::pair<Index, Index>{4, 4}, {4, 2}, {4, 1}, {3, 1}})
    check<N>({heads, kv_heads, 8, {35, 7}, heads % 2 == 0, 0.0, Queries::all, Rows::aligned});
  check<N>({4, 2, 8, {70}, true, 0.2, Queries::all, Rows::odd});
}

TEST_CASE_TEMPLATE("one query per sequence, or some, see the keys of their positions", N, FEDLORA_TEST_NUMBERS) {
  for (const bool causal : {false, true}) {
    check<N>({2, 1, 8, {1, 17, 70, 4}, causal, 0.2, Queries::last, Rows::odd}, true);
    check<N>({1, 1, 12, {130, 3}, causal, 0.2, Queries::every_third, Rows::aligned});
  }
}

TEST_CASE_TEMPLATE("dropout has a mask per head, query and key, and a key per span", N, FEDLORA_TEST_NUMBERS) {
  for (const bool causal : {false, true}) {
    check<N>({2, 2, 8, {40, 9, 33}, causal, 0.2, Queries::all, Rows::aligned}, true);
    check<N>({1, 1, 8, {130}, causal, 0.5, Queries::all, Rows::aligned});
  }
}

TEST_CASE_TEMPLATE("large scores, far apart, neither overflow nor mix", N, FEDLORA_TEST_NUMBERS) {
  // bfloat16 numbers have exact products in all types: what is left is the softmax of scores up to about 200.
  for (const bool causal : {false, true})
    check_tables<N, Bf16>(tables_of({1, 1, 8, {75, 4}, causal, 0.2, Queries::all, Rows::aligned}), Rows::aligned, 7);
}

TEST_CASE_TEMPLATE("any scale is taken", N, FEDLORA_TEST_NUMBERS) {
  for (const double scale : {1.0, 0.03, -0.5}) {
    Tables t = tables_of({2, 1, 8, {20, 5}, true});
    t.shape.scale = scale;
    check_tables<N>(t, Rows::aligned, 0.5);
  }
}

TEST_CASE_TEMPLATE("nothing to see, nobody who looks, and nothing at all", N, FEDLORA_TEST_NUMBERS) {
  Tables t;
  t.shape = {2, 1, 8, 0.5, true, 0};
  for (Index i = 0; i < 6; ++i) {
    t.add_query(static_cast<std::int32_t>(i) - 3, 0);  // the first three see nothing
    t.is_key.push_back(true);
  }
  AttentionSpan whole{0, 4, 0, 2, {}};
  AttentionSpan without_keys{4, 6, 2, 2, {}};
  AttentionSpan without_queries{6, 6, 2, 6, {}};
  t.spans = {whole, without_keys, without_queries};
  t.build_tiles();
  check_tables<N>(t, Rows::aligned);
  t.in_order = true;  // queries beyond their keys see all of them
  for (std::size_t i = 0; i < 6; ++i) t.positions[i] = static_cast<std::int32_t>(i);
  check_tables<N>(t, Rows::odd);

  Tables none;
  none.shape = t.shape;
  check_tables<N>(none, Rows::aligned);
}

TEST_CASE("tiles begin with the longest spans, late queries and early keys") {
  const std::vector<AttentionSpan> spans = {{0, 3, 0, 3, {}}, {3, 133, 3, 133, {}}, {133, 136, 133, 136, {}}, {}};
  const auto text = [](const std::vector<cuda::AttentionTile>& tiles) {
    std::string result;
    for (const cuda::AttentionTile& tile : tiles)
      result += std::to_string(tile.span) + ":" + std::to_string(tile.first) + " ";
    return result;
  };
  CHECK(text(cuda::query_tiles(spans)) == "1:128 1:64 1:0 0:0 2:0 ");
  CHECK(text(cuda::key_tiles(spans)) == "1:0 1:64 1:128 0:0 2:0 ");
  CHECK(cuda::query_tiles({}).empty());
  const std::vector<AttentionSpan> wrong = {{3, 2, 0, 4, {}}};
  check_error<ShapeError>([&] { cuda::query_tiles(wrong); }, {"cuda::query_tiles", "queries [3, 2) and keys [0, 4)"});
  check_error<ShapeError>([&] { cuda::key_tiles(wrong); }, {"cuda::key_tiles"});
}

TEST_CASE("shapes that do not fit are refused") {
  using M = DeviceMatrix<float>;
  M q(4, 8, Rows::aligned), k(5, 4, Rows::aligned), narrow(4, 7, Rows::aligned), low(3, 4, Rows::aligned);
  const AttentionShape shape = {2, 1, 4, 0.5, false, 0};
  const auto forward = [&](const AttentionShape& s, M& query, M& key, M& value, M& out) {
    cuda::attention_forward<float>(s, {}, query.in(), key.in(), value.in(), out.view(), cuda::Stream{});
  };
  const std::string where = "cuda::attention_forward";
  forward(shape, q, k, k, q);  // no tiles: nothing to do
  check_error<ShapeError>([&] { forward({3, 2, 4, 0.5, false, 0}, q, k, k, q); }, {where, "3 heads over 2 kv_heads"});
  check_error<ShapeError>([&] { forward({2, 0, 4, 0.5, false, 0}, q, k, k, q); }, {where, "2 heads over 0 kv_heads"});
  check_error<ShapeError>([&] { forward({2, 1, 129, 0.5, false, 0}, q, k, k, q); }, {"head_dim of 1 to 128", "129"});
  check_error<ShapeError>([&] { forward(shape, narrow, k, k, q); }, {"q of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { forward(shape, q, q, k, q); }, {"k of shape (4, 4)", "(4, 8)"});
  check_error<ShapeError>([&] { forward(shape, q, k, low, q); }, {"v of shape (5, 4)", "(3, 4)"});
  check_error<ShapeError>([&] { forward(shape, q, k, k, narrow); }, {"out of shape (4, 8)", "(4, 7)"});

  Workspace workspace(cuda::attention_backward_workspace<float>(shape, 4));
  CHECK(workspace.bytes().size() == 2 * 4 * 16);
  const auto backward = [&](M& d_out, M& dq, M& dk, M& dv, std::span<std::byte> memory) {
    cuda::attention_backward<float>(shape, {}, q.in(), k.in(), k.in(), d_out.in(), dq.view(), dk.view(), dv.view(),
                                    memory, cuda::Stream{});
  };
  backward(q, q, k, k, workspace.bytes());
  check_error<ShapeError>([&] { backward(narrow, q, k, k, workspace.bytes()); },
                          {"cuda::attention_backward", "d_out of shape (4, 8)", "(4, 7)"});
  check_error<ShapeError>([&] { backward(q, narrow, k, k, workspace.bytes()); }, {"dq of shape (4, 8)"});
  check_error<ShapeError>([&] { backward(q, q, low, k, workspace.bytes()); }, {"dk of shape (5, 4)", "(3, 4)"});
  check_error<ShapeError>([&] { backward(q, q, k, low, workspace.bytes()); }, {"dv of shape (5, 4)", "(3, 4)"});
  check_error<ShapeError>([&] { backward(q, q, k, k, workspace.bytes().first(127)); },
                          {"128 bytes of workspace", "got 127"});
}

}  // namespace fedlora::tests
