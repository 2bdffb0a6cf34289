// SPDX-License-Identifier: Apache-2.0
// A weight that nobody changes: a typed block of somebody's memory, mapped from a file or owned.
#pragma once

#include <memory>
#include <string>
#include <type_traits>

#include "fedlora/core/dtype.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "fedlora/core/shape.hpp"

namespace fedlora {

/// The dtype of a C++ scalar that backends compute in.
template <class T>
requires(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, Bf16> || std::is_same_v<T, Half>)
inline constexpr Dtype dtype_of = std::is_same_v<T, double>  ? Dtype::f64
                                  : std::is_same_v<T, float> ? Dtype::f32
                                  : std::is_same_v<T, Half>  ? Dtype::f16
                                                             : Dtype::bf16;

/// A row-major frozen matrix (a vector has one row). Shared by all clients and threads; its storage type is a value,
/// apart from the scalar that a backend computes in.
struct FrozenMatrix {
  Dtype dtype = Dtype::f32;
  Index rows = 0;
  Index cols = 0;
  const void* data = nullptr;
  std::shared_ptr<const void> owner;

  bool empty() const { return data == nullptr; }

  /// As scalars of T. \throws ShapeError when it is stored in another type.
  template <class T>
  MatrixView<const T> view() const {
    if (dtype != dtype_of<T>)
      fail<ShapeError>("frozen matrix " + shape_text(rows, cols), std::string(dtype_name(dtype_of<T>)),
                       std::string(dtype_name(dtype)));
    return {static_cast<const T*>(data), rows, cols};
  }
};

}  // namespace fedlora
