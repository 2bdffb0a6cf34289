// SPDX-License-Identifier: Apache-2.0
// Operations that move rows on the host, in every type, against float64.
#include "fedlora/backend/cuda/rows.cuh"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "cuda/device_matrix.hpp"
#include "errors.hpp"

namespace fedlora::tests {
namespace {

/// `count` numbers below `limit`, in no simple order.
std::vector<std::int32_t> some_rows(Index count, Index limit, std::uint64_t seed) {
  RandomSequence draws(derive_key(seed, Purpose::user, count));
  std::vector<std::int32_t> rows;
  for (Index i = 0; i < count; ++i)
    rows.push_back(static_cast<std::int32_t>(draws.below(static_cast<std::uint64_t>(limit))));
  return rows;
}

/// `count` distinct numbers below `limit`.
std::vector<std::int32_t> distinct_rows(Index count, Index limit, std::uint64_t seed) {
  std::vector<std::int32_t> rows;
  for (Index i = 0; i < limit; ++i) rows.push_back(static_cast<std::int32_t>(i));
  RandomSequence(derive_key(seed, Purpose::user, limit)).shuffle(rows);
  rows.resize(static_cast<std::size_t>(count));
  return rows;
}

/// Runs an operation twice, in different orders of blocks and threads, on outputs made by `make`; returns the first.
template <class T, class Make, class Run>
DeviceMatrix<T> twice(Make&& make, Run&& run) {
  DeviceMatrix<T> first = make(), second = make();
  run(first, cuda::Stream{1});
  run(second, cuda::Stream{2});
  CHECK(first.same_bits(second));
  return first;
}

template <class T>
void check_embed(std::size_t count, Index rows, Index cols, Rows kind) {
  CAPTURE(count);
  CAPTURE(rows);
  CAPTURE(cols);
  const Index heights[3] = {41, 13, 2};
  std::vector<Values> tables;
  std::vector<DeviceMatrix<T>> device;
  std::vector<MatrixView<const T>> views;
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<const std::int32_t*> id_pointers;
  for (std::size_t t = 0; t < count; ++t) {
    tables.push_back(random_in<T>(heights[t], cols, 10 + t));
    device.emplace_back(tables[t], kind);
    views.push_back(device[t].in());
    ids.push_back(some_rows(rows, heights[t], 20 + t));
  }
  for (const auto& list : ids) id_pointers.push_back(list.data());
  Values expected(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j)
      for (std::size_t t = 0; t < count; ++t) expected(i, j) += tables[t](ids[t][static_cast<std::size_t>(i)], j);
  const auto y = twice<T>(
      [&] { return DeviceMatrix<T>(rows, cols, kind); },
      [&](DeviceMatrix<T>& to, cuda::Stream stream) { cuda::embed<T>(views, id_pointers, to.view(), stream); });
  check_matrix(y, expected, count == 1 ? 0.0 : rounding_bound<T>(3e-7), "y");
}

template <class T>
void check_gather_and_scatter(Index rows, Index cols, Rows kind) {
  CAPTURE(rows);
  CAPTURE(cols);
  const Index height = rows + 7;
  const Values table = random_in<T>(height, cols, 1);
  const DeviceMatrix<T> from(table, kind);
  const auto taken = some_rows(rows, height, 2);
  const auto gathered = twice<T>([&] { return DeviceMatrix<T>(rows, cols, kind); },
                                 [&](DeviceMatrix<T>& to, cuda::Stream stream) {
                                   cuda::gather_rows<T>(from.in(), taken.data(), to.view(), stream);
                                 });
  Values expected(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) expected(i, j) = table(taken[static_cast<std::size_t>(i)], j);
  check_matrix(gathered, expected, 0.0, "gathered");

  const Values part = random_in<T>(rows, cols, 3);
  const DeviceMatrix<T> part_in(part, kind);
  const auto given = distinct_rows(rows, height, 4);
  const auto scattered = twice<T>([&] { return DeviceMatrix<T>(table, kind); },
                                  [&](DeviceMatrix<T>& to, cuda::Stream stream) {
                                    cuda::scatter_rows_add<T>(part_in.in(), given.data(), to.view(), stream);
                                  });
  Values sums = table;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) sums(given[static_cast<std::size_t>(i)], j) += part(i, j);
  check_matrix(scattered, sums, rounding_bound<T>(3e-7), "scattered");
}

/// Sequences of these lengths, after `before` rows and before `after` rows that belong to none.
template <class T>
void check_means(const std::vector<Index>& lengths, Index before, Index after, Index cols, Rows kind) {
  CAPTURE(lengths.size());
  CAPTURE(cols);
  std::vector<std::int32_t> cu_seqlens = {static_cast<std::int32_t>(before)};
  for (const Index length : lengths) cu_seqlens.push_back(cu_seqlens.back() + static_cast<std::int32_t>(length));
  const auto sequences = static_cast<Index>(lengths.size());
  const Index rows = cu_seqlens.back() + after;
  const Values x = random_in<T>(rows, cols, 5);
  const DeviceMatrix<T> x_in(x, kind);
  const auto y = twice<T>([&] { return DeviceMatrix<T>(sequences, cols, kind); },
                          [&](DeviceMatrix<T>& to, cuda::Stream stream) {
                            cuda::mean_rows<T>(x_in.in(), cu_seqlens.data(), to.view(), stream);
                          });
  const Values dy = random_in<T>(sequences, cols, 6);
  const DeviceMatrix<T> dy_in(dy, kind);
  const Values dx0 = random_in<T>(rows, cols, 7, 0.01);
  const auto dx = twice<T>([&] { return DeviceMatrix<T>(dx0, kind); },
                           [&](DeviceMatrix<T>& to, cuda::Stream stream) {
                             cuda::mean_rows_backward<T>(dy_in.in(), cu_seqlens.data(), to.view(), stream);
                           });
  Values means(sequences, cols), gradient = dx0;
  for (Index s = 0; s < sequences; ++s)
    for (Index i = cu_seqlens[static_cast<std::size_t>(s)]; i < cu_seqlens[static_cast<std::size_t>(s) + 1]; ++i)
      for (Index j = 0; j < cols; ++j) {
        const auto length = static_cast<double>(lengths[static_cast<std::size_t>(s)]);
        means(s, j) += x(i, j) / length;
        gradient(i, j) = dy(s, j) / length;
      }
  check_matrix(y, means, rounding_bound<T>(3e-7), "means");
  check_matrix(dx, gradient, rounding_bound<T>(3e-7), "gradient");
  for (Index i = 0; i < rows; ++i)
    if (cols > 0 && (i < before || i >= rows - after))
      CHECK(static_cast<double>(static_cast<float>(dx.in()(i, 0))) == dx0(i, 0));
}

template <class T>
void check_rotate(Index rows, Index heads, Index head_dim, Rows kind) {
  CAPTURE(rows);
  CAPTURE(heads);
  CAPTURE(head_dim);
  constexpr Index positions = 50;
  const Index half = head_dim / 2;
  Values cosines(positions, half), sines(positions, half);
  for (Index p = 0; p < positions; ++p)
    for (Index d = 0; d < half; ++d) {
      const double angle = static_cast<double>(p) * std::pow(1e4, -static_cast<double>(d) / static_cast<double>(half));
      cosines(p, d) = static_cast<double>(static_cast<float>(std::cos(angle)));
      sines(p, d) = static_cast<double>(static_cast<float>(std::sin(angle)));
    }
  const DeviceMatrix<float> cosines_in(cosines, kind), sines_in(sines, kind);
  const auto at = some_rows(rows, positions, 8);
  const Values x = random_in<T>(rows, heads * head_dim, 9);
  for (const bool inverse : {false, true}) {
    const double sign = inverse ? -1.0 : 1.0;
    Values expected(rows, heads * head_dim);
    for (Index i = 0; i < rows; ++i)
      for (Index head = 0; head < heads; ++head)
        for (Index d = 0; d < half; ++d) {
          const Index low = head * head_dim + d;
          const double cosine = cosines(at[static_cast<std::size_t>(i)], d);
          const double sine = sign * sines(at[static_cast<std::size_t>(i)], d);
          expected(i, low) = x(i, low) * cosine - x(i, low + half) * sine;
          expected(i, low + half) = x(i, low + half) * cosine + x(i, low) * sine;
        }
    const auto turned = twice<T>([&] { return DeviceMatrix<T>(x, kind); },
                                 [&](DeviceMatrix<T>& to, cuda::Stream stream) {
                                   cuda::rotate<T>(to.view(), heads, head_dim, at.data(), cosines_in.in(),
                                                   sines_in.in(), inverse, stream);
                                 });
    check_matrix(turned, expected, rounding_bound<T>(3e-7), "turned");
  }
}

}  // namespace

TEST_CASE_TEMPLATE("embeddings are sums of table rows", T, float, Bf16, Half) {
  for (const std::size_t tables : {1u, 2u, 3u})
    for (const Rows kind : {Rows::aligned, Rows::odd}) {
      for (const Index size : {0, 1, 31, 32, 33, 61}) {
        check_embed<T>(tables, size, 40, kind);
        check_embed<T>(tables, 5, size, kind);
      }
      check_embed<T>(tables, 6, 2056, kind);
    }
}

TEST_CASE_TEMPLATE("rows are gathered and scattered", T, float, Bf16, Half) {
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    for (const Index size : {0, 1, 31, 32, 33, 61}) {
      check_gather_and_scatter<T>(size, 40, kind);
      check_gather_and_scatter<T>(5, size, kind);
    }
    check_gather_and_scatter<T>(6, 1543, kind);
  }
}

TEST_CASE("gathered rows keep every bit, those of NaNs too") {
  std::vector<Half> from(64);
  for (std::size_t i = 0; i < 64; ++i) from[i].bits = static_cast<std::uint16_t>(0x7c01 + 13 * i);
  std::vector<Half> to(64, Half(0.0f));
  const std::vector<std::int32_t> rows = {1, 0};  // not on the stack, which not every GPU can read
  cuda::gather_rows<Half>({from.data(), 2, 32}, rows.data(), {to.data(), 2, 32}, cuda::Stream{});
  for (std::size_t i = 0; i < 64; ++i) CHECK(to[i].bits == from[(i + 32) % 64].bits);
}

TEST_CASE_TEMPLATE("means over sequences, and back", T, float, Bf16, Half) {
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    for (const Index size : {0, 1, 31, 32, 33, 61, 139}) check_means<T>({5, 1, 17, 64}, 2, 3, size, kind);
    check_means<T>({1, 31, 32, 33, 61}, 0, 0, 24, kind);
    check_means<T>({300}, 1, 1, 72, kind);
    check_means<T>({}, 0, 5, 8, kind);
  }
}

TEST_CASE_TEMPLATE("a mean does not depend on the other sequences or on where rows lie", T, float, Bf16, Half) {
  const Values x = random_in<T>(90, 40, 1);
  const DeviceMatrix<T> together(x, Rows::aligned), alone(rows_of(x, 20, 87), Rows::odd);
  DeviceMatrix<T> y(3, 40, Rows::aligned), y_alone(1, 40, Rows::odd);
  const std::vector<std::int32_t> cu_seqlens = {0, 20, 87, 90}, own = {0, 67};
  cuda::mean_rows<T>(together.in(), cu_seqlens.data(), y.view(), cuda::Stream{1});
  cuda::mean_rows<T>(alone.in(), own.data(), y_alone.view(), cuda::Stream{2});
  for (Index j = 0; j < 40; ++j) CHECK(static_cast<float>(y.in()(1, j)) == static_cast<float>(y_alone.in()(0, j)));
}

TEST_CASE_TEMPLATE("heads are turned by their positions", T, float, Bf16, Half) {
  for (const Rows kind : {Rows::aligned, Rows::odd}) {
    for (const Index rows : {0, 1, 31, 33}) check_rotate<T>(rows, 2, 16, kind);
    check_rotate<T>(5, 1, 2, kind);
    check_rotate<T>(5, 3, 14, kind);
    check_rotate<T>(5, 5, 24, kind);
    check_rotate<T>(3, 33, 64, kind);
    check_rotate<T>(2, 9, 128, kind);
  }
}

TEST_CASE("shapes of rows that do not fit are refused") {
  DeviceMatrix<float> x(4, 8, Rows::aligned), narrow(4, 7, Rows::aligned), angles(9, 2, Rows::aligned);
  DeviceMatrix<float> few(8, 2, Rows::aligned), thin(9, 1, Rows::aligned);
  const std::int32_t numbers[5] = {0, 1, 2, 3, 4};
  const auto embed = [&](std::vector<MatrixView<const float>> tables, std::size_t ids) {
    const std::vector<const std::int32_t*> pointers(ids, numbers);
    cuda::embed<float>(tables, pointers, x.view(), cuda::Stream{});
  };
  check_error<ShapeError>([&] { embed({}, 0); }, {"cuda::embed", "1 to 3 tables", "got 0"});
  check_error<ShapeError>([&] { embed({x.in(), x.in(), x.in(), x.in()}, 4); }, {"1 to 3 tables", "got 4"});
  check_error<ShapeError>([&] { embed({x.in(), x.in()}, 1); }, {"2 lists of ids", "got 1"});
  check_error<ShapeError>([&] { embed({x.in(), narrow.in()}, 2); }, {"table 1 of 8 columns", "got 7"});
  check_error<ShapeError>([&] { cuda::gather_rows<float>(narrow.in(), numbers, x.view(), cuda::Stream{}); },
                          {"cuda::gather_rows", "8 columns", "got 7"});
  check_error<ShapeError>([&] { cuda::scatter_rows_add<float>(narrow.in(), numbers, x.view(), cuda::Stream{}); },
                          {"cuda::scatter_rows_add", "8 columns", "got 7"});
  check_error<ShapeError>([&] { cuda::mean_rows<float>(x.in(), numbers, narrow.view(), cuda::Stream{}); },
                          {"cuda::mean_rows", "7 columns", "got 8"});
  check_error<ShapeError>([&] { cuda::mean_rows_backward<float>(x.in(), numbers, narrow.view(), cuda::Stream{}); },
                          {"cuda::mean_rows_backward", "8 columns", "got 7"});
  const auto rotate = [&](Index heads, Index head_dim, DeviceMatrix<float>& cosines, DeviceMatrix<float>& sines) {
    cuda::rotate<float>(x.view(), heads, head_dim, numbers, cosines.in(), sines.in(), false, cuda::Stream{});
  };
  check_error<ShapeError>([&] { rotate(8, 1, angles, angles); }, {"cuda::rotate", "heads of an even length", "8 of 1"});
  check_error<ShapeError>([&] { rotate(3, 4, angles, angles); }, {"X of 12 columns", "got 8"});
  check_error<ShapeError>([&] { rotate(2, 4, thin, angles); }, {"cosines of 2 columns", "got 1"});
  check_error<ShapeError>([&] { rotate(2, 4, angles, thin); }, {"sines of 2 columns", "got 1"});
  check_error<ShapeError>([&] { rotate(2, 4, angles, few); }, {"sines of 9 rows", "got 8"});
}

}  // namespace fedlora::tests
