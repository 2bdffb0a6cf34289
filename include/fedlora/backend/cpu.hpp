// SPDX-License-Identifier: Apache-2.0
// The CPU backend: the operations a LoRA Transformer is made of, in one scalar type, over one GEMM policy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fedlora/backend/concepts.hpp"
#include "fedlora/backend/cpu/gemm_eigen.hpp"
#include "fedlora/backend/cpu/loops.hpp"
#include "fedlora/backend/cpu/runner.hpp"
#include "fedlora/backend/frozen_matrix.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// Computes in T (float or double) on the calling thread. Stateless: copies are free, calls from many threads are safe.
/// Its operations are those of cpu::Runner, its loops those of a level: of the unit's own, unless it is told another.
template <class T, GemmPolicy Gemm_ = EigenGemm, cpu::LoopLevel Level_ = cpu::OwnLevel>
struct CpuBackend {
  using Scalar = T;   ///< of adapters and their gradients
  using Element = T;  ///< of activations and weights
  using Gemm = Gemm_;
  using Level = Level_;
  using Runner = cpu::Runner<T, Gemm, Level>;
  using ThreadScope = typename Gemm::ThreadScope;

  /// A frozen matrix in T: the stored bytes themselves when they are T already and aligned (a mapped file stays
  /// mapped), a widened copy otherwise. `where` names the tensor. \throws FormatError for a type that is not
  /// floating-point.
  FrozenMatrix adopt(Dtype dtype, Index rows, Index cols, std::span<const std::byte> bytes,
                            std::shared_ptr<const void> owner, const std::string& where) const {
    const auto count = static_cast<std::size_t>(rows * cols);
    if (bytes.size() != count * dtype_size(dtype))
      fail<FormatError>(where, std::to_string(count * dtype_size(dtype)) + " bytes", std::to_string(bytes.size()));
    if (dtype == dtype_of<T> && reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T) == 0)
      return {dtype, rows, cols, bytes.data(), std::move(owner)};
    auto values = std::make_shared<std::vector<T>>(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::byte* at = bytes.data() + i * dtype_size(dtype);
      switch (dtype) {
        case Dtype::f64:
          (*values)[i] = static_cast<T>(read<double>(at));
          break;
        case Dtype::f32:
          (*values)[i] = static_cast<T>(read<float>(at));
          break;
        case Dtype::f16:
          (*values)[i] = static_cast<T>(f16_to_float(read<std::uint16_t>(at)));
          break;
        case Dtype::bf16:
          (*values)[i] = static_cast<T>(bf16_to_float(read<std::uint16_t>(at)));
          break;
        default:
          fail<FormatError>(where, "F64, F32, F16 or BF16", std::string(dtype_name(dtype)));
      }
    }
    return {dtype_of<T>, rows, cols, values->data(), values};
  }

  /// The values of a frozen matrix, row after row, in the host's memory.
  std::span<const T> values(const FrozenMatrix& matrix) const {
    return {matrix.view<T>().data, static_cast<std::size_t>(matrix.rows * matrix.cols)};
  }

 private:
  template <class U>
  static U read(const std::byte* at) {
    U value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
};

}  // namespace fedlora
