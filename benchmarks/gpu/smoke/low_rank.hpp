// SPDX-License-Identifier: Apache-2.0
// Low-rank terms by the kernels alone: shrink, expand, the way back, W with its factors in one matrix, the masked sum.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"
#include "fedlora/backend/cuda/low_rank_augmented.cuh"
#include "fedlora/backend/cuda/low_rank_backward.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "fedlora/backend/cuda/low_rank_masked.cuh"
#include "fedlora/backend/operations.hpp"

namespace fedlora::smoke {

/// One term, its operands here and there.
template <class T>
struct Term {
  Index out, rank;
  double scale;
  Dropout dropout;
  Values a, b, s, dy, before_a, before_b;
  Matrix<T> on_a, on_b, on_s, on_dy;
  Matrix<float> grad_a, grad_b;

  Term(Check& check, Index in, Index out_, Index rank_, double probability, std::uint64_t seed)
      : out(out_),
        rank(rank_),
        scale(1.5),
        a(random<T>(rank, in, seed, std::sqrt(3.0 / static_cast<double>(in)))),
        b(random<T>(out, rank, seed + 1)),
        s(random<T>(check.shape.rows(), rank, seed + 2)),
        dy(random<T>(check.shape.rows(), out, seed + 3, std::sqrt(3.0 / static_cast<double>(out)))),
        before_a(random<float>(rank, in, seed + 4)),
        before_b(random<float>(out, rank, seed + 5)),
        on_a(check.gpu, a, check.shape.layout),
        on_b(check.gpu, b, check.shape.layout),
        on_s(check.gpu, s, check.shape.layout),
        on_dy(check.gpu, dy, check.shape.layout, 48),
        grad_a(check.gpu, before_a, check.shape.layout),
        grad_b(check.gpu, before_b, check.shape.layout) {
    if (probability > 0) dropout = Dropout(derive_key(std::uint64_t{8}, Purpose::user, seed), probability);
  }

  LowRankTerm<T, float> term(Index begin, Index end, const std::int32_t* row_numbers) const {
    LowRankTerm<T, float> result;
    result.begin = begin;
    result.end = end;
    result.a = on_a.in();
    result.b = on_b.in();
    result.scale = static_cast<float>(scale);
    result.grad_a = grad_a.view();
    result.grad_b = grad_b.view();
    result.dropout = dropout;
    result.row_numbers = row_numbers;
    return result;
  }
  cuda::TermShape shape() const { return {out, rank}; }
};

/// x and terms on it over some of its rows.
template <class T>
struct Terms {
  Index in, begin, end;
  Values x;
  Matrix<T> on_x;
  Table<std::int32_t> number;
  std::vector<Term<T>> terms;

  Terms(Check& check, Index in_, Index begin_, Index end_)
      : in(in_),
        begin(begin_),
        end(end_),
        x(random<T>(check.shape.rows(), in, 71)),
        on_x(check.gpu, x, check.shape.layout),
        number(check.gpu, numbers(check.shape.rows(), 91)) {}

  std::vector<cuda::TermShape> shapes() const {
    std::vector<cuda::TermShape> result;
    for (const Term<T>& term : terms) result.push_back(term.shape());
    return result;
  }
  double dropped(const Term<T>& term, Index i, Index j) const { return x(i, j) * mask(term.dropout, number[i], j); }
  std::vector<Index> compared() const {
    std::vector<Index> rows = some_of(end - begin);
    for (Index& i : rows) i += begin;
    return rows;
  }
};

/// Three groups: as q, k and v with dropout; one term of the rank above which dS has a pass of its own; one term alone.
template <class T, class Body>
void each_group(Check& check, const Body& body) {
  const Shape& shape = check.shape;
  const Index rows = shape.rows();
  {
    Terms<T> group(check, shape.hidden, 0, rows);
    for (std::uint64_t i = 0; i < 3; ++i)
      group.terms.emplace_back(check, shape.hidden, shape.hidden, shape.rank, i == 1 ? 0.0 : 0.25, 72 + 10 * i);
    body(group, "three terms, ");
  }
  {
    Terms<T> group(check, shape.hidden, 2, rows - 3);
    group.terms.emplace_back(check, shape.hidden, shape.wide, 2 * shape.rank + 8, 0.0, 112);
    body(group, "one term of rank " + std::to_string(2 * shape.rank + 8) + ", ");
  }
  {
    Terms<T> group(check, shape.wide, 0, rows);
    group.terms.emplace_back(check, shape.wide, shape.wide, shape.rank, 0.0, 122);  // several slabs, several splits
    body(group, "one term, ");
  }
  {
    Terms<T> group(check, shape.hidden, 0, rows);
    group.terms.emplace_back(check, shape.hidden, shape.hidden, 128, 0.5, 132);
    body(group, "one term of rank 128, ");
  }
}

template <class T>
void check_low_rank(Check& check) {
  const Gpu& gpu = check.gpu;
  const cuda::Stream stream = gpu.stream();
  const Shape& shape = check.shape;
  const double bound = check.tolerance<T>();
  each_group<T>(check, [&](const Terms<T>& group, const std::string& name) {
    const auto shapes = group.shapes();
    const Index rows = group.x.rows;
    std::vector<Matrix<T>> found;
    std::vector<cuda::ShrinkTerm<T>> terms;
    for (const Term<T>& term : group.terms) found.emplace_back(gpu, rows, cuda::padded_rank(term.rank), shape.layout);
    for (std::size_t i = 0; i < found.size(); ++i)
      terms.push_back({group.terms[i].term(group.begin, group.end, group.number.data()), found[i].view()});
    const cuda::DeviceBuffer work =
        workspace(gpu, cuda::low_rank_shrink_group_workspace<T>(group.end - group.begin, group.in, shapes));
    cuda::low_rank_shrink_group<T>(group.on_x.in(), terms, work.bytes(), stream, check.math);
    for (std::size_t i = 0; i < found.size(); ++i) {
      const Term<T>& term = group.terms[i];
      check.rows(name + "S " + std::to_string(i), found[i], bound, group.begin, group.end, group.compared(),
                 [&](Index row, double* to) {
                   std::fill_n(to, cuda::padded_rank(term.rank), 0.0);
                   for (Index k = 0; k < group.in; ++k) {
                     const double value = group.dropped(term, row, k);
                     for (Index r = 0; value != 0 && r < term.rank; ++r) to[r] += value * term.a(r, k);
                   }
                 });
      const Values before = random<T>(rows, term.out, 141);
      Matrix<T> y(gpu, before, shape.layout);
      cuda::low_rank_expand<T>(term.on_s.in(), terms[i].term, y.view(), stream, check.math);
      check.rows(name + "y " + std::to_string(i), y, bound, group.begin, group.end, group.compared(),
                 [&](Index row, double* to) {
                   for (Index j = 0; j < term.out; ++j) {
                     double sum = 0;
                     for (Index r = 0; r < term.rank; ++r) sum += term.s(row, r) * term.b(j, r);
                     to[j] = before(row, j) + term.scale * sum;
                   }
                 });
    }
  });

  // W with factors beside it, and below it.
  const Index out = shape.wide, in = shape.hidden, rank = shape.rank, padded = cuda::padded_rank(rank);
  const Values w = random<T>(out, in, 151), a = random<T>(rank, in, 152), b = random<T>(out, rank, 153);
  const Matrix<T> on_w(gpu, w, shape.layout), on_a(gpu, a, shape.layout), on_b(gpu, b, shape.layout);
  for (const bool columns : {true, false}) {
    const auto by = columns ? cuda::Augmented::by_columns : cuda::Augmented::by_rows;
    const Index rows = columns ? out : out + 2 * padded, cols = columns ? in + 2 * padded : in;
    Matrix<T> slot(gpu, rows, cols, shape.layout), again(gpu, rows, cols, shape.layout);
    const cuda::AugmentedPiece<T> piece = columns ? cuda::AugmentedPiece<T>{on_b.in(), 2.0f, 0, padded}
                                                  : cuda::AugmentedPiece<T>{on_a.in(), 1.0f, padded, 0};
    const auto expected = [&](Index i, double* to) {
      for (Index j = 0; j < cols; ++j) {
        const Index row = i - (columns ? 0 : out + padded), col = j - (columns ? in + padded : 0);
        if (i < out && j < in)
          to[j] = w(i, j);
        else if (columns)
          to[j] = col >= 0 && col < rank ? 2 * b(i, col) : 0;
        else
          to[j] = row >= 0 && row < rank ? a(row, j) : 0;
      }
    };
    cuda::fill_augmented<T>(by, on_w.in(), {&piece, 1}, slot.view(), stream);
    check.matrix(columns ? "[W | B]" : "[W ; A]", slot, bound, expected);
    cuda::fill_augmented<T>(by, on_w.in(), {}, again.view(), stream);
    cuda::refresh_augmented<T>(by, out, in, {&piece, 1}, again.view(), stream);
    check.matrix(columns ? "[W | B], written again" : "[W ; A], written again", again, bound, expected);
  }
  const Index rows = shape.rows();
  const Values product = random<T>(rows, in, 154), before = random<T>(rows, in, 155);
  const Matrix<T> on_product(gpu, product, shape.layout);
  const Table<std::int32_t> number(gpu, numbers(rows, 91));
  for (const double probability : {0.0, 0.25}) {
    const Dropout drop =
        probability > 0 ? Dropout(derive_key(std::uint64_t{9}, Purpose::user, 1), probability) : Dropout();
    Matrix<T> dx(gpu, before, shape.layout);
    cuda::masked_add<T>(on_product.in(), drop, number.data(), dx.view(), stream);
    check.matrix("masked sum", dx, bound, [&](Index i, double* to) {
      for (Index j = 0; j < in; ++j) to[j] = before(i, j) + product(i, j) * mask(drop, number[i], j);
    });
  }
}

template <class T>
void check_low_rank_backward(Check& check) {
  const Gpu& gpu = check.gpu;
  const Shape& shape = check.shape;
  each_group<T>(check, [&](Terms<T>& group, const std::string& name) {
    // Behind dY, dS for one product with dX; or dX itself.
    const bool behind = group.terms.size() == 1 && !group.terms[0].dropout && group.terms[0].rank <= 48;
    const Index rows = group.x.rows;
    const Values before = random<T>(rows, group.in, 161);
    Matrix<T> dx(gpu, before, shape.layout);
    std::vector<cuda::BackwardTerm<T>> terms;
    for (const Term<T>& term : group.terms) {
      terms.push_back({term.term(group.begin, group.end, group.number.data()), term.on_dy.in(), term.on_s.in(), {}});
      if (behind) terms.back().ds = term.on_dy.behind(0, cuda::padded_rank(term.rank));
    }
    const cuda::DeviceBuffer work =
        workspace(gpu, cuda::low_rank_backward_group_workspace<T>(group.end - group.begin, group.in, group.shapes()));
    cuda::low_rank_backward_group<T>(group.on_x.in(), terms, behind ? MatrixView<T>{} : dx.view(), work.bytes(),
                                     gpu.stream(), check.math);
    std::vector<Values> ds;
    for (const Term<T>& term : group.terms) {
      Values& of_term = ds.emplace_back(rows, term.rank);
      for (Index i = group.begin; i < group.end; ++i)
        for (Index j = 0; j < term.out; ++j)
          for (Index r = 0; r < term.rank; ++r) of_term(i, r) += term.scale * term.dy(i, j) * term.b(j, r);
    }
    const double bound = check.tolerance<T>();
    for (std::size_t t = 0; t < ds.size(); ++t) {
      Term<T>& term = group.terms[t];
      Values dropped(rows, group.in);
      for (Index i = group.begin; i < group.end; ++i)
        for (Index k = 0; k < group.in; ++k) dropped(i, k) = group.dropped(term, i, k);
      check.matrix(name + "dB " + std::to_string(t), term.grad_b, bound, [&](Index j, double* to) {
        for (Index r = 0; r < term.rank; ++r) {
          double sum = 0;
          for (Index i = group.begin; i < group.end; ++i) sum += term.dy(i, j) * term.s(i, r);
          to[r] = term.before_b(j, r) + term.scale * sum;
        }
      });
      check.rows(name + "dA " + std::to_string(t), term.grad_a, bound, 0, term.rank, some_of(term.rank, 8),
                 [&](Index r, double* to) {
                   for (Index k = 0; k < group.in; ++k) to[k] = term.before_a(r, k);
                   for (Index i = group.begin; i < group.end; ++i)
                     for (Index k = 0; k < group.in; ++k) to[k] += ds[t](i, r) * dropped(i, k);
                 });
    }
    if (behind) {
      // dS, without what is behind it; read as a matrix of its own through the room of dY.
      const Term<T>& term = group.terms[0];
      const Index padded = cuda::padded_rank(term.rank);
      Matrix<T> kept(gpu, rows, padded, shape.layout);
      cuda::copy<T>(term.on_dy.behind(0, padded).rows_between(group.begin, group.end),
                    kept.view().rows_between(group.begin, group.end), gpu.stream());
      check.rows(name + "dS", kept, bound, group.begin, group.end, group.compared(), [&](Index i, double* to) {
        for (Index r = 0; r < padded; ++r) to[r] = r < term.rank ? ds[0](i, r) : 0;
      });
      return;
    }
    check.rows(name + "dX", dx, bound, group.begin, group.end, group.compared(), [&](Index i, double* to) {
      for (Index k = 0; k < group.in; ++k) {
        to[k] = before(i, k);
        for (std::size_t t = 0; t < ds.size(); ++t) {
          const Term<T>& term = group.terms[t];
          double sum = 0;
          for (Index r = 0; r < term.rank; ++r) sum += ds[t](i, r) * term.a(r, k);
          to[k] += sum * mask(term.dropout, group.number[i], k);
        }
      }
    });
  });
}

}  // namespace fedlora::smoke
