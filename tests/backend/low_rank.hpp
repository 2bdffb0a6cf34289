// SPDX-License-Identifier: Apache-2.0
// Low-rank terms of every backend, with and without dropout, one and several in a batch, against naive products in
// double.
#pragma once

#include "backend/conformance.hpp"

namespace fedlora::tests {
namespace {

/// One low-rank term of a test: its rows and numbers.
struct Term {
  Index begin, end;
  Values a, b;
  double scale;
  Dropout dropout;
};

Values dropped(const Values& x, const Term& term, const std::vector<std::int32_t>& numbers) {
  Values result(term.end - term.begin, x.cols);
  for (Index i = term.begin; i < term.end; ++i)
    for (Index j = 0; j < x.cols; ++j)
      result(i - term.begin, j) = x(i, j) * mask_of(term.dropout, numbers[static_cast<std::size_t>(i)], j);
  return result;
}

/// x Wᵀ + the terms' parts.
Values with_terms(const Values& w, const Values& x, const std::vector<Term>& terms,
                  const std::vector<std::int32_t>& numbers) {
  Values y = times_transposed(x, w);
  for (const Term& term : terms) {
    const Values part = times_transposed(times_transposed(dropped(x, term, numbers), term.a), term.b, term.scale);
    for (Index i = term.begin; i < term.end; ++i)
      for (Index j = 0; j < y.cols; ++j) y(i, j) += part(i - term.begin, j);
  }
  return y;
}

template <class B>
void check_low_rank(Index rows, Index in, Index out, const std::vector<Term>& terms) {
  using T = typename B::Element;
  using S = typename B::Scalar;
  Worker<B> run;
  CAPTURE(rows);
  CAPTURE(in);
  CAPTURE(out);
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(rows));
  for (Index i = 0; i < rows; ++i) numbers[static_cast<std::size_t>(i)] = static_cast<std::int32_t>((i * 7 + 3) % 91);
  const std::int32_t* const placed = run.place(numbers);
  run.flush();
  const Values x = random_for<B>(rows, in, 1);
  const Values w = random_for<B>(out, in, 2);
  const FrozenMatrix weight = run.frozen(w);
  Index rank = 0;
  for (const Term& term : terms) rank = std::max(rank, term.a.rows);

  const Guarded<T> x_in(x);
  Guarded<T> y(rows, out), s(rows, rank);
  std::vector<Guarded<T>> a, b;
  std::vector<Guarded<S>> grad_a, grad_b;
  for (const Term& term : terms) {
    a.emplace_back(term.a);
    b.emplace_back(term.b);
    grad_a.emplace_back(random_values(term.a.rows, in, 5));
    grad_b.emplace_back(random_values(out, term.a.rows, 6));
  }
  std::vector<LowRankTerm<T, S>> given(terms.size());
  for (std::size_t t = 0; t < terms.size(); ++t) {
    given[t].begin = terms[t].begin;
    given[t].end = terms[t].end;
    given[t].a = a[t].in();
    given[t].b = b[t].in();
    given[t].scale = static_cast<S>(terms[t].scale);
    given[t].grad_a = grad_a[t].view();
    given[t].grad_b = grad_b[t].view();
    given[t].dropout = terms[t].dropout;
    given[t].row_numbers = placed;
  }
  LinearPart<T, S> part;
  part.weight = &weight;
  part.y = y.view();
  part.s = s.view();
  part.terms = given;
  const std::span<const LinearPart<T, S>> parts(&part, 1);
  run.linear_forward(x_in.in(), parts);
  check_close(y, with_terms(w, x, terms, numbers), product_tolerance<B>, "y");
  CHECK(s.intact());
  const Values stored = s.values();
  Values projected(rows, rank), expected_s(rows, rank);
  for (const Term& term : terms) {
    const Values part_s = times_transposed(dropped(x, term, numbers), term.a);
    for (Index i = term.begin; i < term.end; ++i)
      for (Index j = 0; j < term.a.rows; ++j) {
        projected(i, j) = stored(i, j);
        expected_s(i, j) = part_s(i - term.begin, j);
      }
  }
  CHECK(error_of(projected, expected_s) <= product_tolerance<B>);

  const Values dy = random_for<B>(rows, out, 3);
  const Values dx0 = random_for<B>(rows, in, 4);
  const Guarded<T> dy_in(dy);
  Guarded<T> dx(dx0);
  part.dy = dy_in.in();
  run.linear_backward(x_in.in(), parts, dx.view(), true);
  std::vector<Values> at = {x};
  std::vector<Values> gradient = {sum_of(dx.values(), dx0, -1)};
  for (std::size_t t = 0; t < terms.size(); ++t) {
    at.push_back(terms[t].a);
    at.push_back(terms[t].b);
    gradient.push_back(sum_of(grad_a[t].values(), random_values(terms[t].a.rows, in, 5), -1));
    gradient.push_back(sum_of(grad_b[t].values(), random_values(out, terms[t].a.rows, 6), -1));
    CHECK(grad_a[t].intact());
    CHECK(grad_b[t].intact());
  }
  CHECK(dx.intact());
  CHECK(x_in.intact());
  CHECK(dy_in.intact());
  check_slopes(
      [&](const std::vector<Values>& v) {
        std::vector<Term> moved = terms;
        for (std::size_t t = 0; t < terms.size(); ++t) {
          moved[t].a = v[1 + 2 * t];
          moved[t].b = v[2 + 2 * t];
        }
        return dot(with_terms(w, v[0], moved, numbers), dy);
      },
      at, gradient, product_slope_tolerance<B>, "low-rank term");

  // Without dx the adapter's gradients are the same bits.
  std::vector<Guarded<S>> again_a, again_b;
  for (std::size_t t = 0; t < terms.size(); ++t) {
    again_a.emplace_back(random_values(terms[t].a.rows, in, 5));
    again_b.emplace_back(random_values(out, terms[t].a.rows, 6));
    given[t].grad_a = again_a[t].view();
    given[t].grad_b = again_b[t].view();
  }
  run.linear_backward(x_in.in(), parts, MatrixView<T>{}, false);
  for (std::size_t t = 0; t < terms.size(); ++t) {
    CHECK(again_a[t].values().data == grad_a[t].values().data);
    CHECK(again_b[t].values().data == grad_b[t].values().data);
  }
}

template <class B>
Term term_of(Index begin, Index end, Index rank, Index in, Index out, double scale, Dropout dropout = {}) {
  const auto seed = static_cast<std::uint64_t>(rank + 100 * begin);
  return {begin, end,    random_for<B>(rank, in, 11 + seed, 0.5), random_for<B>(out, rank, 12 + seed, 0.5),
          scale, dropout};
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("low-rank terms of every rank", B, low_rank) {
  in_every_layout<B>([&] {
    for (const Index rank : sizes<Index>({1, 2, 3, 8, 15, 16, 17, 31, 32, 33}))
      for (const Index rows : {1, 17, 65})
        check_low_rank<B>(rows, 33, 17, {term_of<B>(0, rows, rank, 33, 17, 2.0 / 3)});
    for (const Index width : sizes<Index>({1, 15, 16, 17, 31, 32, 33, 61}))
      check_low_rank<B>(5, width, 61 - width + 1, {term_of<B>(0, 5, 4, width, 62 - width, -1.5)});
  });
}

TEST_CASE_TEMPLATE_DEFINE("low-rank terms with dropout draw one mask forward and backward", B, low_rank_dropout) {
  const RandomKey key = derive_key(5, Purpose::adapter_dropout, 1, 2);
  in_every_layout<B>([&] {
    for (const Index in : sizes<Index>({1, 3, 33, 61, 64, 65, 131}))
      check_low_rank<B>(17, in, 16, {term_of<B>(0, 17, 4, in, 16, 2.0, Dropout(key, 0.25))});
    for (const Index rows : sizes<Index>({1, 63, 64, 65, 130}))  // rows are taken in blocks
      check_low_rank<B>(rows, 15, 8, {term_of<B>(0, rows, 3, 15, 8, 0.5, Dropout(key, 0.5))});
  });
}

TEST_CASE_TEMPLATE_DEFINE("several terms keep to their rows", B, low_rank_segments) {
  const Index in = 31;
  const Index out = 16;
  const Dropout first(derive_key(1, Purpose::user), 0.1);
  const Dropout second(derive_key(2, Purpose::user), 0.6);
  in_every_layout<B>([&] {
    check_low_rank<B>(40, in, out,
                      {term_of<B>(0, 1, 1, in, out, 1.0, first), term_of<B>(1, 18, 33, in, out, 0.25),
                       term_of<B>(18, 18, 4, in, out, 3.0),             // a client without rows
                       term_of<B>(20, 40, 7, in, out, -2.0, second)});  // rows 18 and 19 belong to nobody
  });
}

}  // namespace fedlora::tests
