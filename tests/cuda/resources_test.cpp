// SPDX-License-Identifier: Apache-2.0
// The dynamic shared memory of the hottest kernels for BERT-base (768 / 3072, heads of 64) with LoRA of rank 16 and
// dropout, in bfloat16: at most 1.1 times what resources.txt says. Their registers are looked at by resources.sh.
#include <doctest/doctest.h>

#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "fedlora/backend/cuda/attention_backward.cuh"
#include "fedlora/backend/cuda/attention_forward.cuh"
#include "fedlora/backend/cuda/low_rank_backward.cuh"
#include "fedlora/backend/cuda/low_rank_forward.cuh"
#include "fedlora/backend/cuda/norm.cuh"
#include "fedlora/backend/cuda/pointwise.cuh"

namespace fedlora::tests {
namespace {

using namespace fedlora::cuda;

/// Bytes by the kernel's name, from lines of registers, static and dynamic shared memory, and the name.
std::map<std::string, int> committed() {
  std::map<std::string, int> bytes;
  std::ifstream file(FEDLORA_TEST_DIR "/cuda/resources.txt");
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream columns(line);
    int registers = 0, fixed = 0, dynamic = 0;
    std::string name;
    columns >> registers >> fixed >> dynamic >> std::ws;
    std::getline(columns, name);
    bytes[name] = dynamic;
  }
  return bytes;
}

/// Of so many terms of rank 16; a chunk each where `Apart`.
RankTiles ranks_of(std::size_t terms, bool apart = false) {
  const std::vector<TermShape> shapes(terms, TermShape{768, 16});
  return apart ? RankTiles(shapes, 0) : RankTiles(shapes);
}

template <int Tiles>
int shrink_bytes(std::size_t terms) {
  ShrinkKernel<Bf16, FloatMath::tf32, Tiles, false> kernel;
  kernel.ranks = ranks_of(terms);
  kernel.drops = true;
  return kernel.shared_bytes();
}

template <int Tiles, bool Apart>
int pass_bytes(std::size_t terms) {
  AdapterPassKernel<Bf16, FloatMath::tf32, Tiles, Apart> kernel;
  kernel.ranks = ranks_of(terms, Apart);
  kernel.drops = !Apart;
  kernel.projects = Apart;
  return kernel.shared_bytes();
}

template <bool Backward>
int expand_bytes() {
  ExpandKernel<Bf16, FloatMath::tf32, Backward> kernel;
  typename ExpandKernel<Bf16, FloatMath::tf32, Backward>::Term term;
  term.s.cols = 16;
  term.dropout = Backward ? Dropout(RandomKey{}, 0.1) : Dropout();
  kernel.add(term);
  return kernel.shared_bytes();
}

}  // namespace

TEST_CASE("the hottest kernels have no more shared memory than they had") {
  const std::map<std::string, int> now = {
      {"ShrinkKernel<Bf16, (FloatMath)0, 2, false>", shrink_bytes<2>(1)},
      {"ShrinkKernel<Bf16, (FloatMath)0, 8, false>", shrink_bytes<8>(3)},
      {"AdapterPassKernel<Bf16, (FloatMath)0, 2, true>", pass_bytes<2, true>(3)},
      {"AdapterPassKernel<Bf16, (FloatMath)0, 2, false>", pass_bytes<2, false>(1)},
      {"AdapterPassKernel<Bf16, (FloatMath)0, 8, false>", pass_bytes<8, false>(3)},
      {"ExpandKernel<Bf16, (FloatMath)0, false>", expand_bytes<false>()},
      {"ExpandKernel<Bf16, (FloatMath)0, true>", expand_bytes<true>()},
      {"AttentionForwardKernel<Bf16, (FloatMath)0, 64>",
       AttentionForwardKernel<Bf16, FloatMath::tf32, 64>{}.shared_bytes()},
      {"AttentionQueryGradients<Bf16, (FloatMath)0, 64>",
       AttentionQueryGradients<Bf16, FloatMath::tf32, 64>{}.shared_bytes()},
      {"AttentionKeyGradients<Bf16, (FloatMath)0, 64>",
       AttentionKeyGradients<Bf16, FloatMath::tf32, 64>{}.shared_bytes()},
      {"NormForwardKernel<Bf16, 32, 4>", NormForwardKernel<Bf16, 32, 4>{}.shared_bytes()},
      {"NormBackwardKernel<Bf16, 32, 4>", NormBackwardKernel<Bf16, 32, 4>{}.shared_bytes()},
      {"PointwiseKernel<Bf16, elementwise::ActivationBackward<(Activation)0> >",
       PointwiseKernel<Bf16, elementwise::ActivationBackward<Activation::gelu>>{}.shared_bytes()},
  };
  const std::map<std::string, int> before = committed();
  CHECK(before.size() == now.size());
  for (const auto& [kernel, bytes] : now) {
    const auto row = before.find(kernel);
    if (row == before.end()) {
      FAIL_CHECK(kernel << ": not in resources.txt; it has " << bytes << " bytes of dynamic shared memory");
      continue;
    }
    const int old = row->second;
    if (bytes * 10 > old * 11)
      FAIL_CHECK(kernel << ": bytes of dynamic shared memory " << old << " -> " << bytes);
    else if (bytes * 11 < old * 10)
      MESSAGE(kernel << ": bytes of dynamic shared memory " << old << " -> " << bytes
                     << ", so much fewer that resources.txt should say so");
  }
}

}  // namespace fedlora::tests
