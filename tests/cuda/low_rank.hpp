// SPDX-License-Identifier: Apache-2.0
// What the tests of low-rank kernels share.
#pragma once

#include "cuda/device_matrix.hpp"

namespace fedlora::tests {

/// A low-rank term over the rows [begin, end) of a batch.
struct LowRankCase {
  Index rows, in, out, rank, begin, end;
  double dropout = 0;
  Rows kind = Rows::aligned;
};

template <class T>
MatrixView<T> columns_of(MatrixView<T> view, Index begin, Index count) {
  return {view.data + begin, view.rows, count, view.stride};
}

}  // namespace fedlora::tests
