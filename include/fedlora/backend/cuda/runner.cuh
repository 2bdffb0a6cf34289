// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's operations, as one worker has them: a stream, memory on the device, and the kernels and products
// of the other headers here. cpu/runner.hpp states what each operation computes; this says what a GPU adds to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/attention_backward.cuh"
#include "fedlora/backend/cuda/attention_forward.cuh"
#include "fedlora/backend/cuda/blas.cuh"
#include "fedlora/backend/cuda/context.cuh"
#include "fedlora/backend/cuda/idle.cuh"
#include "fedlora/backend/cuda/linear.cuh"
#include "fedlora/backend/cuda/loss.cuh"
#include "fedlora/backend/cuda/norm.cuh"
#include "fedlora/backend/cuda/optimizer_state.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"
#include "fedlora/backend/cuda/resources.cuh"
#include "fedlora/backend/cuda/rows.cuh"
#include "fedlora/backend/cuda/staging.cuh"
#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/backend/operations.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

template <class T>
class Trainee;  // trainee.cuh

/// Activations and weights in T (float, Bf16 or Half), parameters' gradients, sums and statistics in float. Operations
/// are queued in one stream and have not run when they return; what they are given must live until then. The same
/// bits in every run on one device: sums have an order that depends on shapes alone, and nothing is added atomically.
template <class T>
class Runner {
 public:
  /// Its own stream, or the caller's. Made of what an earlier runner of the backend has left, where there is such a
  /// thing; its bits do not depend on it. \throws CudaError
  template <class Backend>
  explicit Runner(const Backend& backend) : context_(backend.context()), resources_(resources_for(*context_)) {
    set_loss(own_loss());
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;
  /// Waits for all that was queued, and leaves what it was made of to the next one, unless something is wrong with it:
  /// an error in the stream, or a stream that still captures. What is bound to a caller's stream is not left either.
  ~Runner() {
    try {
      context_->use();
      if (resources_->quiesce() && !context_->options.stream) context_->idle->keep(std::move(resources_));
    } catch (const std::exception&) {  // the resources end here
    }
  }

  using Trainee = cuda::Trainee<T>;

  Stream stream() const { return resources_->stream.get(); }
  const Context& context() const { return *context_; }

  // --- memory --------------------------------------------------------------------------------------------------------
  /// From now on matrices of so many rows have room for a bucket of them (linear.cuh).
  void expect(Index rows) { batch_ = BatchRows(rows); }
  MatrixView<T> matrix(Index rows, Index cols) { return first_rows(arena_.matrix<T>(batch_.room(rows), cols), rows); }
  /// With spare columns for S, so that the base product may take the low-rank term along (linear.cuh).
  MatrixView<T> operand(Index rows, Index cols) {
    return first_rows(arena_.matrix<T>(batch_.room(rows), cols, augmented_columns), rows);
  }
  MatrixView<float> statistics(Index rows) { return arena_.matrix<float>(rows, 2); }
  [[nodiscard]] auto scope() { return arena_.scope(); }
  using Mark = Arena::Mark;
  Mark mark() const { return arena_.mark(); }
  void rewind(const Mark& mark) { arena_.rewind(mark); }
  /// Also makes this runner's device the current one of the calling thread. \throws CudaError
  void reset() {
    context_->use();
    arena_.reset();
    staging_.reset();
    expect(0);
  }
  /// Bytes of matrices held, used or not.
  std::size_t capacity() const { return arena_.capacity(); }
  std::span<std::byte> bytes(std::size_t count) { return arena_.bytes(count); }

  // --- between host and device ---------------------------------------------------------------------------------------
  /// Copied before this returns; there for what is queued after `flush`.
  const std::int32_t* place(std::span<const std::int32_t> table) { return staging_.upload(table); }
  const float* place(std::span<const float> table) { return staging_.upload(table); }

  using AttentionTable = AttentionTables;
  AttentionTable place(std::span<const AttentionSpan> spans, const std::int32_t* positions,
                       const std::int32_t* row_numbers) {
    const std::vector<AttentionTile> queries = query_tiles(spans), keys = key_tiles(spans);
    AttentionTables tables;
    tables.spans = staging_.upload(spans);
    tables.span_count = static_cast<Index>(spans.size());
    tables.query_tiles = staging_.upload(queries);
    tables.query_tile_count = static_cast<Index>(queries.size());
    tables.key_tiles = staging_.upload(keys);
    tables.key_tile_count = static_cast<Index>(keys.size());
    tables.positions = positions;
    tables.row_numbers = row_numbers;
    return tables;
  }
  /// One copy for all tables.
  void flush() { staging_.flush(); }

  /// On the device, rounded to T, until the next call. Waits for the copy.
  std::span<const T> parameters(std::span<const float> values) {
    grow(resources_->parameters, values.size() * sizeof(float), "an adapter's parameters");
    upload<float>(values, resources_->parameters.template as<float>(), stream());
    if constexpr (std::is_same_v<T, float>) {
      return {resources_->parameters.template as<float>(), values.size()};
    } else {
      grow(resources_->rounded, values.size() * sizeof(T), "an adapter's rounded parameters");
      convert(resources_->parameters.template as<float>(), resources_->rounded.template as<T>(),
              static_cast<Index>(values.size()), stream());
      return {resources_->rounded.template as<T>(), values.size()};
    }
  }

  /// Zeros on the device, and no loss yet.
  std::span<float> open_gradient(std::span<float> gradient) {
    grow(resources_->gradient, gradient.size_bytes(), "an adapter's gradient");
    detail::set_zero(resources_->gradient.data(), gradient.size_bytes(), stream());
    loss_state_ = nullptr;
    set_loss(own_loss());
    return {resources_->gradient.template as<float>(), gradient.size()};
  }
  /// Adds them, with the loss scale taken out again. Waits for all that was queued. \throws CudaError
  void close_gradient(std::span<float> gradient) {
    download_.resize(gradient.size());
    cuda::download(resources_->gradient.template as<float>(), download_, stream());
    constexpr float unscale = static_cast<float>(1.0 / default_loss_scaling<T>.initial);
    for (std::size_t i = 0; i < gradient.size(); ++i) gradient[i] += download_[i] * unscale;
  }

  /// Waits for all that was queued. \throws CudaError
  void download(MatrixView<const T> from, float* to) {
    std::vector<T> values(static_cast<std::size_t>(from.size()));
    cuda::download<T>(from, MatrixView<T>(values.data(), from.rows, from.cols), stream());
    for (std::size_t i = 0; i < values.size(); ++i) to[i] = static_cast<float>(values[i]);
  }

  // --- linear layers -------------------------------------------------------------------------------------------------
  void linear_forward(MatrixView<const T> x, const FrozenMatrix& w, const T* bias, MatrixView<T> y) {
    linear_.base_forward(blas_, x, w.view<T>(), bias, y);
  }
  void linear_backward(MatrixView<const T> dy, const FrozenMatrix& w, MatrixView<T> dx, bool accumulate) {
    linear_.base_backward(blas_, dy, w.view<T>(), dx, accumulate);
  }
  void linear_forward(MatrixView<const T> x, std::span<const LinearPart<T, float>> parts) {
    linear_.forward(blas_, arena_, x, parts);
  }
  void linear_backward(MatrixView<const T> x, std::span<const LinearPart<T, float>> parts, MatrixView<T> dx,
                       bool accumulate) {
    linear_.backward(blas_, arena_, x, parts, dx, accumulate);
  }
  void dense_forward(MatrixView<const T> x, MatrixView<const T> w, const T* bias, MatrixView<T> y) {
    blas_.template multiply_bias<T>(x, w, bias, y, math());
  }
  void dense_backward(MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const T> w, MatrixView<float> dw,
                      float* dbias, MatrixView<T> dx) {
    if (!dw.empty())
      blas_.template multiply<T, float>(true, false, dw.rows, dw.cols, dy.rows, 1.0f, dy.data, dy.stride, x.data,
                                        x.stride, 1.0f, dw.data, dw.stride, math());
    if (dbias != nullptr) {
      const auto scope = arena_.scope();
      sum_rows<T>(dy, dbias, arena_.bytes(sum_rows_workspace<T>(dy.rows, dy.cols)), stream());
    }
    if (!dx.empty()) linear_.base_backward(blas_, dy, w, dx, false);
  }

  // --- embeddings, rows ----------------------------------------------------------------------------------------------
  void embed(std::span<const MatrixView<const T>> tables, std::span<const std::int32_t* const> ids, MatrixView<T> y) {
    cuda::embed<T>(tables, ids, y, stream());
  }
  void gather_rows(MatrixView<const T> from, const std::int32_t* rows, MatrixView<T> to) {
    cuda::gather_rows<T>(from, rows, to, stream());
  }
  /// No two of `rows` are the same.
  void scatter_rows_add(MatrixView<const T> from, const std::int32_t* rows, MatrixView<T> to) {
    cuda::scatter_rows_add<T>(from, rows, to, stream());
  }
  void copy(MatrixView<const T> from, MatrixView<T> to) { cuda::copy<T>(from, to, stream()); }
  void add(MatrixView<const T> from, MatrixView<T> to) { cuda::add<T>(from, to, stream()); }
  void fill_zero(MatrixView<T> to) { cuda::fill_zero<T>(to, stream()); }
  void mean_rows(MatrixView<const T> x, const std::int32_t* cu_seqlens, MatrixView<T> y) {
    cuda::mean_rows<T>(x, cu_seqlens, y, stream());
  }
  void mean_rows_backward(MatrixView<const T> dy, const std::int32_t* cu_seqlens, MatrixView<T> dx) {
    cuda::mean_rows_backward<T>(dy, cu_seqlens, dx, stream());
  }

  // --- norms, activations, dropout -----------------------------------------------------------------------------------
  void norm_forward(NormKind kind, MatrixView<const T> x, const T* gamma, const T* beta, double eps, MatrixView<T> y,
                    MatrixView<float> statistics) {
    cuda::norm_forward<T>(kind, x, gamma, beta, eps, y, statistics, stream());
  }
  void norm_backward(NormKind kind, MatrixView<const T> dy, MatrixView<const T> x, MatrixView<const float> statistics,
                     const T* gamma, MatrixView<T> dx, bool accumulate) {
    cuda::norm_backward<T>(kind, dy, x, statistics, gamma, dx, accumulate, stream());
  }
  void add_residual(MatrixView<T> x, const T* bias, MatrixView<const T> residual, const Dropout& dropout,
                    const std::int32_t* row_numbers, Index begin, Index end) {
    cuda::add_residual<T>(x, bias, residual, dropout, row_numbers, begin, end, stream());
  }
  void dropout(const Dropout& dropout, MatrixView<const T> from, MatrixView<T> to, const std::int32_t* row_numbers,
               Index begin, Index end) {
    cuda::dropout<T>(dropout, from, to, row_numbers, begin, end, stream());
  }
  void activation_forward(Activation activation, MatrixView<const T> x, const T* bias, MatrixView<T> y) {
    cuda::activation_forward<T>(activation, x, bias, y, stream());
  }
  void activation_backward(Activation activation, MatrixView<const T> x, const T* bias, MatrixView<T> dy) {
    cuda::activation_backward<T>(activation, x, bias, dy, stream());
  }
  void gated_forward(Activation activation, MatrixView<const T> gate, MatrixView<const T> up, MatrixView<T> y) {
    cuda::gated_forward<T>(activation, gate, up, y, stream());
  }
  void gated_backward(Activation activation, MatrixView<const T> gate, MatrixView<const T> up, MatrixView<const T> dy,
                      MatrixView<T> dgate, MatrixView<T> dup) {
    cuda::gated_backward<T>(activation, gate, up, dy, dgate, dup, stream());
  }

  // --- attention -----------------------------------------------------------------------------------------------------
  void attention_forward(const AttentionShape& shape, const AttentionTable& table, MatrixView<const T> q,
                         MatrixView<const T> k, MatrixView<const T> v, MatrixView<T> out) {
    cuda::attention_forward<T>(shape, table, q, k, v, out, stream(), math());
  }
  void attention_backward(const AttentionShape& shape, const AttentionTable& table, MatrixView<const T> q,
                          MatrixView<const T> k, MatrixView<const T> v, MatrixView<const T> d_out, MatrixView<T> dq,
                          MatrixView<T> dk, MatrixView<T> dv) {
    const auto scope = arena_.scope();
    cuda::attention_backward<T>(shape, table, q, k, v, d_out, dq, dk, dv,
                                arena_.bytes(attention_backward_workspace<T>(shape, q.rows)), stream(), math());
  }

  Index rotary_positions() const { return cosines_.rows; }
  /// Waits for the copies.
  void set_rotary(Index positions, const std::vector<float>& cosines, const std::vector<float>& sines) {
    const Index half = static_cast<Index>(cosines.size()) / positions;
    grow(resources_->rotary, 2 * cosines.size() * sizeof(float), "rotary tables");
    float* const values = resources_->rotary.template as<float>();
    upload<float>(cosines, values, stream());
    upload<float>(sines, values + cosines.size(), stream());
    cosines_ = {values, positions, half};
    sines_ = {values + cosines.size(), positions, half};
  }
  void rotate(MatrixView<T> x, Index heads, Index head_dim, const std::int32_t* positions, bool inverse) {
    cuda::rotate<T>(x, heads, head_dim, positions, cosines_, sines_, inverse, stream());
  }

  // --- losses --------------------------------------------------------------------------------------------------------
  void cross_entropy(MatrixView<T> logits, const std::int32_t* labels, double weight) {
    add_losses(logits.rows, weight, [&](const float* scaled, float* losses) {
      cuda::cross_entropy<T>(logits, labels, scaled, losses, stream());
    });
  }
  void mean_squared_error(MatrixView<T> outputs, const float* targets, double weight) {
    add_losses(outputs.rows, weight, [&](const float* scaled, float* losses) {
      cuda::mean_squared_error<T>(outputs, targets, scaled, losses, stream());
    });
  }
  void binary_cross_entropy(MatrixView<T> logits, const float* targets, double weight) {
    add_losses(logits.rows, weight, [&](const float* scaled, float* losses) {
      cuda::binary_cross_entropy<T>(logits, targets, scaled, losses, stream());
    });
  }
  /// Waits for all that was queued. \throws CudaError
  double take_loss() {
    double loss = 0;
    cuda::download(loss_, std::span(&loss, 1), stream());
    set_loss(own_loss());
    return loss;
  }
  /// Waits for all that was queued. \throws CudaError
  void row_losses(MatrixView<const T> logits, const std::int32_t* labels, std::span<RowLoss> losses) {
    const auto scope = arena_.scope();
    float* const nll = arena_.take<float>(logits.rows);
    auto* const best = arena_.take<std::int32_t>(logits.rows);
    cross_entropy_loss<T>(logits, labels, nll, best, stream());
    download_.resize(losses.size());
    best_.resize(losses.size());
    cuda::download(nll, download_, stream());
    cuda::download(best, best_, stream());
    for (std::size_t i = 0; i < losses.size(); ++i) losses[i] = {static_cast<double>(download_[i]), best_[i]};
  }

  // --- training on the device (trainee.cuh) --------------------------------------------------------------------------
  /// Gradients of losses from now on are those of loss · loss_scale as `state` has it, and losses are added to `loss`;
  /// both are in device memory.
  void send_losses_to(double* loss, const StepState* state) {
    loss_ = loss;
    loss_state_ = state;
  }

 private:
  friend class cuda::Trainee<T>;

  using Resources = RunnerResources<T>;

  static std::unique_ptr<Resources> resources_for(const Context& context) {
    context.use();
    if (auto resources = context.idle->template take<Resources>()) return resources;
    auto resources = std::make_unique<Resources>(context);
    context.tally.add(&Counts::runners_made);
    return resources;
  }

  FloatMath math() const { return context_->options.math; }

  static MatrixView<T> first_rows(MatrixView<T> matrix, Index rows) {
    matrix.spare_rows = matrix.rows - rows;
    matrix.rows = rows;
    return matrix;
  }

  void grow(DeviceBuffer& buffer, std::size_t bytes, const char* what) {
    if (buffer.size() < bytes) buffer = DeviceBuffer(context_->memory, bytes, what, stream());
  }

  /// Calls `compute(weight with the loss scale, losses of the rows)`, both in device memory, and adds these losses up.
  template <class Compute>
  void add_losses(Index rows, double weight, Compute&& compute) {
    const auto scope = arena_.scope();
    float* const losses = arena_.take<float>(rows);
    float* const scaled = arena_.take<float>(1);
    scale_loss_weight(weight, loss_state_, default_loss_scaling<T>.initial, scaled, stream());
    compute(scaled, losses);
    sum_losses(losses, rows, loss_, true, stream());
  }

  double* own_loss() {
    grow(resources_->own_loss, sizeof(double), "a loss");
    return resources_->own_loss.template as<double>();
  }

  void set_loss(double* loss) {
    loss_ = loss;
    detail::set_zero(loss_, sizeof(double), stream());
  }

  std::shared_ptr<const Context> context_;
  std::unique_ptr<Resources> resources_;  ///< never null before the end
  Arena& arena_ = resources_->arena;
  Staging& staging_ = resources_->staging;
  Blas& blas_ = resources_->blas;
  Linear<T>& linear_ = resources_->linear;
  BatchRows batch_;
  MatrixView<const float> cosines_, sines_;
  double* loss_ = nullptr;
  const StepState* loss_state_ = nullptr;
  std::vector<float> download_;
  std::vector<std::int32_t> best_;
};

}  // namespace fedlora::cuda

#endif
