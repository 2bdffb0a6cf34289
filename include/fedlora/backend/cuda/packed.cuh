// SPDX-License-Identifier: Apache-2.0
// 16 bytes of elements that stay together in registers. (An array of 16-bit elements would take a register for each,
// and be taken apart as it arrives: a thread that loads several vectors would wait for each before it asks for the
// next.)
#pragma once

#include <cstdint>
#include <type_traits>

#include "fedlora/backend/cuda/device.cuh"
#include "fedlora/core/half.hpp"

#if defined(FEDLORA_DEVICE)

namespace fedlora::cuda {

/// Elements e of 16 bytes of T, in four words; the first is lowest.
template <class T>
struct Packed {
  std::uint32_t words[4];

  FEDLORA_DEVICE float operator[](int e) const {
    if constexpr (sizeof(T) == 4)
      return __builtin_bit_cast(float, words[e]);
    else
      return static_cast<float>(__builtin_bit_cast(T, static_cast<std::uint16_t>(words[e / 2] >> (e % 2 * 16))));
  }
};

/// Two numbers rounded to T, the first in the lower half.
template <class T>
FEDLORA_DEVICE std::uint32_t pack_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t pair;
  if constexpr (std::is_same_v<T, Bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return T(low).bits | static_cast<std::uint32_t>(T(high).bits) << 16;
#endif
}

/// The values, each rounded to T.
template <class T>
FEDLORA_DEVICE Packed<T> pack(const float (&values)[vector_length<T>]) {
  Packed<T> packed;
  for (int word = 0; word < 4; ++word) {
    if constexpr (sizeof(T) == 4)
      packed.words[word] = __builtin_bit_cast(std::uint32_t, values[word]);
    else
      packed.words[word] = pack_pair<T>(values[2 * word], values[2 * word + 1]);
  }
  return packed;
}

/// 16 bytes of global memory, on a multiple of 16.
template <class T, class Block>
FEDLORA_DEVICE Packed<T> load_packed(Block& block, const T* from) {
  return __builtin_bit_cast(Packed<T>, block.load_vector(from));
}

template <class T, class Block>
FEDLORA_DEVICE void store_packed(Block& block, T* to, const Packed<T>& packed) {
  block.store_vector(to, __builtin_bit_cast(Vector<T>, packed));
}

/// The elements from[0], …, of which the first `count` exist; the others become zero. `by_vectors` says that `from` is
/// a multiple of 16.
template <class T, class Block>
FEDLORA_DEVICE Packed<T> load_elements(Block& block, const T* from, int count, bool by_vectors) {
  if (by_vectors && count == vector_length<T>) return load_packed(block, from);
  Vector<T> vector;
  for (int e = 0; e < vector_length<T>; ++e) vector.elements[e] = e < count ? from[e] : T(0.0f);
  return __builtin_bit_cast(Packed<T>, vector);
}

/// Writes the first `count` elements to to[0], ….
template <class T, class Block>
FEDLORA_DEVICE void store_elements(Block& block, T* to, const Packed<T>& packed, int count, bool by_vectors) {
  if (by_vectors && count == vector_length<T>) return store_packed(block, to, packed);
  const auto vector = __builtin_bit_cast(Vector<T>, packed);
  for (int e = 0; e < vector_length<T>; ++e)
    if (e < count) to[e] = vector.elements[e];
}

}  // namespace fedlora::cuda

#endif
