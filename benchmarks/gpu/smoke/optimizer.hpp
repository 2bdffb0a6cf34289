// SPDX-License-Identifier: Apache-2.0
// AdamW and SGD over flat arrays, the norm that clips, and the loss scale.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "fedlora/backend/cuda/optimizer.cuh"

namespace fedlora::smoke {

/// Two clients: the first trains with a loss scale, the second begins where no vector does. A step by the formulas.
struct Training {
  struct Client {
    Index begin, end;
    double rate, scale, norm = 0;
    bool finite = true;
  };
  Values weights, first, second, start;
  std::vector<Client> clients;
  double mu = 0, clip = 0;

  /// The gradient of element k, as the step sees it.
  double gradient(const Client& client, const Values& given, Index k) const {
    const double g = given(0, k) / client.scale + mu * (weights(0, k) - start(0, k));
    return clip > 0 ? g * std::min(1.0, clip / (client.norm + 1e-6)) : g;
  }
  void find_norms(const Values& given) {
    for (Client& client : clients) {
      double sum = 0;
      for (Index k = client.begin; k < client.end; ++k) {
        const double g = given(0, k) / client.scale + mu * (weights(0, k) - start(0, k));
        sum += g * g;
      }
      client.norm = std::sqrt(sum);
      client.finite = std::isfinite(sum);
    }
  }
};

template <class T>
void check_optimizer(Check& check) {
  const Shape& shape = check.shape;
  const Gpu& gpu = check.gpu;
  const cuda::Stream stream = gpu.stream();
  const Index size = shape.parameters;
  const Index cut = size / 3 + 5;
  const Values zero(1, size);
  const auto with = [&](const std::string& name, bool clients, double mu, double clip, double momentum) {
    const bool adam = momentum < 0;
    Training reference;
    reference.weights = random<float>(1, size, 51);
    reference.start = random<float>(1, size, 52);
    reference.first = reference.second = zero;
    reference.mu = mu;
    reference.clip = clip;
    if (clients)
      reference.clients = {{0, cut, 1.0, 8.0}, {cut, size, 0.5, 1.0}};
    else
      reference.clients = {{0, size, 1.0, 8.0}};
    Matrix<float> weights(gpu, reference.weights, shape.layout);
    const Matrix<float> start(gpu, reference.start, shape.layout);
    Matrix<float> first(gpu, 1, size, shape.layout),
        second(gpu, 1, size, shape.layout);  // read from the second step on
    Matrix<T> shadow(gpu, 1, size, shape.layout);
    std::vector<cuda::StepState> begun(reference.clients.size());
    std::vector<cuda::StepSegment> table;
    for (std::size_t c = 0; c < begun.size(); ++c) {
      const Training::Client& client = reference.clients[c];
      begun[c].loss_scale = client.scale;
      table.push_back({client.begin, client.end, client.rate, static_cast<std::int32_t>(c)});
    }
    const Table<cuda::StepState> states(gpu, begun), record(gpu, std::vector<cuda::StepState>(1));
    const Table<cuda::StepSegment> on_table(gpu, table);
    const cuda::StepSegments segments =
        clients ? cuda::StepSegments{on_table.data(), 2, std::max(cut, size - cut)} : cuda::StepSegments::whole(size);
    const cuda::DeviceBuffer work = workspace(gpu, cuda::gradient_norm_workspace(segments));
    const cuda::AdamWParameters adamw{.lr = 0.01, .eps = 1e-3, .weight_decay = 0.2};
    const cuda::SgdParameters sgd{
        .lr = 0.1, .momentum = std::max(momentum, 0.0), .weight_decay = 0.02, .nesterov = momentum > 0};
    for (int step = 1; step <= 3; ++step) {
      Values g = random<float>(1, size, 60 + static_cast<std::uint64_t>(step), 2);
      if (step == 2) g(0, 1) = std::numeric_limits<double>::infinity();  // the first client leaves this step out
      const Matrix<float> gradient(gpu, g, shape.layout);
      cuda::StepArrays<T> arrays;
      arrays.weights = weights.data();
      arrays.gradient = gradient.data();
      arrays.shadow = shadow.data();
      arrays.start = start.data();
      arrays.mu = mu;
      arrays.clip_norm = clip;
      cuda::gradient_norm<T>(arrays, segments, states.data(), work.bytes(), stream);
      if (adam)
        cuda::adamw_step<T>(adamw, arrays, first.data(), second.data(), segments, states.data(), stream);
      else
        cuda::sgd_step<T>(sgd, arrays, momentum > 0 ? first.data() : nullptr, segments, states.data(), stream);
      cuda::update_scale(cuda::LossScaling{}, segments, states.data(), stream);

      reference.find_norms(g);
      const std::vector<cuda::StepState> found = states.get();
      for (std::size_t c = 0; c < found.size(); ++c) {
        Training::Client& client = reference.clients[c];
        const std::string who = name + ", step " + std::to_string(step) + ", client " + std::to_string(c);
        check.value(who + ", finite", found[c].finite, client.finite, 0);
        check.value(who + ", norm", found[c].norm, client.norm, 1e-6);
        if (!client.finite) {
          client.scale *= 0.5;
        } else {
          const std::int64_t done = step - (step == 3 && c == 0 ? 1 : 0);
          check.value(who + ", steps", static_cast<double>(found[c].steps_done), static_cast<double>(done), 0);
          for (Index k = client.begin; k < client.end; ++k) {
            double& w = reference.weights(0, k);
            double& m = reference.first(0, k);
            double& v = reference.second(0, k);
            double of_k = reference.gradient(client, g, k);
            if (adam) {
              const double lr = adamw.lr * client.rate;
              w *= 1 - lr * adamw.weight_decay;
              m += (1 - adamw.beta1) * (of_k - m);
              v = adamw.beta2 * v + (1 - adamw.beta2) * of_k * of_k;
              const double t = static_cast<double>(done);
              w -= lr / (1 - std::pow(adamw.beta1, t)) * m /
                   (std::sqrt(v) / std::sqrt(1 - std::pow(adamw.beta2, t)) + adamw.eps);
            } else {
              of_k += sgd.weight_decay * w;
              m = done == 1 ? of_k : sgd.momentum * m + of_k;
              w -= sgd.lr * client.rate * (momentum > 0 ? of_k + sgd.momentum * m : of_k);
            }
          }
        }
        check.value(who + ", scale", found[c].loss_scale, client.scale, 0);
      }
    }
    cuda::record_step(states.data(), record.data(), stream);
    check.value(name + ", record", record.get()[0].norm, states.get()[0].norm, 0);
    check.matrix(name + ", weights", weights, 1e-5,
                 [&](Index, double* to) { std::copy_n(reference.weights.data.begin(), size, to); });
    check.matrix(name + ", rounded weights", shadow, check.tolerance<T>(),
                 [&](Index, double* to) { std::copy_n(reference.weights.data.begin(), size, to); });
  };
  with("AdamW", false, 0, 0, -1);
  with("AdamW of two clients, proximal, clipped", true, 0.1, 0.5, -1);
  with("SGD", false, 0, 0, 0);
  with("SGD of two clients, momentum, clipped", true, 0, 0.5, 0.9);
}

}  // namespace fedlora::smoke
