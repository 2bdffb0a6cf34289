// SPDX-License-Identifier: Apache-2.0
// Losses over rows of logits: softmax cross-entropy, from the 2 labels of a classifier to the 128,256 tokens of a
// vocabulary; mean squared error and binary cross-entropy of a head's few outputs.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/packed.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// What the loss of each row is multiplied by before its gradient is taken, as numbers in device memory: one for all
/// rows, or one for each client that is trained in this batch.
struct LossWeights {
  const float* values = nullptr;
  const std::int32_t* slots = nullptr;  ///< for each row, which of `values`; null: the first

  LossWeights() = default;
  LossWeights(const float* values_, const std::int32_t* slots_ = nullptr)  // NOLINT: implicit on purpose
      : values(values_), slots(slots_) {}
};

/// The softmax cross-entropy of each row, and its gradient in place (`Gradient`) or the largest entry's number.
///
/// `Warps` warps have a row: one, for few columns, or all 32 of a block. The first pass finds the largest entry and the
/// sum of exponentials together (Milakov and Gimelshein 2018, arXiv 1805.02867), so that the row is read once from
/// memory; the second goes backwards, to meet what the first has left in the caches. Which thread adds which entry
/// depends on the number of columns alone, not on how rows lie in memory.
template <class T, int Warps, bool Gradient>
struct CrossEntropyKernel {
  static_assert(Warps == 1 || Warps == 32, "partial results of a block are brought together by one warp");
  static constexpr int threads = Warps == 1 ? 128 : 32 * Warps;
  static constexpr int rows_per_block = Warps == 1 ? threads / 32 : 1;
  static constexpr int group = 32 * Warps;  ///< threads of a row
  static constexpr int batch = 4;           ///< vectors that a thread has on their way
  static constexpr float lowest = std::numeric_limits<float>::lowest();
  static constexpr float infinity = std::numeric_limits<float>::infinity();
  static constexpr int nowhere = std::numeric_limits<int>::max();

  Source<std::conditional_t<Gradient, T, const T>> logits;
  const std::int32_t* labels = nullptr;
  LossWeights weights;
  float* row_losses = nullptr;
  std::int32_t* best = nullptr;

  int shared_bytes() const { return Warps == 1 ? 0 : 3 * Warps * static_cast<int>(sizeof(float)); }
  Grid grid() const { return {divide_up<Index>(logits.rows, rows_per_block), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index row = Warps == 1 ? block.x() * rows_per_block + block.warp() : block.x();
    if (row >= logits.rows) return;
    const int thread = Warps == 1 ? block.lane() : block.thread();
    const std::int32_t label = labels[row];
    if (label < 0 && (Gradient || best == nullptr)) {
      if (thread == 0) row_losses[row] = 0.0f;
      if constexpr (Gradient) rewrite(block, row, thread, [](float, Index) { return 0.0f; });
      return;
    }
    const float chosen = label < 0 ? 0.0f : static_cast<float>(logits.data[row * logits.stride + label]);

    Running own;
    read(block, row, thread, own);
    const float top =
        over_row(block, own.top, [&](float value, int mask) { return fmaxf(value, block.shuffle_xor(value, mask)); });
    const float sum = over_row(block, own.sum * expf(own.top - top),
                               [&](float value, int mask) { return value + block.shuffle_xor(value, mask); });
    if constexpr (!Gradient) {
      const int at = over_row(block, own.top == top ? own.at : nowhere, [&](int value, int mask) {
        const int other = block.shuffle_xor(value, mask);
        return other < value ? other : value;
      });
      if (thread == 0 && best != nullptr) best[row] = at == nowhere ? 0 : at;
    }
    if (thread == 0) row_losses[row] = label < 0 ? 0.0f : logf(sum) - (chosen - top);
    if constexpr (Gradient) {
      block.sync_warp();  // nobody reads the row's logits as they were any more
      const float weight = weights.values[weights.slots == nullptr ? 0 : weights.slots[row]];
      const float factor = weight / sum;
      rewrite(block, row, thread, [&](float value, Index j) {
        const float part = expf(value - top) * factor;
        return j == label ? part - weight : part;
      });
    }
  }

 private:
  /// The largest of the entries so far, the first place that has it, and Σ exp(entry − top). `top` begins with a finite
  /// number, so that entries of −∞ count for nothing.
  struct Running {
    float top = lowest;
    float sum = 0.0f;
    int at = nowhere;
  };

  /// Takes in this thread's part of the row: every `group`th vector, the last of which may be ragged.
  template <class Block>
  FEDLORA_DEVICE void read(Block& block, Index row, int thread, Running& own) const {
    const T* const data = logits.data + row * logits.stride;
    const Index whole = logits.cols / vector_length<T>;
    const int ragged = static_cast<int>(logits.cols % vector_length<T>);
    if (logits.by_vectors) {
      for (Index first = thread; first < whole; first += batch * group) {
        Packed<T> parts[batch];
        unrolled<batch>([&]<int B>() {
          const Index at = first + B * group;
          if (at < whole) parts[B] = load_packed(block, data + at * vector_length<T>);
        });
        unrolled<batch>([&]<int B>() {
          const Index at = first + B * group;
          if (at >= whole) return;
          float values[vector_length<T>];
          for (int e = 0; e < vector_length<T>; ++e) values[e] = parts[B][e];
          take(own, values, static_cast<int>(at) * vector_length<T>);
        });
      }
    } else {
      for (Index at = thread; at < whole; at += group)
        take_elements(own, data, at * vector_length<T>, vector_length<T>);
    }
    if (ragged > 0 && whole % group == thread) take_elements(own, data, whole * vector_length<T>, ragged);
  }

  /// Takes in `count` entries from column j on, as a vector that ends in −∞.
  FEDLORA_DEVICE static void take_elements(Running& own, const T* data, Index j, int count) {
    float values[vector_length<T>];
    for (int e = 0; e < vector_length<T>; ++e) values[e] = e < count ? static_cast<float>(data[j + e]) : -infinity;
    take(own, values, static_cast<int>(j));
  }

  FEDLORA_DEVICE static void take(Running& own, const float (&values)[vector_length<T>], int col) {
    float largest = values[0];
    for (int e = 1; e < vector_length<T>; ++e) largest = fmaxf(largest, values[e]);
    if (largest > own.top) {
      own.sum *= expf(own.top - largest);
      own.top = largest;
      if constexpr (!Gradient) {
        for (int e = vector_length<T> - 1; e >= 0; --e)
          if (values[e] == largest) own.at = col + e;
      }
    }
    for (int e = 0; e < vector_length<T>; ++e) own.sum += expf(values[e] - own.top);
  }

  /// The same for all threads of a row: `fold(value, mask)` brings together what two lanes have, and must not mind
  /// their order.
  template <class Block, class Value, class Fold>
  FEDLORA_DEVICE static Value over_row(Block& block, Value value, Fold&& fold) {
    for (int mask = 16; mask > 0; mask /= 2) value = fold(value, mask);
    if constexpr (Warps > 1) {
      const auto parts = block.template shared<Value>(Warps);
      if (block.lane() == 0) parts[block.warp()] = value;
      block.sync();
      value = parts[block.lane()];
      for (int mask = 16; mask > 0; mask /= 2) value = fold(value, mask);
    }
    return value;
  }

  /// Every entry becomes change(entry, column).
  template <class Block, class Change>
  FEDLORA_DEVICE void rewrite(Block& block, Index row, int thread, Change&& change) const {
    T* const data = logits.data + row * logits.stride;
    const Index whole = logits.by_vectors ? logits.cols / vector_length<T> : 0;
    const Index rounds = divide_up<Index>(whole, batch * group);
    for (Index j = whole * vector_length<T> + thread; j < logits.cols; j += group)
      data[j] = T(change(static_cast<float>(data[j]), j));
    for (Index round = rounds - 1; round >= 0; --round) {
      const Index first = thread + round * (batch * group);
      Packed<T> parts[batch];
      unrolled<batch>([&]<int B>() {
        const Index at = first + B * group;
        if (at < whole) parts[B] = load_packed(block, data + at * vector_length<T>);
      });
      unrolled<batch>([&]<int B>() {
        const Index at = first + B * group;
        if (at >= whole) return;
        float values[vector_length<T>];
        for (int e = 0; e < vector_length<T>; ++e) values[e] = change(parts[B][e], at * vector_length<T> + e);
        store_packed(block, data + at * vector_length<T>, pack<T>(values));
      });
    }
  }
};

/// (output − target)², and its slope.
struct SquaredError {
  FEDLORA_DEVICE static float loss(float output, float target) { return (output - target) * (output - target); }
  FEDLORA_DEVICE static float slope(float output, float target) { return 2.0f * (output - target); }
};

/// −t log σ(x) − (1 − t) log σ(−x) for a target t in [0, 1], finite for every finite x; and its slope.
struct LogisticLoss {
  FEDLORA_DEVICE static float loss(float logit, float target) {
    return fmaxf(logit, 0.0f) - logit * target + log1pf(expf(-fabsf(logit)));
  }
  FEDLORA_DEVICE static float slope(float logit, float target) { return 1.0f / (1.0f + expf(-logit)) - target; }
};

/// The mean of an entry's loss over each row, and the gradient of its weighted sum in place. A warp has a row; which
/// lane adds which entry depends on the number of columns alone.
template <class T, class EntryLoss>
struct TargetLossKernel {
  static constexpr int threads = 128;
  static constexpr int rows_per_block = threads / 32;

  MatrixView<T> outputs;
  const float* targets = nullptr;  ///< (rows, columns), without gaps
  LossWeights weights;
  float* row_losses = nullptr;

  int shared_bytes() const { return 0; }
  Grid grid() const { return {divide_up<Index>(outputs.rows, rows_per_block), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index row = block.x() * rows_per_block + block.warp();
    if (row >= outputs.rows) return;
    const auto columns = static_cast<float>(outputs.cols);
    const float share = weights.values[weights.slots == nullptr ? 0 : weights.slots[row]] / columns;
    T* const data = outputs.data + row * outputs.stride;
    const float* const target = targets + row * outputs.cols;
    float sum = 0.0f;
    for (Index j = block.lane(); j < outputs.cols; j += 32) {
      const auto output = static_cast<float>(data[j]);
      sum += EntryLoss::loss(output, target[j]);
      data[j] = T(share * EntryLoss::slope(output, target[j]));
    }
    for (int mask = 16; mask > 0; mask /= 2) sum += block.shuffle_xor(sum, mask);
    if (block.lane() == 0) row_losses[row] = sum / columns;
  }
};

/// to[s] = Σ row_losses[i] over bounds[s] ≤ i < bounds[s + 1], plus what was there if `add`; a block has one sum.
struct SumLossesKernel {
  static constexpr int threads = 1024;

  const float* row_losses = nullptr;
  const std::int32_t* bounds = nullptr;  ///< null: one sum, over `count` rows
  Index count = 0;
  double* to = nullptr;
  bool add = false;

  int shared_bytes() const { return threads / 32 * static_cast<int>(sizeof(double)); }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const auto parts = block.template shared<double>(threads / 32);
    const Index begin = bounds == nullptr ? 0 : bounds[block.x()];
    const Index end = bounds == nullptr ? count : bounds[block.x() + 1];
    double sum = 0.0;
    for (Index i = begin + block.thread(); i < end; i += threads) sum += static_cast<double>(row_losses[i]);
    for (int distance = 16; distance > 0; distance /= 2) sum += block.shuffle_down(sum, distance);
    if (block.lane() == 0) parts[block.warp()] = sum;
    block.sync();
    if (block.thread() != 0) return;
    double total = 0.0;
    for (int warp = 0; warp < threads / 32; ++warp) total += parts[warp];
    to[block.x()] = add ? to[block.x()] + total : total;
  }
};

namespace detail {

/// Up to as many columns, a warp has a row.
inline constexpr Index most_columns_of_a_warp = 2048;

template <class T, bool Gradient, class Logits>
void launch_cross_entropy(const char* where, MatrixView<Logits> logits, const std::int32_t* labels, LossWeights weights,
                          float* row_losses, std::int32_t* best, Stream stream) {
  if (logits.cols < 1 || logits.cols > std::numeric_limits<std::int32_t>::max() / 2)
    fail<ShapeError>(where, "logits of 1 to 2^30 columns", std::to_string(logits.cols));
  const auto run = [&](auto kernel) {
    kernel.logits = Source<Logits>(logits);
    kernel.labels = labels;
    kernel.weights = weights;
    kernel.row_losses = row_losses;
    kernel.best = best;
    launch(stream, kernel.grid(), kernel);
  };
  if (logits.cols <= most_columns_of_a_warp)
    run(CrossEntropyKernel<T, 1, Gradient>{});
  else
    run(CrossEntropyKernel<T, 32, Gradient>{});
}

template <class EntryLoss, class T>
void launch_target_loss(const char* where, MatrixView<T> outputs, const float* targets, LossWeights weights,
                        float* row_losses, Stream stream) {
  if (outputs.rows == 0) return;
  if (outputs.cols < 1) fail<ShapeError>(where, "at least one column", std::to_string(outputs.cols));
  TargetLossKernel<T, EntryLoss> kernel;
  kernel.outputs = outputs;
  kernel.targets = targets;
  kernel.weights = weights;
  kernel.row_losses = row_losses;
  launch(stream, kernel.grid(), kernel);
}

}  // namespace detail

/// Each row of logits becomes weight · (softmax − one_hot(label)), the gradient of weight · loss, and row_losses[i] =
/// −log softmax[label]. A row with a negative label counts for nothing: it becomes zero, and so is its loss. Computed
/// in float, rounded once to T. The weight is applied before that rounding, so that it may hold a loss scale.
/// Shapes:      logits (rows, classes), labels and row_losses rows numbers, labels below classes; all in device memory
/// Determinism: the same bits in every run; the order of sums depends on the number of classes alone
/// \throws ShapeError
template <class T>
void cross_entropy(MatrixView<T> logits, const std::int32_t* labels, std::type_identity_t<LossWeights> weight,
                   float* row_losses, Stream stream) {
  if (logits.rows == 0) return;
  detail::launch_cross_entropy<T, true>("cuda::cross_entropy", logits, labels, weight, row_losses, nullptr, stream);
}

/// The losses alone; logits are left as they are. best[i], unless `best` is null, is the number of the largest logit of
/// row i, the first of equals, whatever the label.
/// Shapes:      as in `cross_entropy`
/// Determinism: the same bits in every run
/// \throws ShapeError
template <class T>
void cross_entropy_loss(MatrixView<const T> logits, const std::int32_t* labels, float* row_losses, std::int32_t* best,
                        Stream stream) {
  if (logits.rows == 0) return;
  detail::launch_cross_entropy<T, false>("cuda::cross_entropy_loss", logits, labels, {}, row_losses, best, stream);
}

/// Each entry of outputs becomes weight · 2 (output − target) / columns, the gradient of weight · loss, and
/// row_losses[i] = the mean of (output − target)² over row i. Computed in float, rounded once to T, with the weight
/// applied before, so that it may hold a loss scale. Shapes:      outputs (rows, columns), targets as many numbers
/// without gaps, row_losses rows numbers; on the device Determinism: the same bits in every run; the order of sums
/// depends on the number of columns alone \throws ShapeError
template <class T>
void mean_squared_error(MatrixView<T> outputs, const float* targets, std::type_identity_t<LossWeights> weight,
                        float* row_losses, Stream stream) {
  detail::launch_target_loss<SquaredError>("cuda::mean_squared_error", outputs, targets, weight, row_losses, stream);
}

/// The same for binary cross-entropy: weight · (σ(logit) − target) / columns, and the mean of the entries' −t log σ(x)
/// − (1 − t) log σ(−x), with targets in [0, 1]. \throws ShapeError
template <class T>
void binary_cross_entropy(MatrixView<T> logits, const float* targets, std::type_identity_t<LossWeights> weight,
                          float* row_losses, Stream stream) {
  detail::launch_target_loss<LogisticLoss>("cuda::binary_cross_entropy", logits, targets, weight, row_losses, stream);
}

/// *to = Σ row_losses, plus what was there if `add`; in double, in an order that depends on `count` alone. All in
/// device memory. No rows sum to zero.
inline void sum_losses(const float* row_losses, Index count, double* to, bool add, Stream stream) {
  SumLossesKernel kernel;
  kernel.row_losses = row_losses;
  kernel.count = count;
  kernel.to = to;
  kernel.add = add;
  launch(stream, {1, 1}, kernel);
}

/// The same for each of `sums` clients: to[s] over the rows bounds[s] to bounds[s + 1]; the same bits as each alone.
/// Shapes:      bounds sums + 1 numbers that rise, to sums numbers; all in device memory
inline void sum_losses(const float* row_losses, const std::int32_t* bounds, Index sums, double* to, bool add,
                       Stream stream) {
  SumLossesKernel kernel;
  kernel.row_losses = row_losses;
  kernel.bounds = bounds;
  kernel.to = to;
  kernel.add = add;
  launch(stream, {sums, 1}, kernel);
}

}  // namespace fedlora::cuda

#endif
