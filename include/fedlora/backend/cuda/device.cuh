// SPDX-License-Identifier: Apache-2.0
// The thin layer between kernels and what they run on. Compiled by nvcc, a kernel runs on a GPU; compiled by an
// ordinary compiler with FEDLORA_CUDA_ON_HOST defined, the same source runs on the host, slowly, with every mistake of
// synchronisation or shared memory made visible (host_block.cuh).
//
// A kernel is a value: its members are its parameters. It has
//   static constexpr int threads        threads of a block, a multiple of 32
//   int shared_bytes() const            shared memory of a block
//   template <class Block> void operator()(Block& block) const
//                                       what one thread does; marked FEDLORA_DEVICE
// and `launch(stream, grid, kernel)` runs it. nvcc compiles a kernel in every file that launches it; with
// FEDLORA_CUDA_COMPILED it is expected in another file, and any compiler will do for what calls the operations here. A
// kernel of one's own in such a file is launched by `launch_own`, and needs nvcc. What a thread asks of its `block`:
//   thread() threads() lane() warp()    where it is in its block
//   x() y()                             where its block is in the grid
//   shared<T>(count)                    the next `count` elements of shared memory, from a multiple of 16 bytes; every
//                                       thread asks for the same in the same order. A T*, or what behaves like one
//   restart_shared()                    `shared` begins again at the start, over what it gave before; after a barrier
//   sync()                              all threads of the block meet
//   sync_warp()                         all lanes of the warp meet
//   shuffle(v, lane) shuffle_xor(v, mask) shuffle_down(v, distance)
//                                       the value of another lane of the warp
//   mma<T>(c, a, b)                     c += a b over the warp, fragments as in fragment.cuh; T is Bf16, Half, or float
//                                       for tf32 operands, whose low 13 bits do not count
//   load_matrices(words, row)           ldmatrix.x4: four (8, 8) matrices of 16-bit elements from shared memory; lane l
//                                       names row l % 8 of matrix l / 8, 16 bytes on a multiple of 16. words[i] are
//                                       elements (lane / 4, 2 (lane % 4)) and the next of matrix i. For float the rows
//                                       are 4 elements, and words[i] is element (lane / 4, lane % 4)
//   load_matrices_transposed(words, row)  the same of the transposed matrices; 16-bit elements only
//   copy_async(to, from, bytes)         cp.async of 16 bytes to shared memory, of which the first `bytes` are read and
//                                       the rest become zero; both addresses are multiples of 16
//   copy_async_if(exists, to, from)     the same of 16 bytes, or of none, when `from` may point anywhere; in fewer
//                                       instructions than a number of bytes takes
//   commit_copies()                     what this thread has begun becomes one group
//   wait_copies<Pending>()              all its groups but the latest `Pending` have arrived, for this thread alone
//   load_vector(from), store_vector(to, v)   16 bytes of global memory, on a multiple of 16
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"
#if defined(FEDLORA_CUDA_ON_HOST)
#include "fedlora/backend/cuda/host_block.cuh"
#else
#include "fedlora/backend/cuda/gpu_block.cuh"
#endif

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Runs the kernel on every block of the grid, after whatever the stream holds already. On a GPU it returns before it
/// has run; on the host blocks run one after another, in an order drawn from the stream's seed. An empty grid is
/// nothing to do. \throws CudaError if the launch is refused, KernelFault on the host
#if defined(FEDLORA_CUDA_COMPILED)
template <class Kernel>
void launch(Stream stream, Grid grid, const Kernel& kernel);
#else
template <class Kernel>
[[gnu::used, gnu::noinline]] void launch(Stream stream, Grid grid, const Kernel& kernel) {  // kept for others' files
  launch_own(stream, grid, kernel);
}
#endif

}  // namespace fedlora::cuda

#endif
