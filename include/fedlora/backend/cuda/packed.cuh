// SPDX-License-Identifier: Apache-2.0
// 16 bytes of elements that stay together in registers. (An array of 16-bit elements would take a register for each,
// and be taken apart as it arrives: a thread that loads several vectors would wait for each before it asks for the
// next.)
#pragma once

#include <cstdint>

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

/// The values, each rounded to T.
template <class T>
FEDLORA_DEVICE Packed<T> pack(const float (&values)[vector_length<T>]) {
  Packed<T> packed;
  for (int word = 0; word < 4; ++word) {
    if constexpr (sizeof(T) == 4) {
      packed.words[word] = __builtin_bit_cast(std::uint32_t, values[word]);
    } else {
      const std::uint32_t low = T(values[2 * word]).bits;
      const std::uint32_t high = T(values[2 * word + 1]).bits;
      packed.words[word] = low | (high << 16);
    }
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

}  // namespace fedlora::cuda

#endif
