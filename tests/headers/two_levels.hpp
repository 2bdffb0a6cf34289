// SPDX-License-Identifier: Apache-2.0
// What a unit of one level tells the test that links units of two. Included once by each unit, in a namespace of its
// own.
#include <string>
#include <vector>

#include "fedlora/backend/cpu.hpp"

namespace {

struct Told {
  std::string level;
  float sum = 0;  ///< of 2²⁴, 1 and -2²⁴, eight columns apart: it tells how wide the vectors are that add it
  std::vector<float> values;  ///< of a layer and of attention
};

Told tell() {
  using namespace fedlora;
  Told told{cpu::Level::name, 0, {}};
  std::vector<float> x(32), ones(32, 1.0f);
  x[0] = 16777216.0f;
  x[8] = 1.0f;
  x[16] = -16777216.0f;
  cpu::own_loops<float>.thin_shrink(MatrixView<const float>(x.data(), 1, 32), nullptr,
                                    MatrixView<const float>(ones.data(), 1, 32), 1.0f,
                                    MatrixView<float>(&told.sum, 1, 1), {});

  CpuBackend<float>::Runner run{CpuBackend<float>()};
  const auto filled = [&](Index rows, Index cols, float step) {
    const MatrixView<float> matrix = run.matrix(rows, cols);
    for (Index i = 0; i < matrix.size(); ++i) matrix.data[i] = static_cast<float>(i % 13) * step - 0.4f;
    return matrix;
  };
  const MatrixView<float> q = filled(7, 48, 0.1f), k = filled(7, 48, 0.07f), v = filled(7, 48, 0.05f);
  const MatrixView<float> out = run.matrix(7, 48), normed = run.matrix(7, 48), statistics = run.statistics(7);
  const std::vector<AttentionSpan> spans = {{0, 7, 0, 7, {}}};
  run.attention_forward({3, 3, 16, 0.25, true, 0}, run.place(spans, nullptr, nullptr), q, k, v, out);
  run.norm_forward(NormKind::layer_norm, out, v.row(0), v.row(1), 1e-5, normed, statistics);
  run.activation_forward(Activation::gelu, normed, nullptr, normed);
  told.values.assign(normed.data, normed.data + normed.size());
  return told;
}

}  // namespace
