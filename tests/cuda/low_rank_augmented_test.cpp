// SPDX-License-Identifier: Apache-2.0
// Weights with low-rank factors behind them, and the masked sum of the plain path, on the host in every type.
#include "fedlora/backend/cuda/low_rank_augmented.cuh"

#include <doctest/doctest.h>

#include <vector>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"
#include "fedlora/backend/cuda/low_rank_masked.cuh"

namespace fedlora::tests {
namespace {

using cuda::Augmented;

template <class T>
using Pieces = std::vector<cuda::AugmentedPiece<T>>;

/// A factor of a term: its shape, its scale and where it goes.
struct Factor {
  Index rows, cols, row, col;
  float scale = 1.0f;
};

template <class T>
void put(Values& values, Index row, Index col, const Values& part, float scale) {
  for (Index i = 0; i < part.rows; ++i)
    for (Index j = 0; j < part.cols; ++j)
      values(row + i, col + j) = static_cast<double>(static_cast<float>(T(static_cast<float>(part(i, j)) * scale)));
}

/// Fills a slot full of NaN, then refreshes it with other factors; `extra` columns or rows follow W.
template <class T>
void check_fill(Augmented by, Index out, Index in, Index extra, const std::vector<Factor>& places, Rows kind) {
  CAPTURE(out);
  CAPTURE(in);
  CAPTURE(extra);
  const bool columns = by == Augmented::by_columns;
  const Values w = random_in<T>(out, in, 1);
  const DeviceMatrix<T> w_in(w, kind);
  const Index slot_rows = columns ? out : out + extra;
  const Index slot_cols = columns ? in + extra : in;
  DeviceMatrix<T> slot(slot_rows, slot_cols, kind), other(slot_rows, slot_cols, kind);
  for (const std::uint64_t round : {1, 2}) {
    Values expected(slot_rows, slot_cols);
    put<T>(expected, 0, 0, w, 1.0f);
    std::vector<DeviceMatrix<T>> factors;
    Pieces<T> pieces;
    for (const Factor& place : places) {
      const Values factor = random_in<T>(place.rows, place.cols, 10 * round + factors.size());
      factors.emplace_back(factor, kind);
      pieces.push_back({factors.back().in(), place.scale, place.row, place.col});
      put<T>(expected, columns ? place.row : out + place.row, columns ? in + place.col : place.col, factor,
             place.scale);
    }
    if (round == 1) {
      cuda::fill_augmented<T>(by, w_in.in(), pieces, slot.view(), cuda::Stream{1});
      cuda::fill_augmented<T>(by, w_in.in(), pieces, other.view(), cuda::Stream{2});
    } else {
      cuda::refresh_augmented<T>(by, out, in, pieces, slot.view(), cuda::Stream{1});
      cuda::refresh_augmented<T>(by, out, in, pieces, other.view(), cuda::Stream{2});
    }
    check_matrix(slot, expected, 0.0, "the slot");
    CHECK(other.same_bits(slot));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("a weight with factors behind it", T, float, Bf16, Half) {
  for (const Rows kind : {Rows::aligned, Rows::odd})
    for (const Index size : {1, 31, 32, 33, 61, 264}) {
      check_fill<T>(Augmented::by_columns, 19, size, 8, {{19, 3, 0, 0, 0.7f}}, kind);
      check_fill<T>(Augmented::by_columns, size, 40, 24, {{size, 8, 0, 8, 2.0f}}, kind);
      check_fill<T>(Augmented::by_rows, 19, size, 8, {{3, size, 0, 0}}, kind);
      check_fill<T>(Augmented::by_rows, size, 40, 16, {{8, 40, 8, 0}}, kind);
    }
  check_fill<T>(Augmented::by_columns, 0, 40, 8, {}, Rows::aligned);
  check_fill<T>(Augmented::by_rows, 5, 40, 0, {}, Rows::odd);
}

TEST_CASE_TEMPLATE("the factors of a group stand along the diagonal", T, float, Bf16, Half) {
  const std::vector<Factor> q_k_v{{40, 16, 0, 0, 0.5f}, {8, 3, 40, 16, 1.3f}, {8, 8, 48, 24, 2.0f}};
  check_fill<T>(Augmented::by_columns, 56, 72, 40, q_k_v, Rows::aligned);
  check_fill<T>(Augmented::by_columns, 56, 61, 33, q_k_v, Rows::odd);
  check_fill<T>(Augmented::by_rows, 56, 72, 40, {{16, 72, 0, 0}, {3, 72, 16, 0}, {8, 72, 24, 0}, {1, 72, 39, 0}},
                Rows::aligned);
}

TEST_CASE("separate weights share a slot, and one buffer is both slots") {
  constexpr Index in = 24, out = 8, columns = 16;
  const Values w0 = random_in<float>(out, in, 1), w1 = random_in<float>(out, in, 2);
  const Values b0 = random_in<float>(out, 8, 3), b1 = random_in<float>(out, 8, 4);
  const Values a0 = random_in<float>(8, in, 5), a1 = random_in<float>(8, in, 6);
  const DeviceMatrix<float> w0_in(w0, Rows::aligned), w1_in(w1, Rows::aligned), b0_in(b0, Rows::aligned),
      b1_in(b1, Rows::aligned), a0_in(a0, Rows::aligned), a1_in(a1, Rows::aligned);
  DeviceMatrix<float> buffer(2 * out + columns, in + columns, Rows::aligned);
  const MatrixView<float> all = buffer.view();
  const cuda::Stream stream{1};
  cuda::fill_augmented<float>(Augmented::by_columns, w0_in.in(), Pieces<float>{{b0_in.in(), 2.0f, 0, 0}},
                              all.rows_between(0, out), stream);
  cuda::fill_augmented<float>(Augmented::by_columns, w1_in.in(), Pieces<float>{{b1_in.in(), 3.0f, 0, 8}},
                              all.rows_between(out, 2 * out), stream);
  cuda::refresh_augmented<float>(Augmented::by_rows, 2 * out, in,
                                 Pieces<float>{{a0_in.in(), 1.0f, 0, 0}, {a1_in.in(), 1.0f, 8, 0}},
                                 {all.data, all.rows, in, all.stride}, stream);
  Values expected(2 * out + columns, in + columns);
  put<float>(expected, 0, 0, w0, 1.0f);
  put<float>(expected, out, 0, w1, 1.0f);
  put<float>(expected, 0, in, b0, 2.0f);
  put<float>(expected, out, in + 8, b1, 3.0f);
  put<float>(expected, 2 * out, 0, a0, 1.0f);
  put<float>(expected, 2 * out + 8, 0, a1, 1.0f);
  Values got = buffer.values();
  for (Index i = 2 * out; i < got.rows; ++i)  // the corner is in neither slot
    for (Index j = in; j < got.cols; ++j) {
      CHECK(std::isnan(got(i, j)));
      got(i, j) = 0.0;
    }
  CHECK(error_of(got, expected) == 0.0);
  CHECK(buffer.intact());
}

TEST_CASE("slots and pieces that do not fit are refused") {
  DeviceMatrix<float> w(4, 6, Rows::aligned), slot(4, 8, Rows::aligned), b(4, 2, Rows::aligned);
  const auto fill = [&](Augmented by, const Pieces<float>& pieces) {
    cuda::fill_augmented<float>(by, w.in(), pieces, slot.view(), cuda::Stream{});
  };
  check_error<ShapeError>([&] { fill(Augmented::by_rows, {}); },
                          {"cuda::fill_augmented", "a slot of shape (4, 6) or higher", "(4, 8)"});
  check_error<ShapeError>(
      [&] {
        fill(Augmented::by_columns, {{b.in(), 1.0f, 0, 1}});
      },
      {"pieces within (4, 2)", "(4, 2) at (0, 1)"});
  check_error<ShapeError>([&] { fill(Augmented::by_columns, {{b.in(), 1.0f, -1, 0}}); }, {"(4, 2) at (-1, 0)"});
  check_error<ShapeError>([&] { fill(Augmented::by_columns, Pieces<float>(5)); }, {"at most 4 pieces", "got 5"});
  check_error<ShapeError>(
      [&] { cuda::refresh_augmented<float>(Augmented::by_columns, 4, 9, {}, slot.view(), cuda::Stream{}); },
      {"cuda::refresh_augmented", "a slot of shape (4, 9) or wider", "(4, 8)"});
}

TEST_CASE("when a longer product is right") {
  using cuda::Slot;
  const auto forward = [](Index rows, Index in, Index out, Index rank, Slot slot) {
    return cuda::augmented_is_right(Augmented::by_columns, rows, in, out, rank, true, slot);
  };
  CHECK(forward(1, 4096, 4096, 366, Slot::holds_w));
  CHECK(!forward(1, 4096, 4096, 367, Slot::holds_w));
  CHECK(forward(8192, 768, 768, 48, Slot::nothing));
  CHECK(!forward(768, 768, 768, 8, Slot::nothing));
  CHECK(forward(786, 768, 768, 8, Slot::nothing));  // 8 / 367 + 768 / 786 < 1
  CHECK(!forward(785, 768, 768, 8, Slot::nothing));
  CHECK(!forward(0, 768, 768, 8, Slot::holds_w));
  CHECK(forward(1024, 768, 3072, 8, Slot::nothing));
  CHECK(!cuda::augmented_is_right(Augmented::by_rows, 1024, 768, 3072, 8, false, Slot::nothing));
  CHECK(cuda::augmented_is_right(Augmented::by_rows, 1024, 768, 3072, 8, false, Slot::holds_w));
  CHECK(!cuda::augmented_is_right(Augmented::by_rows, 1024, 768, 3072, 8, true, Slot::holds_w));
  CHECK(!cuda::augmented_is_right(Augmented::by_columns, 1024, 768, 3072, 56, false, Slot::holds_w,
                                  cuda::augmented_rank_limit_float32));
}

TEST_CASE_TEMPLATE("a masked sum", T, float, Bf16, Half) {
  const double tolerance = std::is_same_v<T, float> ? 1e-7 : std::is_same_v<T, Half> ? 1e-3 : 6e-3;
  for (const Rows kind : {Rows::aligned, Rows::odd})
    for (const Index rows : {0, 1, 31, 33, 61})
      for (const Index cols : {0, 1, 32, 67, 300}) {
        const auto numbers = row_numbers(rows);
        const Values product = random_in<T>(rows, cols, 1), dx0 = random_in<T>(rows, cols, 2);
        const DeviceMatrix<T> product_in(product, kind);
        for (const double probability : {0.0, 0.3}) {
          Dropout dropout;
          if (probability > 0) dropout = Dropout(derive_key(5, Purpose::adapter_dropout, 1), probability);
          DeviceMatrix<T> dx(dx0, kind);
          cuda::masked_add<T>(product_in.in(), dropout, probability > 0 ? numbers.data() : nullptr, dx.view(),
                              cuda::Stream{1});
          Values expected = dx0;
          for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < cols; ++j)
              expected(i, j) += product(i, j) * mask_of(dropout, numbers[static_cast<std::size_t>(i)], j);
          check_matrix(dx, expected, tolerance, "dX");
        }
      }
  DeviceMatrix<T> product(4, 6, Rows::aligned), dx(4, 5, Rows::aligned);
  check_error<ShapeError>([&] { cuda::masked_add<T>(product.in(), {}, nullptr, dx.view(), cuda::Stream{}); },
                          {"cuda::masked_add", "dX of shape (4, 6)", "(4, 5)"});
}

}  // namespace fedlora::tests
