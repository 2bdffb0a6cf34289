// SPDX-License-Identifier: Apache-2.0
// The products of whole matrices, which are cuBLAS's: base weights forward and backward, trainable layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/product.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"
#if defined(FEDLORA_CUDA_ON_HOST)
#include "fedlora/backend/cuda/host_blas.cuh"
#else
#include "fedlora/backend/cuda/gpu_blas.cuh"
#endif

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// C = beta · C + bias in every row, without a bias if it is null. `beta == 0` never reads C. A thread has 16 bytes.
template <class T>
struct PresetKernel {
  static constexpr int threads = 256;

  Source<T> c;
  const T* bias = nullptr;  ///< (cols)
  float beta = 0.0f;

  FEDLORA_HOST_DEVICE Index across() const { return divide_up<Index>(c.cols, vector_length<T>); }
  int shared_bytes() const { return 0; }
  Grid grid() const { return {divide_up<Index>(c.rows * across(), threads), 1}; }

  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index at = block.x() * threads + block.thread();
    if (at >= c.rows * across()) return;
    // A division of 64 bits costs more than all the rest.
    const Index i =
        at <= 0xffffffff ? static_cast<std::uint32_t>(at) / static_cast<std::uint32_t>(across()) : at / across();
    const Index j = (at - i * across()) * vector_length<T>;
    const int count = elements_at(c, i, j);
    T* const to = c.data + i * c.stride + j;
    if (c.by_vectors && count == vector_length<T>) {
      Vector<T> vector;
      if (beta != 0.0f) vector = block.load_vector(to);
      unrolled<vector_length<T>>([&]<int E>() { vector.elements[E] = preset(vector.elements[E], j + E); });
      block.store_vector(to, vector);
    } else {
      for (int e = 0; e < count; ++e) to[e] = preset(to[e], j + e);
    }
  }

 private:
  FEDLORA_DEVICE T preset(const T& before, Index j) const {
    float value = bias != nullptr ? static_cast<float>(bias[j]) : 0.0f;
    if (beta != 0.0f) value += beta * static_cast<float>(before);
    return T(value);
  }
};

namespace detail {

inline void check_leading(const char* where, const char* name, Index cols, Index leading) {
  if (leading < cols)
    fail<ShapeError>(where, "rows of " + std::string(name) + " at least " + std::to_string(cols) + " apart",
                     std::to_string(leading));
}

/// Whether rows begin on multiples of 16 bytes.
template <class T>
bool has_aligned_rows(const T* data, Index stride) {
  return Source<const T>(MatrixView<const T>{data, 1, 1, stride}).by_vectors;
}

}  // namespace detail

/// Products in one stream, for one runner at a time; made where the stream's device is current, and gone before the
/// stream. T is float, Bf16 or Half; sums are float32 and rounded once.
///
/// Determinism: cuBLAS promises the same bits in every run of one version on devices of one kind (architecture and
/// number of multiprocessors), provided that no other stream shares the handle and its workspace. Here each Blas has
/// its own, of a fixed size, and atomic additions are not allowed. Another device, version or shape may add in another
/// order, so a row's bits may depend on how many rows there are. Where a matrix begins may matter too: what begins on
/// a multiple of 16 bytes with such rows is computed alike.
class Blas {
 public:
  /// \throws CudaError
  Blas(const DeviceMemory& memory, Stream stream) : stream_(stream), handle_(memory, stream) {}
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  /// C = alpha · op(A) op(B) + beta · C, row-major; op(X) = Xᵀ where it is said to be transposed.
  /// Shapes:    op(A) (m, k), op(B) (k, n), C (m, n), all in device memory; `lda`… from one stored row to the next
  /// C's type:  T, or float for 16-bit operands: gradients that are added up over batches
  /// Overwrites C; `beta == 0` never reads it, and `k == 0` or `alpha == 0` reads neither A nor B. C overlaps neither.
  /// `math` is for float alone: operands rounded to tf32, or multiplied as they are.
  /// \throws ShapeError, CudaError
  template <class T, class C>
  void multiply(bool transpose_a, bool transpose_b, Index m, Index n, Index k, float alpha, const T* a, Index lda,
                const T* b, Index ldb, float beta, C* c, Index ldc, FloatMath math = FloatMath::tf32) {
    static_assert(std::is_same_v<C, T> || std::is_same_v<C, float>);
    constexpr const char* where = "cuda::Blas::multiply";
    if (m < 0 || n < 0 || k < 0)
      fail<ShapeError>(where, "sizes from 0 on", shape_text(m, k) + " by " + shape_text(k, n));
    detail::check_leading(where, "A", transpose_a ? m : k, lda);
    detail::check_leading(where, "B", transpose_b ? k : n, ldb);
    detail::check_leading(where, "C", n, ldc);
    if (m == 0 || n == 0) return;
    if (k == 0 || alpha == 0.0f) return preset<C>({c, m, n, ldc}, nullptr, beta);
    handle_.multiply(
        detail::row_major_product<T, C>(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), math);
  }

  /// y = x Wᵀ + bias, added before the one rounding; null for none.
  /// Shapes:    x (rows, in), w (out, in), bias (out), y (rows, out), all in device memory
  /// Overwrites y without reading what it held; it overlaps nothing else.
  /// Where all rows, and the bias, begin on multiples of 16 bytes and cuBLASLt knows how, it is one kernel; otherwise
  /// y is set to the bias first.
  /// \throws ShapeError, CudaError
  template <class T>
  void multiply_bias(std::type_identity_t<MatrixView<const T>> x, std::type_identity_t<MatrixView<const T>> w,
                     const T* bias, MatrixView<T> y, FloatMath math = FloatMath::tf32) {
    constexpr const char* where = "cuda::Blas::multiply_bias";
    if (w.cols != x.cols)
      fail<ShapeError>(where, "W of " + std::to_string(x.cols) + " columns", shape_text(w.rows, w.cols));
    if (y.rows != x.rows || y.cols != w.rows)
      fail<ShapeError>(where, "y of shape " + shape_text(x.rows, w.rows), shape_text(y.rows, y.cols));
    detail::check_leading(where, "x", x.cols, x.stride);
    detail::check_leading(where, "W", w.cols, w.stride);
    detail::check_leading(where, "y", y.cols, y.stride);
    if (y.rows == 0 || y.cols == 0) return;
    if (bias != nullptr && x.cols > 0 && detail::has_aligned_rows<T>(x.data, x.stride) &&
        detail::has_aligned_rows<T>(w.data, w.stride) && detail::has_aligned_rows<T>(y.data, y.stride) &&
        detail::has_aligned_rows<T>(bias, 0) &&
        handle_.multiply_bias(detail::row_major_product<T, T>(false, true, y.rows, y.cols, x.cols, 1.0f, x.data,
                                                              x.stride, w.data, w.stride, 0.0f, y.data, y.stride),
                              bias, math))
      return;
    if (bias != nullptr) preset<T>(y, bias, 0.0f);
    multiply<T>(false, true, y.rows, y.cols, x.cols, 1.0f, x.data, x.stride, w.data, w.stride,
                bias != nullptr ? 1.0f : 0.0f, y.data, y.stride, math);
  }

  Stream stream() const { return stream_; }

 private:
  template <class C>
  void preset(MatrixView<C> c, const C* bias, float beta) {
    if (bias == nullptr && beta == 1.0f) return;
    PresetKernel<C> kernel;
    kernel.c = Source<C>(c);
    kernel.bias = bias;
    kernel.beta = beta;
    launch(stream_, kernel.grid(), kernel);
  }

  Stream stream_;
  detail::BlasHandle handle_;
};

}  // namespace fedlora::cuda

#endif
