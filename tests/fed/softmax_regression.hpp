// SPDX-License-Identifier: Apache-2.0
// The smallest model that can be trained by a federation: softmax regression on counts of tokens, with the weight
// matrix as a low-rank product and a bias. Its gradients are written out, so that tests of fed/ need no Transformer.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "fedlora/core/random.hpp"
#include "fedlora/core/step.hpp"
#include "fedlora/data/dataset.hpp"
#include "fedlora/lora/adapter.hpp"

namespace fedlora::tests {

/// Counts its live thread scopes, so that a test can see that every worker holds one while it trains.
struct FakeBackend {
  struct ThreadScope {
    ThreadScope() { ++live; }
    ThreadScope(const ThreadScope&) = delete;
    ThreadScope& operator=(const ThreadScope&) = delete;
    ~ThreadScope() { --live; }
    static inline thread_local int live = 0;
  };
};

/// logits = scale · B A dropout(counts) + bias, with counts of tokens in [0, vocabulary).
template <class T>
class SoftmaxRegression {
 public:
  using Scalar = T;
  using Backend = FakeBackend;
  struct Workspace {
    explicit Workspace(const Backend&) {}
    std::vector<double> counts, hidden, logits;
  };
  struct Options {
    Index vocabulary = 12;
    Index classes = 3;
    Index rank = 2;
    double dropout = 0;
  };

  explicit SoftmaxRegression(Options options = {}) : options_(options) {
    auto layout = std::make_shared<AdapterLayout>();
    layout->config.rank = options.rank;
    layout->config.alpha = 4;
    layout->base_model = "softmax-regression";
    layout->target_modules = {"linear"};
    layout->modules_to_save = {"bias"};
    layout->add_site("linear", options.vocabulary, options.classes, options.rank, 4);
    layout->add_saved("bias.weight", {options.classes});
    layout_ = std::move(layout);
  }

  const std::shared_ptr<const AdapterLayout>& layout() const { return layout_; }
  const Backend& backend() const { return backend_; }
  Index loss_count(const Dataset&, std::span<const Index> examples) const {
    return static_cast<Index>(examples.size());
  }

  Adapter<T> initial_adapter(std::uint64_t seed) const {
    Adapter<T> adapter(layout_);
    RandomSequence random(derive_key(seed, Purpose::initialise_adapter));
    for (T& value : adapter.values()) value = static_cast<T>(0.3 * random.normal());
    return adapter;
  }

  double accumulate_gradient(Workspace& ws, const Dataset& data, std::span<const Index> examples,
                             std::span<const T> parameters, std::span<T> gradient, double weight,
                             const StepAddress& at) const {
    if (Backend::ThreadScope::live == 0) ++unscoped_calls;
    const Index vocabulary = options_.vocabulary, classes = options_.classes, rank = options_.rank;
    const AdapterSite& site = layout_->sites[0];
    const Index bias = layout_->saved[0].offset;
    const auto p = [&](Index i) { return static_cast<double>(parameters[static_cast<std::size_t>(i)]); };
    const auto add = [&](Index i, double g) { gradient[static_cast<std::size_t>(i)] += static_cast<T>(g); };
    double loss_sum = 0;
    for (std::size_t e = 0; e < examples.size(); ++e) {
      const Index example = examples[e];
      ws.counts.assign(static_cast<std::size_t>(vocabulary), 0.0);
      for (Index i = data.offsets[static_cast<std::size_t>(example)];
           i < data.offsets[static_cast<std::size_t>(example) + 1]; ++i)
        ws.counts[static_cast<std::size_t>(data.tokens[static_cast<std::size_t>(i)])] += 1.0;
      if (options_.dropout > 0) {
        RandomSequence random(derive_key(at.seed, Purpose::adapter_dropout, at.round, at.client, at.step, at.micro, e));
        for (double& x : ws.counts) x = random.uniform() < options_.dropout ? 0.0 : x / (1.0 - options_.dropout);
      }
      ws.hidden.assign(static_cast<std::size_t>(rank), 0.0);
      for (Index r = 0; r < rank; ++r)
        for (Index v = 0; v < vocabulary; ++v)
          ws.hidden[static_cast<std::size_t>(r)] +=
              p(site.a_offset + r * vocabulary + v) * ws.counts[static_cast<std::size_t>(v)];
      ws.logits.assign(static_cast<std::size_t>(classes), 0.0);
      double largest = -1e300;
      for (Index c = 0; c < classes; ++c) {
        double& logit = ws.logits[static_cast<std::size_t>(c)];
        logit = p(bias + c);
        for (Index r = 0; r < rank; ++r)
          logit += site.scale * p(site.b_offset + c * rank + r) * ws.hidden[static_cast<std::size_t>(r)];
        largest = std::max(largest, logit);
      }
      double sum = 0;
      for (const double logit : ws.logits) sum += std::exp(logit - largest);
      const auto label = static_cast<std::size_t>(data.labels[static_cast<std::size_t>(example)]);
      loss_sum += largest + std::log(sum) - ws.logits[label];
      for (Index c = 0; c < classes; ++c) {
        const double d = weight * (std::exp(ws.logits[static_cast<std::size_t>(c)] - largest) / sum -
                                   (static_cast<std::size_t>(c) == label ? 1.0 : 0.0));
        add(bias + c, d);
        for (Index r = 0; r < rank; ++r) {
          add(site.b_offset + c * rank + r, site.scale * d * ws.hidden[static_cast<std::size_t>(r)]);
          for (Index v = 0; v < vocabulary; ++v)
            add(site.a_offset + r * vocabulary + v,
                site.scale * d * p(site.b_offset + c * rank + r) * ws.counts[static_cast<std::size_t>(v)]);
        }
      }
    }
    return loss_sum;
  }

  struct Score {
    Index examples = 0;
    double loss = 0;
  };
  Score evaluate(const Adapter<T>& adapter, const Dataset& data, int) const {
    Workspace ws(backend_);
    std::vector<T> gradient(adapter.values().size());
    std::vector<Index> all(static_cast<std::size_t>(data.size()));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<Index>(i);
    return {data.size(),
            accumulate_gradient(ws, data, all, adapter.values(), gradient, 0.0, {}) / static_cast<double>(data.size())};
  }

  /// Calls of accumulate_gradient that came from a thread without a ThreadScope.
  static inline std::atomic<int> unscoped_calls{0};

 private:
  Options options_;
  Backend backend_;
  std::shared_ptr<const AdapterLayout> layout_;
};

/// Examples whose tokens hint at their label.
inline Dataset toy_dataset(Index examples, Index vocabulary = 12, Index classes = 3, std::uint64_t seed = 5) {
  Dataset data;
  RandomSequence random(derive_key(seed, Purpose::user));
  for (Index e = 0; e < examples; ++e) {
    const auto label = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(classes)));
    std::vector<std::int32_t> tokens;
    for (std::uint64_t n = 2 + random.below(5); n > 0; --n)
      tokens.push_back(random.uniform() < 0.6
                           ? label
                           : static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocabulary))));
    data.append(tokens, std::vector<std::int32_t>(tokens.size(), 0));
    data.labels.push_back(label);
  }
  return data;
}

/// Examples 0 … n−1 dealt to clients in runs of growing length: client k has about (k + 1) shares.
inline std::vector<std::vector<Index>> toy_partition(Index examples, Index clients) {
  std::vector<std::vector<Index>> parts(static_cast<std::size_t>(clients));
  const Index shares = clients * (clients + 1) / 2;
  Index next = 0;
  for (Index k = 0; k < clients; ++k) {
    const Index end = k + 1 == clients ? examples : next + examples * (k + 1) / shares;
    for (; next < end; ++next) parts[static_cast<std::size_t>(k)].push_back(next);
  }
  return parts;
}

/// Whether two adapters hold the same values, bit by bit.
template <class T>
bool same_bits(const Adapter<T>& a, const Adapter<T>& b) {
  return std::memcmp(a.values().data(), b.values().data(), a.values().size_bytes()) == 0;
}

}  // namespace fedlora::tests
