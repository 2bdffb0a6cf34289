// SPDX-License-Identifier: Apache-2.0
// Sizes and views. All matrices are row-major; a view owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "fedlora/core/standard.hpp"

namespace fedlora {

/// Rows, columns, counts and offsets. Signed, so that differences are safe.
using Index = std::int64_t;

/// A row-major matrix in somebody else's memory: element (i, j) is `data[i * stride + j]`.
template <class T>
struct MatrixView {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;  ///< elements from one row to the next, at least `cols`
  /// Room that is this matrix's own: columns behind each row, rows behind the last. What stands there is no part of the
  /// matrix, and operations may write to it. Views of a part of a matrix have none.
  Index spare_cols = 0;
  Index spare_rows = 0;

  constexpr MatrixView() = default;
  constexpr MatrixView(T* data_, Index rows_, Index cols_) : data(data_), rows(rows_), cols(cols_), stride(cols_) {}
  constexpr MatrixView(T* data_, Index rows_, Index cols_, Index stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}

  /// A mutable view is also a view of constants.
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  constexpr MatrixView(const MatrixView<U>& other)  // NOLINT: implicit on purpose, as T* to const T* is
      : data(other.data),
        rows(other.rows),
        cols(other.cols),
        stride(other.stride),
        spare_cols(other.spare_cols),
        spare_rows(other.spare_rows) {}

  constexpr T* row(Index i) const { return data + i * stride; }
  constexpr T& operator()(Index i, Index j) const { return data[i * stride + j]; }
  constexpr bool empty() const { return data == nullptr; }
  constexpr Index size() const { return rows * cols; }

  /// The first `count` columns.
  constexpr MatrixView left(Index count) const { return {data, rows, count, stride}; }
  /// Rows [begin, end).
  constexpr MatrixView rows_between(Index begin, Index end) const {
    return {data + begin * stride, end - begin, cols, stride};
  }
};

/// "(rows, cols)", for messages.
inline std::string shape_text(Index rows, Index cols) {
  return "(" + std::to_string(rows) + ", " + std::to_string(cols) + ")";
}

}  // namespace fedlora
