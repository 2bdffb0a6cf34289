// SPDX-License-Identifier: Apache-2.0
// What the public functions of every family of kernels check once, and the numbers that all of them plan with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/backend/cuda/tile.cuh"
#include "fedlora/core/error.hpp"
#include "fedlora/core/shape.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Blocks that a launch should have at least, so that every multiprocessor of a large GPU has two. A constant: where
/// work is split must depend on shapes alone, never on the device.
inline constexpr Index enough_blocks = 264;

namespace detail {

/// Calls body with the way to multiply, as a constant. There is one only for 16-bit types.
template <class T, class Body>
void with_math(FloatMath math, Body&& body) {
  if constexpr (sizeof(T) == 4) {
    if (math == FloatMath::float32) return body(std::integral_constant<FloatMath, FloatMath::float32>{});
  }
  body(std::integral_constant<FloatMath, FloatMath::tf32>{});
}

inline void check_shape(const char* where, const char* name, Index rows, Index cols, Index got_rows, Index got_cols) {
  if (rows != got_rows || cols != got_cols)
    fail<ShapeError>(where, std::string(name) + " of shape " + shape_text(rows, cols), shape_text(got_rows, got_cols));
}

inline void check_rows(const char* where, Index begin, Index end, Index rows) {
  if (begin < 0 || end < begin || end > rows)
    fail<ShapeError>(where, "rows within [0, " + std::to_string(rows) + ")",
                     "[" + std::to_string(begin) + ", " + std::to_string(end) + ")");
}

inline float* workspace_floats(const char* where, std::span<std::byte> workspace, std::size_t needed) {
  if (workspace.size() < needed || reinterpret_cast<std::uintptr_t>(workspace.data()) % 16 != 0)
    fail<ShapeError>(where, std::to_string(needed) + " bytes of workspace on a multiple of 16",
                     std::to_string(workspace.size()));
  return reinterpret_cast<float*>(workspace.data());
}

}  // namespace detail

}  // namespace fedlora::cuda

#endif
