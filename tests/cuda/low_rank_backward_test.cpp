// SPDX-License-Identifier: Apache-2.0
// The backward pass of a low-rank term on the host, in every type, against float64.
#include "fedlora/backend/cuda/low_rank_backward.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "cuda/low_rank.hpp"
#include "errors.hpp"
#include "fedlora/backend/cuda/low_rank_forward.cuh"

namespace fedlora::tests {
namespace {

/// What the backward pass writes.
template <class T>
struct Results {
  DeviceMatrix<float> grad_a, grad_b;
  DeviceMatrix<T> dx;
};

template <class N>
void check_backward(const LowRankCase& c) {
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

/// One term of a group. `gradients` and `keep_ds` say what is wanted of it.
struct Member {
  Index out, rank;
  double dropout = 0;
  bool grad_a = true, grad_b = true, keep_ds = false;
};

struct BackwardGroup {
  Index rows, in;
  std::vector<Member> members;
  Index begin, end;
  bool with_dx = true;
  Rows kind = Rows::aligned;
};

/// The dY stand beside each other in one matrix, each followed by room for its dS; so do the S.
template <class N>
void check_backward_group(const BackwardGroup& c) {
  using T = typename N::T;
  CAPTURE(c.rows);
  CAPTURE(c.in);
  CAPTURE(c.members.size());
  const std::size_t count = c.members.size();
  const auto numbers = row_numbers(c.rows);
  const Values x = random_in<T>(c.rows, c.in, 1);
  const Values dx0 = random_in<T>(c.rows, c.in, 2);
  const DeviceMatrix<T> x_in(x, c.kind);
  std::vector<Values> dy, s, a, b, grad_a0, grad_b0;
  std::vector<DeviceMatrix<T>> s_in, a_in, b_in;
  std::vector<cuda::TermShape> shapes;
  Index width = 0;
  for (std::size_t t = 0; t < count; ++t) {
    const auto& [out, rank, dropout, with_a, with_b, keep] = c.members[t];
    dy.push_back(random_in<T>(c.rows, out, 10 + t));
    s.push_back(random_in<T>(c.rows, rank, 20 + t));
    a.push_back(random_in<T>(rank, c.in, 30 + t, 0.5));
    b.push_back(random_in<T>(out, rank, 40 + t, 0.5));
    grad_a0.push_back(random_values(rank, c.in, 50 + t));
    grad_b0.push_back(random_values(out, rank, 60 + t));
    s_in.emplace_back(s.back(), c.kind);
    a_in.emplace_back(a.back(), c.kind);
    b_in.emplace_back(b.back(), c.kind);
    shapes.push_back({out, rank});
    width += (out + 7) / 8 * 8 + cuda::padded_rank(rank);
  }

  struct Memory {
    DeviceMatrix<T> dx, dy;
    std::vector<DeviceMatrix<float>> grad_a, grad_b;
  };
  const auto run = [&](std::uint64_t seed) {
    Memory memory{DeviceMatrix<T>(dx0, c.kind), DeviceMatrix<T>(c.rows, width, c.kind), {}, {}};
    std::vector<cuda::BackwardTerm<T>> group;
    Index column = 0;
    for (std::size_t t = 0; t < count; ++t) {
      const Member& member = c.members[t];
      const Index padded = cuda::padded_rank(member.rank);
      const MatrixView<T> to = columns_of(memory.dy.view(), column, member.out);
      for (Index i = 0; i < c.rows; ++i)
        for (Index j = 0; j < member.out; ++j) to(i, j) = T(static_cast<float>(dy[t](i, j)));
      column += (member.out + 7) / 8 * 8;
      cuda::BackwardTerm<T> given;
      given.dy = to;
      given.s = s_in[t].in();
      if (member.keep_ds) given.ds = columns_of(memory.dy.view(), column, padded);
      column += padded;
      given.term.begin = c.begin;
      given.term.end = c.end;
      given.term.a = a_in[t].in();
      given.term.b = b_in[t].in();
      given.term.scale = 0.5f + static_cast<float>(t);
      if (member.dropout > 0) given.term.dropout = Dropout(derive_key(5, Purpose::adapter_dropout, t), member.dropout);
      given.term.row_numbers = member.dropout > 0 ? numbers.data() : nullptr;
      memory.grad_a.emplace_back(grad_a0[t], c.kind);
      memory.grad_b.emplace_back(grad_b0[t], c.kind);
      if (member.grad_a) given.term.grad_a = memory.grad_a.back().view();
      if (member.grad_b) given.term.grad_b = memory.grad_b.back().view();
      group.push_back(given);
    }
    Workspace workspace(cuda::low_rank_backward_group_workspace<T>(c.end - c.begin, c.in, shapes));
    cuda::low_rank_backward_group<T>(x_in.in(), group, c.with_dx ? memory.dx.view() : MatrixView<T>{},
                                     workspace.bytes(), cuda::Stream{seed}, N::math);
    CHECK(workspace.intact());
    return memory;
  };
  const Memory got = run(1);
  const Memory again = run(2);

  Values dx = dx0;
  Index column = 0;
  for (std::size_t t = 0; t < count; ++t) {
    CAPTURE(t);
    const Member& member = c.members[t];
    const double scale = 0.5 + static_cast<double>(t);
    Dropout dropout;
    if (member.dropout > 0) dropout = Dropout(derive_key(5, Purpose::adapter_dropout, t), member.dropout);
    const Values dy_rows = rows_of(dy[t], c.begin, c.end);
    const Values ds = times_transposed(dy_rows, transposed(b[t]), scale);
    const Values grad_b = times_transposed(transposed(dy_rows), transposed(rows_of(s[t], c.begin, c.end)), scale);
    const Values grad_a = times_transposed(transposed(ds), transposed(dropped(x, dropout, numbers, c.begin, c.end)));
    check_matrix(got.grad_a[t], member.grad_a ? sum_of(grad_a0[t], grad_a) : grad_a0[t], N::tolerance, "dA");
    check_matrix(got.grad_b[t], member.grad_b ? sum_of(grad_b0[t], grad_b) : grad_b0[t], N::tolerance, "dB");
    CHECK(again.grad_a[t].same_bits(got.grad_a[t]));
    CHECK(again.grad_b[t].same_bits(got.grad_b[t]));
    const Values product = times_transposed(ds, transposed(a[t]));
    if (c.with_dx)
      for (Index i = c.begin; i < c.end; ++i)
        for (Index j = 0; j < c.in; ++j)
          dx(i, j) += product(i - c.begin, j) * mask_of(dropout, numbers[static_cast<std::size_t>(i)], j);

    column += (member.out + 7) / 8 * 8;
    Values kept(c.end - c.begin, member.rank);
    for (Index i = 0; i < c.rows; ++i)
      for (Index j = 0; j < cuda::padded_rank(member.rank); ++j) {
        const auto value = static_cast<double>(static_cast<float>(got.dy.in()(i, column + j)));
        if (!member.keep_ds || i < c.begin || i >= c.end)
          CHECK(std::isnan(value));
        else if (j >= member.rank)
          CHECK(value == 0.0);
        else
          kept(i - c.begin, j) = value;
      }
    column += cuda::padded_rank(member.rank);
    if (!member.keep_ds) continue;
    const double error = error_of(kept, ds);
    CHECK_MESSAGE(error <= N::tolerance, "dS is off by " << error);
  }
  check_matrix(got.dx, dx, N::tolerance, "dX");
  CHECK(again.dx.same_bits(got.dx));
  CHECK(got.dy.intact());
  CHECK(again.dy.same_bits(got.dy));
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

TEST_CASE_TEMPLATE("a group shares one X and one dX", N, FEDLORA_TEST_NUMBERS) {
  check_backward_group<N>({35, 72, {{40, 8}, {24, 3, 0.3}}, 0, 35});
  check_backward_group<N>({66, 72, {{72, 16, 0.3}, {24, 16, 0.2}, {24, 16, 0.4}}, 0, 66});
  check_backward_group<N>({33, 61, {{61, 1, 0.1}, {7, 9}, {33, 4, 0.5}, {1, 2, 0.3}}, 3, 30, true, Rows::odd});
  check_backward_group<N>({6, 33, {{8, 4, 0.3}, {8, 4, 0.3}}, 2, 2});
}

TEST_CASE_TEMPLATE("a group leaves dS where it is wanted, and computes no more than is", N, FEDLORA_TEST_NUMBERS) {
  check_backward_group<N>({66, 40, {{72, 16, 0, true, true, true}, {24, 5, 0, true, true, true}}, 1, 66, false});
  check_backward_group<N>({34, 40, {{40, 8, 0.3, false, true, true}, {24, 16, 0.3, true, false, false}}, 0, 34});
  check_backward_group<N>({34, 40, {{40, 8, 0.3, false, true}, {24, 16, 0.3, false, true}}, 0, 34, false});
  check_backward_group<N>({34, 40, {{40, 8, 0.3, false, false}, {24, 16, 0.3, false, false}}, 0, 34, false, Rows::odd});
}

TEST_CASE_TEMPLATE("a group of several chunks, slabs and runs", N, FEDLORA_TEST_NUMBERS) {
  check_backward_group<N>({70, 136, {{40, 60, 0.3}, {24, 64}, {24, 17, 0.3}, {8, 1, 0.2}}, 0, 70});
  check_backward_group<N>({130, 300, {{300, 8, 0.3}, {40, 5}, {264, 8, 0.2}}, 2, 129});
  check_backward_group<N>({35, 24, {{350, 40, 0.3, true, true, true}, {8, 3}, {600, 9, 0.2}}, 1, 34});
  check_backward_group<N>({20, 40, {{40, 128}, {24, 3, 0.3}, {24, 128}}, 0, 20, true, Rows::odd});
}

TEST_CASE("cuts depend on shapes, and keep partials small beside what is read") {
  const cuda::detail::PassCuts wide(8192, 16, 2);
  CHECK(wide.runs == 16);
  CHECK(wide.tiles_per_run == 8);
  const cuda::detail::PassCuts deep(8192, 12, 16);
  CHECK(deep.tiles_per_run == 16);
  CHECK(deep.runs == 8);
  const std::vector<cuda::TermShape> shapes{{768, 16}, {256, 16}, {256, 16}};
  const cuda::detail::BackwardPlan<Bf16> plan(8192, 768, shapes);
  CHECK(plan.slabs[0] == 3);
  CHECK(plan.slabs[1] == 1);
  CHECK(plan.first.runs == 43);   // of three tiles each, over five slabs
  CHECK(plan.second.runs == 22);  // of six tiles each, over six slabs of X
  CHECK(cuda::detail::BackwardPlan<Bf16>(1, 0, std::vector<cuda::TermShape>{{0, 1}}).slabs[0] == 0);
}

TEST_CASE("a workspace serves fewer rows as well") {
  const std::vector<cuda::TermShape> shapes{{768, 16}, {256, 3}, {5, 120}};
  std::size_t before = 0;
  for (Index rows = 1; rows <= 20000; rows += 61) {
    const std::size_t bytes = cuda::low_rank_backward_group_workspace<Bf16>(rows, 1024, shapes);
    CHECK(cuda::detail::BackwardPlan<Bf16>(rows, 1024, shapes).bytes <= bytes);
    CHECK(before <= bytes);
    before = bytes;
  }
}

TEST_CASE_TEMPLATE("every kernel fits the shared memory of every architecture", N, FEDLORA_TEST_NUMBERS) {
  using T = typename N::T;
  const auto check = [](int bytes) { CHECK(bytes <= cuda::shared_bytes_everywhere); };
  for (Index rank = 1; rank <= cuda::largest_rank; ++rank)
    for (std::size_t terms = 1; terms <= cuda::largest_group; ++terms) {
      const std::vector<cuda::TermShape> shapes(terms, {64, rank});
      const cuda::RankTiles shared{std::span<const cuda::TermShape>(shapes)};
      const cuda::RankTiles apart(shapes, 0);
      cuda::detail::with_rank_tiles(shared.largest_chunk, [&](auto tiles) {
        cuda::ShrinkKernel<T, N::math, tiles(), false> shrink;
        shrink.ranks = shared;
        shrink.drops = true;
        check(shrink.shared_bytes());
        cuda::AdapterPassKernel<T, N::math, tiles(), false> second;
        second.ranks = shared;
        second.drops = true;
        check(second.shared_bytes());
      });
      cuda::detail::with_rank_tiles(apart.largest_chunk, [&](auto tiles) {
        cuda::AdapterPassKernel<T, N::math, tiles(), true> first;
        first.ranks = apart;
        first.projects = true;
        check(first.shared_bytes());
        cuda::ShrinkKernel<T, N::math, tiles(), true> of_ds;
        of_ds.ranks = apart;
        check(of_ds.shared_bytes());
      });
      cuda::ExpandKernel<T, N::math, false> expand;
      cuda::ExpandKernel<T, N::math, true> masked;
      cuda::Source<const T> ranks;
      ranks.cols = rank;
      for (std::size_t i = 0; i < terms; ++i) {
        expand.add({ranks, {}, 1.0f, {}, nullptr});
        masked.add({ranks, {}, 1.0f, Dropout({}, 0.5), nullptr});
      }
      check(expand.shared_bytes());
      check(masked.shared_bytes());
    }
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

  const auto group = [&](std::vector<cuda::BackwardTerm<float>> terms) {
    cuda::low_rank_backward_group<float>(x.in(), terms, {}, {}, cuda::Stream{});
  };
  const cuda::BackwardTerm<float> right{term, dy.in(), s.in(), {}};
  check_error<ShapeError>([&] { group({}); }, {"a group of 1 to 4 terms", "got 0"});
  cuda::BackwardTerm<float> wrong = right;
  wrong.term.end = 3;
  check_error<ShapeError>([&] { group({right, wrong}); }, {"all terms over the rows [0, 4)", "[0, 3)"});
  wrong = right;
  wrong.dy = x.in();
  check_error<ShapeError>([&] { group({right, wrong}); }, {"dY of shape (4, 6)", "(4, 8)"});
  wrong = right;
  wrong.ds = dy.view();
  check_error<ShapeError>([&] { group({right, wrong}); }, {"dS of shape (4, 2)", "(4, 6)"});
}

}  // namespace fedlora::tests
