// SPDX-License-Identifier: Apache-2.0
// Low-rank terms forward, and what makes them part of the base product in FEDLORA_KERNEL_TYPE.
#include "fedlora/backend/cuda/low_rank_augmented.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "fedlora/backend/cuda/low_rank_masked.cuh"

namespace fedlora::cuda {

using T = FEDLORA_KERNEL_TYPE;

template void low_rank_shrink_group<T>(MatrixView<const T>, std::span<const ShrinkTerm<T>>, std::span<std::byte>,
                                       Stream, FloatMath);
template void low_rank_expand<T>(MatrixView<const T>, const LowRankTerm<T, float>&, MatrixView<T>, Stream, FloatMath);
template void fill_augmented<T>(Augmented, MatrixView<const T>, std::span<const AugmentedPiece<T>>, MatrixView<T>,
                                Stream);
template void masked_add<T>(MatrixView<const T>, const Dropout&, const std::int32_t*, MatrixView<T>, Stream);

}  // namespace fedlora::cuda
