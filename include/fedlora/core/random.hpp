// SPDX-License-Identifier: Apache-2.0
// Addressed randomness. A draw is a pure function of (key, counter): nothing is consumed, so the same draw comes out on
// one thread or sixteen, before or after a resume, forward or backward. The generator is Philox4x32 (Salmon, Moraes,
// Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "fedlora/core/standard.hpp"

#if defined(__CUDACC__)
#define FEDLORA_HOST_DEVICE __host__ __device__
#else
#define FEDLORA_HOST_DEVICE
#endif

namespace fedlora {

/// 64 bits that name one stream of draws.
struct RandomKey {
  std::uint64_t bits = 0;
  friend constexpr bool operator==(RandomKey, RandomKey) = default;
};

/// What a stream is for, and the address that follows it in its key. Values and addresses are part of the meaning of a
/// seed: append, never renumber.
enum class Purpose : std::uint64_t {
  partition = 1,           ///< see data/partition.hpp
  split = 2,               ///< see data/split.hpp
  sample_clients = 3,      ///< round; weighted sampling: round, client
  shuffle_examples = 4,    ///< round, client, epoch
  initialise_adapter = 5,  ///< number of the site
  initialise_head = 6,     ///< number of the saved tensor
  adapter_dropout = 7,     ///< round, client, step, micro, layer (2^20 for the head), linear layer or head layer
  embedding_dropout = 8,   ///< round, client, step, micro
  attention_dropout = 9,   ///< round, client, step, micro, layer, 0
  hidden_dropout = 10,     ///< round, client, step, micro, layer, linear layer
  head_dropout = 11,       ///< round, client, step, micro, 2^20, head layer
  user = 1000,             ///< the caller's own
};

/// Four 32-bit words: a counter, or a draw. (std::array cannot be indexed in device code without a compiler switch.)
struct RandomWords {
  std::uint32_t words[4];
  FEDLORA_HOST_DEVICE constexpr std::uint32_t& operator[](std::size_t i) { return words[i]; }
  FEDLORA_HOST_DEVICE constexpr const std::uint32_t& operator[](std::size_t i) const { return words[i]; }
  constexpr const std::uint32_t* begin() const { return words; }
  constexpr const std::uint32_t* end() const { return words + 4; }
  friend constexpr bool operator==(const RandomWords&, const RandomWords&) = default;
};

/// Philox4x32 with `Rounds` rounds. 10 is the authors' default; 7 passes the same statistical tests and serves dropout
/// masks.
template <int Rounds = 10>
FEDLORA_HOST_DEVICE constexpr RandomWords philox(RandomWords counter, RandomKey key) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key.bits);
  std::uint32_t k1 = static_cast<std::uint32_t>(key.bits >> 32);
  for (int round = 0; round < Rounds; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

/// Mixes one more word into a hash (the finaliser of splitmix64, Steele et al. 2014).
FEDLORA_HOST_DEVICE constexpr std::uint64_t mix(std::uint64_t hash, std::uint64_t word) {
  std::uint64_t z = hash + 0x9E3779B97F4A7C15ull + word * 0xD1342543DE82EF95ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

/// The key of (seed, purpose, address…), the address in the order that `Purpose` states.
template <class... Address>
FEDLORA_HOST_DEVICE constexpr RandomKey derive_key(std::uint64_t seed, Purpose purpose, Address... address) {
  std::uint64_t hash = mix(mix(0x66656C6F7261ull, seed), static_cast<std::uint64_t>(purpose));
  ((hash = mix(hash, static_cast<std::uint64_t>(address))), ...);
  return {hash};
}

/// The key of a sub-address of a stream.
template <class... Address>
FEDLORA_HOST_DEVICE constexpr RandomKey derive_key(RandomKey key, Address... address) {
  std::uint64_t hash = key.bits;
  ((hash = mix(hash, static_cast<std::uint64_t>(address))), ...);
  return {hash};
}

/// Draws in sequence from one key, for host code that wants numbers one after another (shuffles, partitions,
/// initialisation). Distributions are written out here, because those of <random> differ between standard libraries.
class RandomSequence {
 public:
  explicit constexpr RandomSequence(RandomKey key) : key_(key) {}

  constexpr std::uint32_t next_u32() {
    if (used_ == 4) {
      words_ = philox<10>({static_cast<std::uint32_t>(block_), static_cast<std::uint32_t>(block_ >> 32), 0, 0}, key_);
      ++block_;
      used_ = 0;
    }
    return words_[used_++];
  }

  constexpr std::uint64_t next_u64() {
    const std::uint64_t low = next_u32();
    return low | (std::uint64_t{next_u32()} << 32);
  }

  /// Uniform in [0, 1), 53 bits.
  constexpr double uniform() { return static_cast<double>(next_u64() >> 11) * 0x1.0p-53; }

  /// Uniform integer in [0, bound), without bias. `bound` must be positive.
  constexpr std::uint64_t below(std::uint64_t bound) {
    const std::uint64_t limit = (0 - bound) % bound;  // 2^64 mod bound
    std::uint64_t draw = next_u64();
    while (draw < limit) draw = next_u64();
    return draw % bound;
  }

  /// Standard normal (Box and Muller 1958; one of the pair is used, so that draws do not depend on history).
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(6.283185307179586476925286766559 * uniform());
  }

  /// Gamma(shape, 1) (Marsaglia and Tsang 2000; shapes below 1 by the boost of their section 6, in log space by the
  /// caller where the shape is tiny: see `log_gamma_draw`).
  double gamma(double shape) { return std::exp(log_gamma_draw(shape)); }

  /// The logarithm of a Gamma(shape, 1) draw, finite for shapes so small that the draw itself underflows.
  double log_gamma_draw(double shape) {
    double boost = 0.0;
    if (shape < 1.0) {
      boost = std::log(1.0 - uniform()) / shape;
      shape += 1.0;
    }
    const double d = shape - 1.0 / 3.0;
    const double c = 1.0 / std::sqrt(9.0 * d);
    for (;;) {
      const double x = normal();
      const double t = 1.0 + c * x;
      if (t <= 0.0) continue;
      const double v = t * t * t;
      if (std::log(1.0 - uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return std::log(d * v) + boost;
    }
  }

  /// Shuffles `values` in place (Fisher and Yates).
  template <class Range>
  constexpr void shuffle(Range& values) {
    for (std::size_t i = values.size(); i > 1; --i) {
      const auto j = static_cast<std::size_t>(below(i));
      using std::swap;
      swap(values[i - 1], values[j]);
    }
  }

 private:
  RandomKey key_;
  std::uint64_t block_ = 0;
  RandomWords words_{};
  unsigned used_ = 4;
};

/// Inverted dropout at one place of the network. The mask of element (row, channel) is word `channel % 4` of
/// philox<7>({channel / 4, row, plane, 0}, key); rows are counted from the client's own first row, `plane` is the
/// attention head or 0. An element is kept when its word is at least `threshold`, and then multiplied by `scale`.
struct Dropout {
  RandomKey key;
  std::uint32_t threshold = 0;  ///< probability * 2^32; 0 means no dropout
  float scale = 1.0f;           ///< 1 / (1 - probability)

  constexpr Dropout() = default;
  constexpr Dropout(RandomKey key_, double probability)
      : key(key_),
        threshold(static_cast<std::uint32_t>(probability * 4294967296.0)),
        scale(static_cast<float>(1.0 / (1.0 - probability))) {}

  FEDLORA_HOST_DEVICE constexpr explicit operator bool() const { return threshold != 0; }
};

}  // namespace fedlora
