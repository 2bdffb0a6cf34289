// SPDX-License-Identifier: Apache-2.0
// LayerNorm (Ba, Kiros, Hinton 2016, arXiv 1607.06450) and RMSNorm (Zhang, Sennrich 2019, arXiv 1910.07467), forward
// and backward. Each row is read once and written once: it stays in registers while its sums are made, so that the
// variance is the mean of squared differences, which E[x²] - E[x]² in float32 is not.
#pragma once

#include <cmath>
#include <type_traits>

#include "fedlora/backend/cuda/checks.cuh"
#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/packed.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// A team of threads that shares one row: a warp, or a whole block. Thread t of it looks after the 16 bytes number t,
/// t + Team, … of the row. Rows that are whole vectors stay in registers, at most `Held` vectors of a thread; where
/// Held is 0, any row is read again each time, element by element if it must be. Sums have the same order either way.
template <class T, int Team, int Held>
struct RowTeam {
  static constexpr int length = vector_length<T>;
  static constexpr int block_threads = Team > 128 ? Team : 128;
  static constexpr int teams = block_threads / Team;  ///< of a block

  int thread;
  Index cols;

  template <class Block>
  FEDLORA_DEVICE RowTeam(const Block& block, Index cols_) : thread(block.thread() % Team), cols(cols_) {}

  /// Calls body<V>(col, count) for each vector of this thread: its place in registers, its first column, and how many
  /// of its elements are in the row.
  template <class Body>
  FEDLORA_DEVICE void each(Body&& body) const {
    if constexpr (Held > 0) {
      unrolled<Held>([&]<int V>() {
        const Index col = Index{V * Team + thread} * length;
        if (col < cols) body.template operator()<V>(col, length);
      });
    } else {
      for (Index col = Index{thread} * length; col < cols; col += Team * length)
        body.template operator()<0>(col, static_cast<int>(cols - col < length ? cols - col : length));
    }
  }

  /// Elements of a row; zero where it has ended.
  template <class Block>
  FEDLORA_DEVICE static Packed<T> load(Block& block, const T* from, int count, bool by_vectors) {
    if constexpr (Held > 0)
      return load_packed(block, from);
    else
      return load_elements(block, from, count, by_vectors);
  }
  template <class Block>
  FEDLORA_DEVICE static void store(Block& block, T* to, const Packed<T>& packed, int count, bool by_vectors) {
    if constexpr (Held > 0)
      store_packed(block, to, packed);
    else
      store_elements(block, to, packed, count, by_vectors);
  }

  /// Shared memory of one `sum` of `Count` values.
  template <int Count>
  static constexpr int sum_bytes() {
    return Team > 32 ? divide_up(Count * Team / 32, 4) * 16 : 0;
  }

  /// Replaces values by their sums over the team, the same bits in every thread.
  template <int Count, class Block>
  FEDLORA_DEVICE void sum(Block& block, float (&values)[Count]) const {
    for (int mask = 16; mask > 0; mask /= 2)
      for (int i = 0; i < Count; ++i) values[i] += block.shuffle_xor(values[i], mask);
    if constexpr (Team > 32) {
      constexpr int warps = Team / 32;
      const auto of_warps = block.template shared<float>(Count * warps);
      if (block.lane() == 0)
        for (int i = 0; i < Count; ++i) of_warps[i * warps + block.warp()] = values[i];
      block.sync();
      for (int i = 0; i < Count; ++i) {
        values[i] = 0.0f;
        for (int w = 0; w < warps; ++w) values[i] += of_warps[i * warps + w];
      }
    }
  }
};

/// One row of a matrix as its team has it: in registers from `load` on, or in memory where Held is 0.
template <class T, int Team, int Held>
struct RowVectors {
  using Row = RowTeam<T, Team, Held>;

  const T* data;
  bool by_vectors;
  Packed<T> held[Held > 0 ? Held : 1];

  template <class U>
  FEDLORA_DEVICE RowVectors(const Source<U>& matrix, Index i)
      : data(matrix.data + i * matrix.stride), by_vectors(matrix.by_vectors) {}

  template <class Block>
  FEDLORA_DEVICE void load(Block& block, const Row& team) {
    if constexpr (Held > 0)
      team.each([&]<int V>(Index col, int count) { held[V] = Row::load(block, data + col, count, by_vectors); });
  }

  template <int V, class Block>
  FEDLORA_DEVICE Packed<T> at(Block& block, Index col, int count) const {
    if constexpr (Held > 0)
      return held[V];
    else
      return Row::load(block, data + col, count, by_vectors);
  }
};

/// Forward: a row to each team.
template <class T, int Team, int Held>
struct NormForwardKernel {
  using Row = RowTeam<T, Team, Held>;
  static constexpr int threads = Row::block_threads;
  static constexpr int length = vector_length<T>;

  Source<const T> x;      ///< (rows, cols)
  Source<T> y;            ///< (rows, cols)
  Source<const T> gamma;  ///< one row
  Source<const T> beta;   ///< one row, where `centred`
  float* statistics;      ///< (rows, 2)
  Index statistics_stride;
  float eps;
  bool centred;  ///< LayerNorm

  int shared_bytes() const { return 2 * Row::template sum_bytes<1>(); }
  Grid grid() const { return {divide_up<Index>(x.rows, Row::teams), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index i = block.x() * Row::teams + block.thread() / Team;
    if (i >= x.rows) return;  // the whole team
    T* const to = y.data + i * y.stride;
    normalise(block, i, [&](Index col, int count, const Packed<T>& packed) {
      Row::store(block, to + col, packed, count, y.by_vectors);
    });
  }

  /// Normalises row i and calls use(col, count, vector) for each vector of this thread, rounded to T. What multiplies
  /// the row at once, instead of reading it again, takes it from there.
  template <class Block, class Use>
  FEDLORA_DEVICE void normalise(Block& block, Index i, Use&& use) const {
    const Row team(block, x.cols);
    const auto size = static_cast<float>(x.cols);
    RowVectors<T, Team, Held> row(x, i);
    row.load(block, team);

    float mean = 0.0f;
    if (centred) {
      float sum[1] = {0.0f};
      team.each([&]<int V>(Index col, int count) {
        const Packed<T> from = row.template at<V>(block, col, count);  // zero where the row has ended
        for (int e = 0; e < length; ++e) sum[0] += from[e];
      });
      team.sum(block, sum);
      mean = sum[0] / size;
    }
    float square[1] = {0.0f};
    team.each([&]<int V>(Index col, int count) {
      const Packed<T> from = row.template at<V>(block, col, count);
      for (int e = 0; e < length; ++e) {
        const float difference = e < count ? from[e] - mean : 0.0f;
        square[0] += difference * difference;
      }
    });
    team.sum(block, square);
    const float inverse = 1.0f / sqrtf(square[0] / size + eps);
    if (team.thread == 0) {
      statistics[i * statistics_stride] = mean;
      statistics[i * statistics_stride + 1] = inverse;
    }

    RowVectors<T, Team, Held> gamma_row(gamma, i), beta_row(beta, i);
    gamma_row.load(block, team);
    if (centred) beta_row.load(block, team);
    team.each([&]<int V>(Index col, int count) {
      const Packed<T> from = row.template at<V>(block, col, count);
      const Packed<T> scale = gamma_row.template at<V>(block, col, count);
      Packed<T> shift = {};
      if (centred) shift = beta_row.template at<V>(block, col, count);
      float values[length];
      for (int e = 0; e < length; ++e) {
        values[e] = (from[e] - mean) * inverse * scale[e];
        if (centred) values[e] += shift[e];
      }
      use(col, count, pack<T>(values));
    });
  }
};

/// Backward: a row to each team. With x̂ = (x - mean) / deviation and g = gamma ∘ dy it is
/// dx = (g - mean(g) - x̂ mean(g ∘ x̂)) / deviation, without mean(g) for RMSNorm.
template <class T, int Team, int Held>
struct NormBackwardKernel {
  using Row = RowTeam<T, Team, Held>;
  static constexpr int threads = Row::block_threads;
  static constexpr int length = vector_length<T>;

  Source<const T> dy;       ///< (rows, cols)
  Source<const T> x;        ///< (rows, cols)
  Source<T> dx;             ///< (rows, cols)
  Source<const T> gamma;    ///< one row
  const float* statistics;  ///< (rows, 2)
  Index statistics_stride;
  bool centred;     ///< LayerNorm
  bool accumulate;  ///< dx += …

  int shared_bytes() const { return Row::template sum_bytes<2>(); }
  Grid grid() const { return {divide_up<Index>(x.rows, Row::teams), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index i = block.x() * Row::teams + block.thread() / Team;
    if (i >= x.rows) return;  // the whole team
    const Row team(block, x.cols);
    RowVectors<T, Team, Held> dy_row(dy, i), x_row(x, i), gamma_row(gamma, i), before(dx, i);
    dy_row.load(block, team);
    x_row.load(block, team);
    gamma_row.load(block, team);
    if (accumulate) before.load(block, team);
    const float mean = statistics[i * statistics_stride];
    const float inverse = statistics[i * statistics_stride + 1];

    float sums[2] = {0.0f, 0.0f};  // of g and g ∘ (x - mean); gamma is zero where the row has ended
    team.each([&]<int V>(Index col, int count) {
      const Packed<T> from_dy = dy_row.template at<V>(block, col, count);
      const Packed<T> from_x = x_row.template at<V>(block, col, count);
      const Packed<T> scale = gamma_row.template at<V>(block, col, count);
      for (int e = 0; e < length; ++e) {
        const float g = from_dy[e] * scale[e];
        sums[0] += g;
        sums[1] += g * (from_x[e] - mean);
      }
    });
    team.sum(block, sums);
    const auto size = static_cast<float>(x.cols);
    const float mean_g = centred ? sums[0] / size : 0.0f;
    const float slope = sums[1] * inverse * inverse / size;

    T* const to = dx.data + i * dx.stride;
    team.each([&]<int V>(Index col, int count) {
      const Packed<T> from_dy = dy_row.template at<V>(block, col, count);
      const Packed<T> from_x = x_row.template at<V>(block, col, count);
      const Packed<T> scale = gamma_row.template at<V>(block, col, count);
      Packed<T> old = {};
      if (accumulate) old = before.template at<V>(block, col, count);
      float values[length];
      for (int e = 0; e < length; ++e) {
        const float g = from_dy[e] * scale[e];
        values[e] = (g - mean_g - (from_x[e] - mean) * slope) * inverse;
        if (accumulate) values[e] += old[e];
      }
      Row::store(block, to + col, pack<T>(values), count, dx.by_vectors);
    });
  }
};

namespace detail {

template <int Team, int Held>
struct RowPlan {
  static constexpr int team = Team;
  static constexpr int held = Held;
};

/// Calls body with the team for rows of `cols` elements: a warp as long as a thread has at most 32 of them, which is
/// what registers hold without leaving few threads to a multiprocessor, then a block. It depends on nothing else, so
/// what comes out of a row does not depend on the others. `whole` says that all rows are whole vectors.
template <class T, class Body>
void with_row_plan(Index cols, bool whole, Body&& body) {
  constexpr int held = 32 / vector_length<T>;
  const auto choose = [&](auto team) {
    if (whole)
      body(RowPlan<team(), held>{});
    else
      body(RowPlan<team(), 0>{});
  };
  if (cols <= 32 * 32)
    choose(std::integral_constant<int, 32>{});
  else if (cols <= 128 * 32)
    choose(std::integral_constant<int, 128>{});
  else if (cols <= 256 * 32)
    choose(std::integral_constant<int, 256>{});
  else
    body(RowPlan<512, 0>{});
}

}  // namespace detail

/// y = gamma ∘ (x - mean) / sqrt(var + eps) + beta, or y = gamma ∘ x / sqrt(mean(x²) + eps) for RMSNorm, row by row,
/// computed in float32 and rounded once to T. `statistics` receives {mean (0 for RMSNorm), 1 / deviation}. Without
/// columns there is nothing to do.
/// Shapes:      x, y (rows, cols), gamma, beta (cols), statistics (rows, 2); all in device memory; beta is unread for
///              RMSNorm
/// Aliasing:    y may be x
/// Determinism: the same bits in every run; a row's bits do not depend on the other rows
/// \throws ShapeError
template <class T>
void norm_forward(NormKind kind, MatrixView<const T> x, const T* gamma, const T* beta, double eps, MatrixView<T> y,
                  MatrixView<float> statistics, Stream stream) {
  constexpr const char* where = "cuda::norm_forward";
  detail::check_shape(where, "y", x.rows, x.cols, y.rows, y.cols);
  detail::check_shape(where, "statistics", x.rows, 2, statistics.rows, statistics.cols);
  if (x.rows == 0 || x.cols == 0) return;
  const Source<const T> from(x);
  const Source<T> to(y);
  const Source<const T> scale(detail::in_every_row(gamma, x.rows, x.cols));
  const Source<const T> shift(detail::in_every_row(beta, x.rows, x.cols));
  const bool centred = kind == NormKind::layer_norm;
  const bool whole = x.cols % vector_length<T> == 0 && from.by_vectors && to.by_vectors && scale.by_vectors &&
                     (!centred || shift.by_vectors);
  detail::with_row_plan<T>(x.cols, whole, [&](auto plan) {
    NormForwardKernel<T, plan.team, plan.held> kernel;
    kernel.x = from;
    kernel.y = to;
    kernel.gamma = scale;
    kernel.beta = shift;
    kernel.statistics = statistics.data;
    kernel.statistics_stride = statistics.stride;
    kernel.eps = static_cast<float>(eps);
    kernel.centred = centred;
    launch(stream, kernel.grid(), kernel);
  });
}

/// Given dy and what `norm_forward` made of x: dx = norm'(dy) at x, or dx += … when `accumulate`; computed in float32
/// and rounded once. Without `accumulate` dx is not read.
/// Shapes:      dy, x, dx (rows, cols), statistics (rows, 2), gamma (cols); all in device memory
/// Aliasing:    dx may be dy when not accumulating
/// Determinism: the same bits in every run; a row's bits do not depend on the other rows
/// \throws ShapeError
template <class T>
void norm_backward(NormKind kind, MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const float> statistics,
                   const T* gamma, MatrixView<T> dx, bool accumulate, Stream stream) {
  constexpr const char* where = "cuda::norm_backward";
  detail::check_shape(where, "x", dy.rows, dy.cols, x.rows, x.cols);
  detail::check_shape(where, "statistics", dy.rows, 2, statistics.rows, statistics.cols);
  detail::check_shape(where, "dx", dy.rows, dy.cols, dx.rows, dx.cols);
  if (dy.rows == 0 || dy.cols == 0) return;
  const Source<const T> from_dy(dy), from_x(x);
  const Source<T> to(dx);
  const Source<const T> scale(detail::in_every_row(gamma, dy.rows, dy.cols));
  const bool whole =
      dy.cols % vector_length<T> == 0 && from_dy.by_vectors && from_x.by_vectors && to.by_vectors && scale.by_vectors;
  detail::with_row_plan<T>(dy.cols, whole, [&](auto plan) {
    NormBackwardKernel<T, plan.team, plan.held> kernel;
    kernel.dy = from_dy;
    kernel.x = from_x;
    kernel.dx = to;
    kernel.gamma = scale;
    kernel.statistics = statistics.data;
    kernel.statistics_stride = statistics.stride;
    kernel.centred = kind == NormKind::layer_norm;
    kernel.accumulate = accumulate;
    launch(stream, kernel.grid(), kernel);
  });
}

}  // namespace fedlora::cuda

#endif
