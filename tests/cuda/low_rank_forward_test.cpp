// SPDX-License-Identifier: Apache-2.0
// Shrink and expand on the host, in every type, against float64.
#include "fedlora/backend/cuda/low_rank_forward.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "cuda/low_rank.hpp"
#include "errors.hpp"
#include "fedlora/backend/cpu/dropout.hpp"

namespace fedlora::tests {
namespace {

template <class T>
Values values_of(MatrixView<const T> view) {
  Values result(view.rows, view.cols);
  for (Index i = 0; i < view.rows; ++i)
    for (Index j = 0; j < view.cols; ++j) result(i, j) = static_cast<double>(static_cast<float>(view(i, j)));
  return result;
}

/// Rows outside of the term keep NaN in S and what they had in Y.
template <class N>
void check_forward(const LowRankCase& c) {
  using T = typename N::T;
  CAPTURE(c.rows);
  CAPTURE(c.in);
  CAPTURE(c.out);
  CAPTURE(c.rank);
  CAPTURE(c.dropout);
  const auto numbers = row_numbers(c.rows);
  const Values x = random_in<T>(c.rows, c.in, 1);
  const Values a = random_in<T>(c.rank, c.in, 2, 0.5);
  const Values b = random_in<T>(c.out, c.rank, 3, 0.5);
  const Values y0 = random_in<T>(c.rows, c.out, 4);
  const DeviceMatrix<T> x_in(x, c.kind), a_in(a, c.kind), b_in(b, c.kind);
  LowRankTerm<T, float> term;
  term.begin = c.begin;
  term.end = c.end;
  term.a = a_in.in();
  term.b = b_in.in();
  term.scale = 0.75f;
  if (c.dropout > 0) term.dropout = Dropout(derive_key(5, Purpose::adapter_dropout, 1, 2), c.dropout);
  term.row_numbers = numbers.data();

  const auto run = [&](std::uint64_t seed, DeviceMatrix<T>& s, DeviceMatrix<T>& y) {
    Workspace workspace(cuda::low_rank_shrink_workspace<T>(c.end - c.begin, c.in, c.rank));
    cuda::low_rank_shrink<T>(x_in.in(), term, s.view(), workspace.bytes(), cuda::Stream{seed}, N::math);
    cuda::low_rank_expand<T>(s.view(), term, y.view(), cuda::Stream{seed}, N::math);
    CHECK(workspace.intact());
  };
  DeviceMatrix<T> s(c.rows, c.rank, c.kind), y(y0, c.kind);
  run(1, s, y);
  CHECK(s.intact());
  const Values expected = times_transposed(dropped(x, term.dropout, numbers, c.begin, c.end), a);
  const double s_error = error_of(rows_of(s.values(), c.begin, c.end), expected);
  CHECK_MESSAGE(s_error <= N::tolerance, "S is off by " << s_error);
  Values y_expected = y0;
  const Values part = times_transposed(rows_of(s.values(), c.begin, c.end), b, 0.75);
  for (Index i = c.begin; i < c.end; ++i)
    for (Index j = 0; j < c.out; ++j) y_expected(i, j) += part(i - c.begin, j);
  check_matrix(y, y_expected, N::tolerance, "Y");
  for (Index i = 0; i < c.rows; ++i)
    if (i < c.begin || i >= c.end) CHECK(std::isnan(static_cast<float>(s.in()(i, 0))));

  DeviceMatrix<T> again_s(c.rows, c.rank, c.kind), again_y(y0, c.kind);
  run(2, again_s, again_y);
  CHECK(again_s.same_bits(s));
  CHECK(again_y.same_bits(y));
}

/// Where the S of a group stand.
enum class Place { apart, neighbours, behind_x };

struct ShrinkGroup {
  Index rows, in;
  std::vector<Index> ranks;
  std::vector<double> dropouts;
  Index begin, end;
  Place place = Place::neighbours;
  Rows kind = Rows::aligned;
};

/// S that stand beside each other have the padded ranks and are zero behind their ranks; S apart have their ranks.
template <class N>
void check_shrink_group(const ShrinkGroup& c) {
  using T = typename N::T;
  CAPTURE(c.rows);
  CAPTURE(c.in);
  CAPTURE(c.ranks);
  const auto numbers = row_numbers(c.rows);
  const Values x = random_in<T>(c.rows, c.in, 1);
  std::vector<Values> a;
  std::vector<DeviceMatrix<T>> a_in;
  std::vector<LowRankTerm<T, float>> terms(c.ranks.size());
  std::vector<cuda::TermShape> shapes;
  Index columns = 0;
  for (std::size_t t = 0; t < terms.size(); ++t) {
    a.push_back(random_in<T>(c.ranks[t], c.in, 10 + t, 0.5));
    a_in.emplace_back(a.back(), c.kind);
    terms[t].begin = c.begin;
    terms[t].end = c.end;
    terms[t].a = a_in.back().in();
    if (c.dropouts[t] > 0) terms[t].dropout = Dropout(derive_key(5, Purpose::adapter_dropout, t), c.dropouts[t]);
    terms[t].row_numbers = c.dropouts[t] > 0 ? numbers.data() : nullptr;
    shapes.push_back({0, c.ranks[t]});
    columns += cuda::padded_rank(c.ranks[t]);
  }
  const bool behind = c.place == Place::behind_x;
  const Index x_cols = behind ? c.in + columns : c.in;

  struct Memory {
    DeviceMatrix<T> x, beside;
    std::vector<DeviceMatrix<T>> apart;
  };
  const auto run = [&](std::uint64_t seed, Memory& memory) {
    for (Index i = 0; i < c.rows; ++i)
      for (Index j = 0; j < c.in; ++j) memory.x.view()(i, j) = T(static_cast<float>(x(i, j)));
    std::vector<cuda::ShrinkTerm<T>> group;
    Index column = 0;
    for (std::size_t t = 0; t < terms.size(); ++t) {
      memory.apart.emplace_back(c.rows, c.ranks[t], c.kind);
      const Index padded = cuda::padded_rank(c.ranks[t]);
      const MatrixView<T> beside = behind ? columns_of(memory.x.view(), c.in + column, padded)
                                          : columns_of(memory.beside.view(), column, padded);
      group.push_back({terms[t], c.place == Place::apart ? memory.apart.back().view() : beside});
      column += padded;
    }
    Workspace workspace(cuda::low_rank_shrink_group_workspace<T>(c.end - c.begin, c.in, shapes));
    cuda::low_rank_shrink_group<T>(columns_of(memory.x.in(), 0, c.in), group, workspace.bytes(), cuda::Stream{seed},
                                   N::math);
    CHECK(workspace.intact());
    return group;
  };
  Memory first{DeviceMatrix<T>(c.rows, x_cols, c.kind), DeviceMatrix<T>(c.rows, columns, c.kind), {}};
  Memory second{DeviceMatrix<T>(c.rows, x_cols, c.kind), DeviceMatrix<T>(c.rows, columns, c.kind), {}};
  const auto got = run(1, first);
  run(2, second);
  CHECK(first.x.intact());
  CHECK(first.beside.intact());
  CHECK(error_of(values_of(columns_of(first.x.in(), 0, c.in)), x) == 0.0);
  CHECK(second.x.same_bits(first.x));
  CHECK(second.beside.same_bits(first.beside));
  for (std::size_t t = 0; t < terms.size(); ++t) {
    CAPTURE(t);
    const Values expected = times_transposed(dropped(x, terms[t].dropout, numbers, c.begin, c.end), a[t]);
    Values s(c.end - c.begin, c.ranks[t]);
    for (Index i = 0; i < c.rows; ++i)
      for (Index j = 0; j < got[t].s.cols; ++j) {
        const auto value = static_cast<double>(static_cast<float>(got[t].s(i, j)));
        if (i < c.begin || i >= c.end)
          CHECK(std::isnan(value));
        else if (j >= c.ranks[t])
          CHECK(value == 0.0);
        else
          s(i - c.begin, j) = value;
      }
    const double error = error_of(s, expected);
    CHECK_MESSAGE(error <= N::tolerance, "S is off by " << error);
    CHECK(first.apart[t].intact());
    CHECK(second.apart[t].same_bits(first.apart[t]));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("shrink and expand at every size", N, FEDLORA_TEST_NUMBERS) {
  for (const Index size : {0, 1, 31, 32, 33, 61}) {
    check_forward<N>({size, 67, 40, 8, 0, size, 0.0, Rows::odd});
    check_forward<N>({35, size, 40, 3, 0, 35, 0.3, Rows::aligned});
    check_forward<N>({35, 64, size, 16, 0, 35, 0.0, Rows::odd});
  }
}

TEST_CASE_TEMPLATE("shrink and expand at every rank", N, FEDLORA_TEST_NUMBERS) {
  for (const Index rank : {1, 3, 8, 16, 33, 128}) {
    check_forward<N>({33, 61, 33, rank, 0, 33, 0.3, Rows::odd});
    check_forward<N>({66, 72, 136, rank, 0, 66, 0.0, Rows::aligned});
  }
}

TEST_CASE_TEMPLATE("shrink over several splits, and terms that keep to their rows", N, FEDLORA_TEST_NUMBERS) {
  check_forward<N>({40, 1031, 17, 8, 5, 38, 0.3, Rows::aligned});
  check_forward<N>({40, 600, 17, 16, 0, 40, 0.0, Rows::odd});
  check_forward<N>({130, 520, 260, 4, 64, 130, 0.3, Rows::aligned});
}

TEST_CASE_TEMPLATE("a group shares one X", N, FEDLORA_TEST_NUMBERS) {
  check_shrink_group<N>({35, 72, {8}, {0.0}, 0, 35});
  check_shrink_group<N>({35, 67, {3, 8}, {0.3, 0.0}, 0, 35, Place::apart, Rows::odd});
  check_shrink_group<N>({66, 72, {16, 16, 16}, {0.3, 0.2, 0.4}, 0, 66});
  check_shrink_group<N>({66, 64, {16, 16, 16}, {0.0, 0.0, 0.0}, 0, 66, Place::behind_x});
  check_shrink_group<N>({33, 61, {1, 9, 4, 2}, {0.1, 0.0, 0.5, 0.3}, 3, 30, Place::behind_x, Rows::odd});
  check_shrink_group<N>({5, 33, {4, 4}, {0.3, 0.3}, 2, 2, Place::apart});
}

TEST_CASE_TEMPLATE("a group of several chunks or splits", N, FEDLORA_TEST_NUMBERS) {
  check_shrink_group<N>({70, 40, {60, 64, 17, 1}, {0.3, 0.0, 0.3, 0.2}, 0, 70});
  check_shrink_group<N>({20, 40, {128, 3, 128}, {0.0, 0.3, 0.0}, 0, 20, Place::apart});
  check_shrink_group<N>({40, 700, {8, 5, 8}, {0.3, 0.0, 0.2}, 1, 39, Place::behind_x});
  check_shrink_group<N>({10, 600, {64, 72}, {0.0, 0.0}, 0, 10, Place::apart, Rows::odd});
}

TEST_CASE("the mask is the one of the CPU") {
  const Dropout dropout(derive_key(9, Purpose::adapter_dropout, 3), 0.3);
  constexpr Index cols = 67;
  float mask[cols];
  for (const std::int32_t row : {0, 5, 1 << 20}) {
    cpu::dropout_mask(dropout, static_cast<std::uint32_t>(row), 0, cols, mask);
    for (Index j = 0; j < cols; ++j) {
      const RandomWords words = cuda::dropout_words(dropout, row, j / 4 * 4);
      CHECK((words[static_cast<std::size_t>(j % 4)] >= dropout.threshold) == (mask[j] != 0.0f));
    }
  }
}

TEST_CASE("splits depend on shapes, and fill a GPU when there are few rows") {
  CHECK(cuda::detail::ShrinkSplits(64, 4096, 2).count == 16);
  CHECK(cuda::detail::ShrinkSplits(4096, 4096, 2).count == 2);
  CHECK(cuda::detail::ShrinkSplits(8192, 4096, 2).count == 1);
  CHECK(cuda::detail::ShrinkSplits(4096, 4096, 2, 2).count == 1);
  CHECK(cuda::detail::ShrinkSplits(64, 0, 2).count == 1);
  CHECK(cuda::low_rank_shrink_workspace<Bf16>(64, 4096, 9) == 16 * 64 * 16 * 4);
  CHECK(cuda::low_rank_shrink_workspace<Bf16>(8192, 256, 9) == 0);
}

TEST_CASE("a workspace serves fewer rows as well") {
  const std::vector<cuda::TermShape> shapes{{0, 16}, {0, 3}, {0, 120}};
  const std::size_t largest = cuda::low_rank_shrink_group_workspace<Bf16>(10000, 4096, shapes);
  std::size_t before = 0;
  for (Index rows = 1; rows <= 10000; rows += 37) {
    const cuda::RankTiles ranks{std::span<const cuda::TermShape>(shapes)};
    const cuda::detail::ShrinkSplits splits(rows, 4096, 2, ranks.chunks);
    const auto used = splits.count == 1 ? 0 : static_cast<std::size_t>(splits.count * rows * 8 * ranks.all() * 4);
    const std::size_t bytes = cuda::low_rank_shrink_group_workspace<Bf16>(rows, 4096, shapes);
    CHECK(used <= bytes);
    CHECK(before <= bytes);
    CHECK(bytes <= largest);
    before = bytes;
  }
}

TEST_CASE("neighbouring terms share a chunk while their tiles fit") {
  const std::vector<cuda::TermShape> shapes{{0, 60}, {0, 64}, {0, 1}, {0, 128}};
  const cuda::RankTiles shared{std::span<const cuda::TermShape>(shapes)};
  CHECK(shared.all() == 33);
  CHECK(shared.chunks == 3);
  CHECK(shared.chunk_begins[1] == 2);
  CHECK(shared.chunk_begins[2] == 3);
  CHECK(shared.chunk_begins[3] == 4);
  CHECK(shared.largest_chunk == 16);
  CHECK(shared.most_terms == 2);
  CHECK(shared.term_of(0, 7) == 0);
  CHECK(shared.term_of(0, 8) == 1);
  const cuda::RankTiles apart(shapes, 0);
  CHECK(apart.chunks == 4);
  CHECK(apart.most_terms == 1);
}

TEST_CASE("shapes that do not fit are refused") {
  DeviceMatrix<float> x(4, 8, Rows::aligned), a(2, 8, Rows::aligned), s(4, 2, Rows::aligned), b(6, 2, Rows::aligned);
  DeviceMatrix<float> y(4, 6, Rows::aligned), narrow(4, 5, Rows::aligned), high(129, 8, Rows::aligned);
  LowRankTerm<float> term;
  term.end = 4;
  term.a = a.in();
  term.b = b.in();
  const auto shrink = [&](const LowRankTerm<float>& t, DeviceMatrix<float>& from, DeviceMatrix<float>& to) {
    cuda::low_rank_shrink<float>(from.in(), t, to.view(), {}, cuda::Stream{});
  };
  check_error<ShapeError>([&] { shrink(term, narrow, s); }, {"cuda::low_rank_shrink", "A of shape (2, 5)", "(2, 8)"});
  check_error<ShapeError>([&] { shrink(term, x, narrow); }, {"S of shape (4, 2)", "(4, 5)"});
  LowRankTerm<float> wrong = term;
  wrong.end = 5;
  check_error<ShapeError>([&] { shrink(wrong, x, s); }, {"rows within [0, 4)", "[0, 5)"});
  wrong = term;
  wrong.a = high.in();
  check_error<ShapeError>([&] { shrink(wrong, x, s); }, {"a rank of 1 to 128", "129"});
  check_error<ShapeError>([&] { cuda::low_rank_expand<float>(s.view(), term, narrow.view(), cuda::Stream{}); },
                          {"cuda::low_rank_expand", "B of shape (5, 2)", "(6, 2)"});
  const auto group = [&](std::vector<cuda::ShrinkTerm<float>> terms) {
    cuda::low_rank_shrink_group<float>(x.in(), terms, {}, cuda::Stream{});
  };
  check_error<ShapeError>([&] { group({}); }, {"a group of 1 to 4 terms", "got 0"});
  check_error<ShapeError>([&] { group(std::vector<cuda::ShrinkTerm<float>>(5, {term, s.view()})); }, {"got 5"});
  wrong = term;
  wrong.begin = 1;
  check_error<ShapeError>(
      [&] {
        group({{term, s.view()}, {wrong, s.view()}});
      },
      {"all terms over the rows [0, 4)", "[1, 4)"});
  check_error<ShapeError>([&] { group({{term, narrow.view()}}); }, {"S of shape (4, 2)", "(4, 5)"});
  DeviceMatrix<float> wide(4, 400, Rows::aligned), wide_a(2, 400, Rows::aligned);
  term.a = wide_a.in();
  check_error<ShapeError>([&] { shrink(term, wide, s); }, {"bytes of workspace", "got 0"});
}

}  // namespace fedlora::tests
