// SPDX-License-Identifier: Apache-2.0
// The backward pass of a low-rank term on the host, in every type, against float64.
#include "fedlora/backend/cuda/low_rank_backward.cuh"

#include <doctest/doctest.h>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"

namespace fedlora::tests {
namespace {

/// A term over the rows [begin, end) of a batch.
struct Case {
  Index rows, in, out, rank, begin, end;
  double dropout = 0;
  Rows kind = Rows::aligned;
};

/// What the backward pass writes.
template <class T>
struct Results {
  DeviceMatrix<float> grad_a, grad_b;
  DeviceMatrix<T> dx;
};

template <class N>
void check_backward(const Case& c) {
  using T = typename N::T;
  CAPTURE(c.rows);
  CAPTURE(c.in);
  CAPTURE(c.out);
  CAPTURE(c.rank);
  CAPTURE(c.dropout);
  const auto numbers = row_numbers(c.rows);
  const Values dy = random_in<T>(c.rows, c.out, 1);
  const Values x = random_in<T>(c.rows, c.in, 2);
  const Values s = random_in<T>(c.rows, c.rank, 3);
  const Values a = random_in<T>(c.rank, c.in, 4, 0.5);
  const Values b = random_in<T>(c.out, c.rank, 5, 0.5);
  const Values grad_a0 = random_values(c.rank, c.in, 6);
  const Values grad_b0 = random_values(c.out, c.rank, 7);
  const Values dx0 = random_in<T>(c.rows, c.in, 8);
  const DeviceMatrix<T> dy_in(dy, c.kind), x_in(x, c.kind), s_in(s, c.kind), a_in(a, c.kind), b_in(b, c.kind);
  LowRankTerm<T, float> term;
  term.begin = c.begin;
  term.end = c.end;
  term.a = a_in.in();
  term.b = b_in.in();
  term.scale = 0.75f;
  if (c.dropout > 0) term.dropout = Dropout(derive_key(5, Purpose::adapter_dropout, 1, 2), c.dropout);
  term.row_numbers = numbers.data();

  const auto run = [&](std::uint64_t seed, bool gradients, bool with_dx) {
    Results<T> results{DeviceMatrix<float>(grad_a0, c.kind), DeviceMatrix<float>(grad_b0, c.kind),
                       DeviceMatrix<T>(dx0, c.kind)};
    LowRankTerm<T, float> given = term;
    if (gradients) given.grad_a = results.grad_a.view();
    if (gradients) given.grad_b = results.grad_b.view();
    Workspace workspace(cuda::low_rank_backward_workspace<T>(c.end - c.begin, c.in, c.out, c.rank));
    cuda::low_rank_backward<T>(dy_in.in(), x_in.in(), s_in.in(), given, with_dx ? results.dx.view() : MatrixView<T>{},
                               workspace.bytes(), cuda::Stream{seed}, N::math);
    CHECK(workspace.intact());
    return results;
  };
  const Results<T> got = run(1, true, true);

  const Values dy_rows = rows_of(dy, c.begin, c.end);
  const Values ds = times_transposed(dy_rows, transposed(b), 0.75);
  const Values grad_b = times_transposed(transposed(dy_rows), transposed(rows_of(s, c.begin, c.end)), 0.75);
  const Values grad_a = times_transposed(transposed(ds), transposed(dropped(x, term.dropout, numbers, c.begin, c.end)));
  check_matrix(got.grad_b, sum_of(grad_b0, grad_b), N::tolerance, "dB");
  check_matrix(got.grad_a, sum_of(grad_a0, grad_a), N::tolerance, "dA");
  const Values product = times_transposed(ds, transposed(a));
  Values dx = dx0;
  for (Index i = c.begin; i < c.end; ++i)
    for (Index j = 0; j < c.in; ++j)
      dx(i, j) += product(i - c.begin, j) * mask_of(term.dropout, numbers[static_cast<std::size_t>(i)], j);
  check_matrix(got.dx, dx, N::tolerance, "dX");

  const Results<T> again = run(2, true, true);
  CHECK(again.grad_a.same_bits(got.grad_a));
  CHECK(again.grad_b.same_bits(got.grad_b));
  CHECK(again.dx.same_bits(got.dx));
  if (c.rows != 35) return;  // one size is enough for what is left out on request
  const Results<T> without_dx = run(3, true, false);
  CHECK(without_dx.grad_a.same_bits(got.grad_a));
  CHECK(without_dx.grad_b.same_bits(got.grad_b));
  const Results<T> only_dx = run(3, false, true);
  CHECK(only_dx.dx.same_bits(got.dx));
}

}  // namespace

TEST_CASE_TEMPLATE("the backward pass at every size", N, FEDLORA_TEST_NUMBERS) {
  for (const Index size : {0, 1, 31, 32, 33, 61}) {
    check_backward<N>({size, 67, 40, 8, 0, size, 0.3, Rows::odd});
    check_backward<N>({35, size, 40, 3, 0, 35, 0.3, Rows::aligned});
    check_backward<N>({34, 40, size, 16, 0, 34, 0.0, Rows::odd});
  }
}

TEST_CASE_TEMPLATE("the backward pass at every rank", N, FEDLORA_TEST_NUMBERS) {
  for (const Index rank : {1, 3, 8, 16, 33, 128}) {
    check_backward<N>({33, 61, 33, rank, 0, 33, 0.3, Rows::odd});
    check_backward<N>({66, 72, 72, rank, 0, 66, 0.0, Rows::aligned});
  }
}

TEST_CASE_TEMPLATE("the backward pass over several slabs and runs, and terms that keep to their rows", N,
                   FEDLORA_TEST_NUMBERS) {
  check_backward<N>({40, 300, 17, 8, 5, 38, 0.3, Rows::aligned});
  check_backward<N>({270, 24, 300, 4, 0, 270, 0.3, Rows::aligned});
  check_backward<N>({270, 24, 40, 16, 0, 270, 0.3, Rows::aligned});  // runs of two tiles, the last one shorter
  check_backward<N>({200, 136, 140, 40, 64, 195, 0.3, Rows::aligned});
}

TEST_CASE("cuts depend on shapes, and keep partials small beside what is read") {
  const cuda::detail::PassCuts wide(8192, 4096, 256, 16);
  CHECK(wide.slabs == 16);
  CHECK(wide.runs == 16);
  CHECK(wide.tiles_per_run == 8);
  const cuda::detail::PassCuts deep(8192, 768, 64, 128);
  CHECK(deep.tiles_per_run == 16);
  CHECK(deep.runs == 8);
  CHECK(cuda::detail::PassCuts(1, 0, 64, 1).slabs == 0);
}

TEST_CASE_TEMPLATE("every kernel fits the shared memory of every architecture", N, FEDLORA_TEST_NUMBERS) {
  using T = typename N::T;
  for (Index rank = 1; rank <= cuda::largest_rank; ++rank)
    cuda::detail::with_rank_tiles(rank, [&](auto tiles) {
      cuda::ShrinkKernel<T, N::math, tiles()> shrink;
      shrink.a.rows = rank;
      cuda::ExpandKernel<T, N::math, false> expand;
      cuda::ExpandKernel<T, N::math, true> masked;
      cuda::AdapterPassKernel<T, N::math, tiles(), true> first;
      cuda::AdapterPassKernel<T, N::math, tiles(), false> second;
      expand.s.cols = masked.s.cols = first.s.cols = second.s.cols = rank;
      for (const int bytes : {shrink.shared_bytes(), expand.shared_bytes(), masked.shared_bytes(), first.shared_bytes(),
                              second.shared_bytes()})
        CHECK(bytes <= cuda::shared_bytes_everywhere);
    });
}

TEST_CASE("gradients of another shape are refused") {
  DeviceMatrix<float> dy(4, 6, Rows::aligned), x(4, 8, Rows::aligned), s(4, 2, Rows::aligned);
  DeviceMatrix<float> a(2, 8, Rows::aligned), b(6, 2, Rows::aligned);
  LowRankTerm<float> term;
  term.end = 4;
  term.a = a.in();
  term.b = b.in();
  const auto run = [&](MatrixView<float> dx) {
    cuda::low_rank_backward<float>(dy.in(), x.in(), s.in(), term, dx, {}, cuda::Stream{});
  };
  term.grad_a = b.view();
  check_error<ShapeError>([&] { run({}); }, {"cuda::low_rank_backward", "grad_a of shape (2, 8)", "(6, 2)"});
  term.grad_a = {};
  check_error<ShapeError>([&] { run(dy.view()); }, {"dX of shape (4, 8)", "(4, 6)"});
  check_error<ShapeError>([&] { run({}); }, {"bytes of workspace", "got 0"});
}

}  // namespace fedlora::tests
