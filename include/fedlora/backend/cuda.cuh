// SPDX-License-Identifier: Apache-2.0
// The CUDA backend: the operations a LoRA Transformer is made of, on one NVIDIA GPU (sm_80 and newer).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/backend/concepts.hpp"
#include "fedlora/backend/cuda/context.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/runner.cuh"
#include "fedlora/backend/cuda/trainee.cuh"
#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora {

using CudaOptions = cuda::Options;

/// Computes on a GPU: activations and weights in T (float, Bf16 or Half), sums in float, adapters and their gradients
/// in float. Copies share the device's memory. A runner has a stream of its own, so calls from many threads are safe;
/// with a caller's stream (CudaOptions::stream) there is one runner at a time, which `train` and `evaluate` keep to.
/// Two runs on one device give the same bits.
///
/// What runners are made of stays in the backend when they end, for those of the next round: streams, cuBLAS handles
/// and plans, pinned memory, graphs and device memory, which `memory_usage` counts as in use. They go when the backend
/// does, when an allocation finds no memory, or with `trim`.
template <class T = float>
class CudaBackend {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, Bf16> || std::is_same_v<T, Half>);

 public:
  using Scalar = float;  ///< of adapters and their gradients
  using Element = T;     ///< of activations and weights
  using Runner = cuda::Runner<T>;
  struct ThreadScope {
    ThreadScope() = default;
  };

  CudaBackend() : CudaBackend(CudaOptions{}) {}
  /// \throws CudaError when there is no such device.
  explicit CudaBackend(CudaOptions options) : context_(std::make_shared<const cuda::Context>(std::move(options))) {}

  const std::shared_ptr<const cuda::Context>& context() const { return context_; }
  cuda::MemoryUsage memory_usage() const { return context_->memory.usage(); }
  cuda::Counts counts() const { return context_->tally.counts(); }
  /// Gives back to the device what no runner is at work with: the next round makes its runners anew. \throws CudaError
  void trim() const { context_->trim(); }
  /// Runners that may be at work at the same time.
  int most_runners() const { return context_->options.stream ? 1 : std::numeric_limits<int>::max(); }

  /// A frozen matrix in T on the device. `where` names the tensor. \throws FormatError for a type that is not
  /// floating-point, CudaError
  FrozenMatrix adopt(Dtype dtype, Index rows, Index cols, std::span<const std::byte> bytes,
                     std::shared_ptr<const void> /*owner*/, const std::string& where) const {
    const auto count = static_cast<std::size_t>(rows * cols);
    if (bytes.size() != count * dtype_size(dtype))
      fail<FormatError>(where, std::to_string(count * dtype_size(dtype)) + " bytes", std::to_string(bytes.size()));
    std::vector<T> values(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::byte* at = bytes.data() + i * dtype_size(dtype);
      switch (dtype) {
        case Dtype::f64:
          values[i] = T(static_cast<float>(read<double>(at)));
          break;
        case Dtype::f32:
          values[i] = T(read<float>(at));
          break;
        case Dtype::f16:
          values[i] = T(f16_to_float(read<std::uint16_t>(at)));
          break;
        case Dtype::bf16:
          values[i] = T(bf16_to_float(read<std::uint16_t>(at)));
          break;
        default:
          fail<FormatError>(where, "F64, F32, F16 or BF16", std::string(dtype_name(dtype)));
      }
    }
    context_->use();
    const cuda::Stream stream = context_->loading.get();
    auto weight = std::make_shared<Weight>(context_, count * sizeof(T), where, stream);
    cuda::upload<T>(values, weight->buffer.template as<T>(), stream);
    const void* const data = weight->buffer.data();
    return {dtype_of<T>, rows, cols, data, std::move(weight)};
  }

  /// The values of a frozen matrix, row after row, in the host's memory. \throws CudaError
  std::vector<float> values(const FrozenMatrix& matrix) const {
    std::vector<T> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
    context_->use();
    cuda::download<T>(matrix.view<T>().data, values, context_->loading.get());
    return {values.begin(), values.end()};
  }

 private:
  template <class U>
  static U read(const std::byte* at) {
    U value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }

  /// A block, and what must not go before it.
  struct Weight {
    Weight(std::shared_ptr<const cuda::Context> context_, std::size_t bytes, const std::string& what,
           cuda::Stream stream)
        : context(std::move(context_)), buffer(context->memory, bytes, what, stream) {}
    std::shared_ptr<const cuda::Context> context;
    cuda::DeviceBuffer buffer;
  };

  std::shared_ptr<const cuda::Context> context_;
};

}  // namespace fedlora

#endif
