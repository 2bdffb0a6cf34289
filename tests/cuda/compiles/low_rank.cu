// SPDX-License-Identifier: Apache-2.0
// The low-rank kernels and the thin layer, in every type: what nvcc_compiles.sh compiles.
#include "fedlora/backend/cuda/low_rank_augmented.cuh"
#include "fedlora/backend/cuda/low_rank_backward.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "fedlora/backend/cuda/low_rank_masked.cuh"

namespace fedlora::cuda {

template <class T>
void instantiate(MatrixView<T> m, const LowRankTerm<T, float>& term, std::span<std::byte> workspace, Stream stream,
                 FloatMath math) {
  low_rank_shrink<T>(m, term, m, workspace, stream, math);
  low_rank_expand<T>(m, term, m, stream, math);
  low_rank_backward<T>(m, m, m, term, m, workspace, stream, math);
  fill_augmented<T>(Augmented::by_columns, m, {}, m, stream);
  refresh_augmented<T>(Augmented::by_rows, 1, 1, {}, m, stream);
  masked_add<T>(m, term.dropout, term.row_numbers, m, stream);
}
template void instantiate<float>(MatrixView<float>, const LowRankTerm<float>&, std::span<std::byte>, Stream, FloatMath);
template void instantiate<Bf16>(MatrixView<Bf16>, const LowRankTerm<Bf16, float>&, std::span<std::byte>, Stream,
                                FloatMath);
template void instantiate<Half>(MatrixView<Half>, const LowRankTerm<Half, float>&, std::span<std::byte>, Stream,
                                FloatMath);

}  // namespace fedlora::cuda

namespace {

/// The parts of the thin layer that no kernel above calls.
struct Primitives {
  static constexpr int threads = 32;
  int* out;
  int shared_bytes() const { return 0; }
  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    block.sync_warp();
    const int value = block.shuffle(block.lane(), 3) + block.shuffle_xor(block.lane(), 1);
    out[block.thread()] = value + block.shuffle_down(value, 2) + block.threads();
  }
};

}  // namespace

void launch_primitives(int* out, fedlora::cuda::Stream stream) {
  fedlora::cuda::launch(stream, {1, 1}, Primitives{out});
}
