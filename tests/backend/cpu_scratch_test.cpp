// SPDX-License-Identifier: Apache-2.0
// What the CPU's loops are lent: nothing of what lies in the scratch reaches a result, nothing is written behind it;
// and what is dropped is zero whatever it was.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "fedlora/backend/cpu/arena.hpp"
#include "fedlora/backend/cpu/loops.hpp"
#include "fedlora/core/random.hpp"

namespace fedlora::tests {
namespace {

template <class T>
std::vector<T> random_values(Index size, std::uint64_t seed) {
  RandomSequence random(derive_key(seed, Purpose::user));
  std::vector<T> values(static_cast<std::size_t>(size));
  for (T& value : values) value = static_cast<T>(random.normal());
  return values;
}

/// out, dq, dk and dv of one sequence, one after another, with a scratch of exactly what is asked for, full of `fill`.
template <class T>
std::vector<T> attention_with(const AttentionShape& shape, Index length, T fill) {
  const cpu::Loops<T>& loops = cpu::own_loops<T>;
  const Index width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
  const auto q = random_values<T>(length * width, 1), k = random_values<T>(length * kv_width, 2);
  const auto v = random_values<T>(length * kv_width, 3), d_out = random_values<T>(length * width, 4);
  std::vector<T> results(static_cast<std::size_t>(2 * length * (width + kv_width)));
  const MatrixView<T> out(results.data(), length, width), dq(out.data + out.size(), length, width);
  const MatrixView<T> dk(dq.data + dq.size(), length, kv_width), dv(dk.data + dk.size(), length, kv_width);
  const auto rows = [&](const std::vector<T>& values, Index cols) {
    return MatrixView<const T>(values.data(), length, cols);
  };
  AttentionSpan span;
  span.query_end = span.key_end = length;
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(length));
  std::iota(numbers.begin(), numbers.end(), 0);
  constexpr T behind = T(12345);
  for (const bool backward : {false, true}) {
    const Index size = loops.attention_scratch(shape, length, length, backward);
    cpu::Arena<T> arena;
    T* const scratch = arena.take(size + 64);
    std::fill_n(scratch, size, fill);
    std::fill_n(scratch + size, 64, behind);
    if (backward)
      loops.attention_backward(shape, std::span(&span, 1), rows(q, width), rows(k, kv_width), rows(v, kv_width),
                               nullptr, numbers.data(), rows(d_out, width), dq, dk, dv, scratch);
    else
      loops.attention_forward(shape, std::span(&span, 1), rows(q, width), rows(k, kv_width), rows(v, kv_width), nullptr,
                              numbers.data(), out, scratch);
    CHECK(std::count(scratch + size, scratch + size + 64, behind) == 64);
  }
  return results;
}

}  // namespace

TEST_CASE_TEMPLATE("attention reads nothing of its scratch that it has not written, and stays within", T, float,
                   double) {
  for (const Index head_dim : {1, 3, 8, 17, 40})
    for (const Index length : {1, 2, 5, 8, 17, 31, 33, 49, 66})
      for (const bool causal : {false, true}) {
        CAPTURE(head_dim);
        CAPTURE(length);
        CAPTURE(causal);
        const AttentionShape shape{4, 2, head_dim, 0.5, causal, 0};
        const auto clean = attention_with<T>(shape, length, T(0));
        const auto dirty = attention_with<T>(shape, length, std::numeric_limits<T>::quiet_NaN());
        CHECK(std::all_of(clean.begin(), clean.end(), [](T value) { return std::isfinite(value); }));
        CHECK(clean == dirty);
      }
}

TEST_CASE_TEMPLATE("what dropout drops is zero, infinite or not", T, float, double) {
  const Dropout dropout(derive_key(7, Purpose::user), 0.5);
  for (const Index size : {1, 3, 16, 63, 64, 100, 200}) {
    CAPTURE(size);
    std::vector<T> mask(static_cast<std::size_t>(size)), kept(mask);
    cpu::own_loops<T>.dropout_mask(dropout, 1, 0, size, mask.data());
    const std::vector<T> infinite(mask.size(), std::numeric_limits<T>::infinity());
    cpu::own_loops<T>.dropout_row(dropout, 1, 0, size, infinite.data(), kept.data());
    for (std::size_t i = 0; i < mask.size(); ++i) CHECK(kept[i] == (mask[i] == 0 ? T(0) : infinite[i]));
  }
}

}  // namespace fedlora::tests
