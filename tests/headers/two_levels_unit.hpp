// SPDX-License-Identifier: Apache-2.0
// What every unit of the test computes, each compiled for a level of its own.
#pragma once

#include <vector>

#include "fedlora/backend/cpu.hpp"
#include "fedlora/optim/adamw.hpp"
#include "two_levels.hpp"

namespace {

Told tell() {
  using namespace fedlora;
  Told told{cpu::Level::name, 0, {}};
  std::vector<float> x(32), ones(32, 1.0f);
  x[0] = 16777216.0f;
  x[4] = x[8] = 1.0f;
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
  const MatrixView<float> product = run.matrix(7, 7);
  run.dense_forward(normed, v, nullptr, product);
  AdamW::State<float> state;
  std::vector<float> weights(product.data, product.data + product.size());
  AdamW().step(state, weights, weights, 1e-2);
  told.values.assign(normed.data, normed.data + normed.size());
  told.values.insert(told.values.end(), weights.begin(), weights.end());
  return told;
}

}  // namespace
