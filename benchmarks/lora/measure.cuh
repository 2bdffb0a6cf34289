// SPDX-License-Identifier: Apache-2.0
// How a variant is checked, and timed beside the bare products: in every measurement both run, one after the other,
// each as one graph of many passes.
//
//   cold  copies of the data take turns, so many that more than twice the L2 cache passes by between two uses of one.
//         Forward runs through all copies before backward does: backward does not find in the cache what a training
//         step would have driven out of it.
//   hot   every pass has the same data; what the cache can hold stays in it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cases.hpp"
#include "fedlora/core/error.hpp"
#include "fedlora/core/half.hpp"
#include "layers.hpp"
#include "measurement.cuh"
#include "setup.cuh"
#include "timing.cuh"
#include "variants.cuh"

namespace fedlora::benchmarks {

/// How many copies of the data a case wants.
inline Index copies_of(const Case& shape, bool cold, double element_size, std::size_t l2_bytes) {
  if (!cold) return 1;
  const Case bare = shape.bare();
  double least = bare.bytes(element_size);
  if (shape.has_forward() && shape.has_backward())
    least = std::min(bare.forward_bytes(element_size), bare.backward_bytes(element_size));
  return 1 + static_cast<Index>(std::ceil(2.0 * static_cast<double>(l2_bytes) / least));
}

/// A variant, and what it works on.
template <class T, template <class> class Variant>
class Subject {
 public:
  Subject(const Setup& setup, const Case& shape, Index copies)
      : stream_(setup.stream), shape_(shape), place_(setup), variant_(setup) {
    for (Index copy = 0; copy < copies; ++copy) {
      copies_.push_back(make_layers<T>(shape, place_, copy, [](Index ranks) { return Variant<T>::room(ranks); }));
      for (Layer<T>& layer : copies_.back()) variant_.prepare(layer);
    }
  }

  void forward() {
    for (auto& layers : copies_)
      for (Layer<T>& layer : layers) variant_.forward(layer);
  }
  void backward() {
    for (auto& layers : copies_)
      for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) variant_.backward(*layer);
  }
  /// One pass over each copy, and forward even where only backward is measured.
  void whole() {
    forward();
    if (shape_.has_backward()) backward();
  }
  /// What is measured, over each copy.
  void measured() {
    if (shape_.has_forward()) forward();
    if (shape_.has_backward()) backward();
  }

  Recording record(Index sweeps) {
    whole();
    cuda::synchronize(stream_);
    return Recording(stream_, [this, sweeps] {
      for (Index sweep = 0; sweep < sweeps; ++sweep) measured();
    });
  }

  std::vector<Layer<T>>& layers() { return copies_.front(); }

 private:
  cuda::Stream stream_;
  Case shape_;
  DevicePlace place_;
  Variant<T> variant_;
  std::vector<std::vector<Layer<T>>> copies_;
};

/// How far a result may be from that of `Plain`, as a share of the largest: both round S and dS, and what they add up.
template <class T>
double tolerance(cuda::FloatMath math) {
  if constexpr (std::is_same_v<T, Bf16>) return 3e-2;
  if constexpr (std::is_same_v<T, Half>) return 4e-3;
  return math == cuda::FloatMath::tf32 ? 4e-3 : 1e-4;
}

/// \throws CudaError when two runs of the variant differ in a bit, or results differ from those of `Plain`.
template <class T, template <class> class Variant>
void check_variant(const Setup& setup, const Case& shape) {
  Subject<T, Plain> plain(setup, shape, 1);
  Subject<T, Variant> subject(setup, shape, 1);
  DevicePlace place(setup);
  const auto expected = results_of(plain.layers(), shape);
  const auto results = results_of(subject.layers(), shape);
  reset_results(plain.layers(), place);
  plain.whole();
  reset_results(subject.layers(), place);
  subject.whole();
  const auto first = place.copy(results);
  reset_results(subject.layers(), place);
  subject.whole();
  const std::string where = std::string("the variant ") + Variant<T>::name;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::string of = " of " + std::to_string(results[i].size());
    const int bits = place.compare(results[i], first[i]).bits;
    if (bits > 0) fail<CudaError>(where, "the same bits in two runs", std::to_string(bits) + of + " that differ");
    const Difference difference = place.compare(results[i], expected[i]);
    const double error = static_cast<double>(difference.most) / static_cast<double>(difference.largest);
    if (difference.numbers < results[i].size())
      fail<CudaError>(where, "finite results", std::to_string(difference.numbers) + of + " that are");
    if (error > tolerance<T>(setup.math))
      fail<CudaError>(where, "the results of plain products",
                      std::to_string(error) + " times the largest apart from them");
  }
}

/// The bare products, and a variant.
template <class T, template <class> class Variant>
class Pair final : public Measurement {
 public:
  Pair(const Setup& setup, const Case& shape, bool cold)
      : copies_(copies_of(shape, cold, sizeof(T), setup.l2_bytes)),
        sweeps_(cuda::divide_up(setup.fewest_passes, copies_)),
        bare_(setup, shape.bare(), copies_),
        subject_(setup, shape, copies_),
        bare_recording_(bare_.record(sweeps_)),
        recording_(subject_.record(sweeps_)) {
    double spent = 0;
    do {
      const Times times = measure();
      spent += static_cast<double>(passes()) * (times.base + times.adapted);
    } while (spent < setup.warm_up_seconds);
  }

  Times measure() override {
    bare_recording_.launch();
    recording_.launch();
    const double count = static_cast<double>(passes());
    return {bare_recording_.seconds() / count, recording_.seconds() / count};
  }
  double launches() const override { return static_cast<double>(recording_.nodes()) / static_cast<double>(passes()); }
  Index passes() const override { return copies_ * sweeps_; }

 private:
  Index copies_, sweeps_;
  Subject<T, Plain> bare_;
  Subject<T, Variant> subject_;
  Recording bare_recording_, recording_;
};

namespace detail {

/// Calls body.operator()<Variant>() for the one of that name. \throws ConfigError if there is none
template <class T, class Body, template <class> class... V>
void with_variant(VariantList<V...>, const std::string& name, const Body& body) {
  const auto call = [&]<template <class> class One>() {
    if (name != One<T>::name) return false;
    body.template operator()<One>();
    return true;
  };
  if (!(call.template operator()<V>() || ...)) fail<ConfigError>("variant", "one of variants.cuh", name);
}

}  // namespace detail

template <class T>
void check(const Setup& setup, const Case& shape, const std::string& variant) {
  if (variant == base_name) return;
  detail::with_variant<T>(Variants{}, variant,
                          [&]<template <class> class One>() { check_variant<T, One>(setup, shape); });
}

template <class T>
std::unique_ptr<Measurement> prepare(const Setup& setup, const Case& shape, const std::string& variant, bool cold) {
  if (variant == base_name) return std::make_unique<Pair<T, Plain>>(setup, shape.bare(), cold);
  std::unique_ptr<Measurement> result;
  detail::with_variant<T>(Variants{}, variant, [&]<template <class> class One>() {
    result = std::make_unique<Pair<T, One>>(setup, shape, cold);
  });
  return result;
}

}  // namespace fedlora::benchmarks
