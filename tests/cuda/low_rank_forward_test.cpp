// SPDX-License-Identifier: Apache-2.0
// Shrink and expand on the host, in every type, against float64.
#include "fedlora/backend/cuda/low_rank_forward.cuh"

#include <doctest/doctest.h>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"
#include "fedlora/backend/cpu/dropout.hpp"

namespace fedlora::tests {
namespace {

/// A term over the rows [begin, end) of a batch.
struct Case {
  Index rows, in, out, rank, begin, end;
  double dropout = 0;
  Rows kind = Rows::aligned;
};

/// Rows outside of the term keep NaN in S and what they had in Y.
template <class N>
void check_forward(const Case& c) {
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
  CHECK(cuda::detail::ShrinkSplits(8192, 4096, 2).count == 3);
  CHECK(cuda::detail::ShrinkSplits(64 * 264, 4096, 2).count == 1);
  CHECK(cuda::detail::ShrinkSplits(64, 0, 2).count == 1);
  CHECK(cuda::low_rank_shrink_workspace<Bf16>(64 * 264, 4096, 8) == 0);
  CHECK(cuda::low_rank_shrink_workspace<Bf16>(64, 4096, 9) == 16 * 64 * 16 * 4);
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
  DeviceMatrix<float> wide(4, 400, Rows::aligned), wide_a(2, 400, Rows::aligned);
  term.a = wide_a.in();
  check_error<ShapeError>([&] { shrink(term, wide, s); }, {"bytes of workspace", "got 0"});
}

}  // namespace fedlora::tests
