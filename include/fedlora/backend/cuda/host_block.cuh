// SPDX-License-Identifier: Apache-2.0
// The thin layer on the host. Fragments are taken apart and put together as the PTX ISA lays them out; products and
// sums of one mma are exact in double and rounded once.
#pragma once

#include "fedlora/backend/cuda/fragment.cuh"

#if defined(FEDLORA_DEVICE) && defined(FEDLORA_CUDA_ON_HOST)

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fedlora/backend/cuda/host_capture.cuh"
#include "fedlora/backend/cuda/host_machine.cuh"

namespace fedlora::cuda {

/// What a launch goes to: here, the seed of the order in which blocks and threads take turns. Results must not depend
/// on it. (Another type than a GPU's stream, so that both ways of compiling may meet in one program.)
struct HostStream {
  std::uint64_t seed = 0;
};
using Stream = HostStream;

/// Behaves like a T* into shared memory, and faults outside of what was asked for.
template <class T>
class SharedPointer {
 public:
  SharedPointer(T* begin, std::ptrdiff_t count, const host::Fibre& fibre)
      : begin_(begin), count_(count), fibre_(&fibre) {}

  T& operator[](std::ptrdiff_t i) const { return *elements(i, 1); }
  T& operator*() const { return *elements(0, 1); }
  SharedPointer operator+(std::ptrdiff_t distance) const {
    SharedPointer moved = *this;
    moved.at_ += distance;
    return moved;
  }

  /// The address of 16 bytes.
  T* vector() const {
    T* const address = elements(0, vector_length<T>);
    if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0)
      fibre_->machine->fault(*fibre_, "16 bytes of shared memory on a multiple of 16",
                             "element " + std::to_string(at_));
    return address;
  }

 private:
  T* elements(std::ptrdiff_t i, std::ptrdiff_t count) const {
    const std::ptrdiff_t first = at_ + i;
    if (first < 0 || first + count > count_)
      fibre_->machine->fault(*fibre_, "shared elements 0 to " + std::to_string(count_ - 1),
                             "element " + std::to_string(first < 0 ? first : first + count - 1));
    return begin_ + first;
  }

  T* begin_;
  std::ptrdiff_t at_ = 0;
  std::ptrdiff_t count_;
  const host::Fibre* fibre_;
};

/// A thread's view of its block; see device.cuh for what each member promises.
class HostBlock {
 public:
  explicit HostBlock(host::Fibre& fibre) : fibre_(fibre), machine_(*fibre.machine) {}

  int thread() const { return fibre_.thread; }
  int threads() const { return machine_.threads(); }
  int lane() const { return fibre_.thread % 32; }
  int warp() const { return fibre_.thread / 32; }
  std::int64_t x() const { return machine_.x(); }
  std::int64_t y() const { return machine_.y(); }

  void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    machine_.pause(fibre_, host::Fibre::State::at_barrier, "the barrier", {file, line});
  }
  void sync_warp(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    together("sync_warp", nullptr, nullptr, file, line);
  }

  template <class T>
  SharedPointer<T> shared(int count) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    std::byte* const begin = machine_.shared(fibre_, used_, bytes);
    used_ += (bytes + 15) / 16 * 16;
    return {reinterpret_cast<T*>(begin), count, fibre_};
  }

  void restart_shared() { used_ = 0; }

  template <class T>
  T shuffle(T value, int source, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return exchange(value, source % 32, file, line);
  }
  template <class T>
  T shuffle_xor(T value, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return exchange(value, (lane() ^ mask) % 32, file, line);
  }
  template <class T>
  T shuffle_down(T value, int distance, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return exchange(value, lane() + distance < 32 ? lane() + distance : lane(), file, line);
  }

  template <class T>
  void mma(Accumulator& c, const FragmentA& a, const FragmentB& b, const char* file = __builtin_FILE(),
           int line = __builtin_LINE()) {
    Product product{&c, &a, &b};
    together("mma", &product, &perform_mma<T>, file, line);
  }

  template <class T>
  void load_matrices(std::uint32_t (&words)[4], SharedPointer<T> row, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) {
    Matrices matrices{words, row.vector()};
    together("load_matrices", &matrices, &perform_load<false>, file, line);
  }
  template <class T>
  void load_matrices_transposed(std::uint32_t (&words)[4], SharedPointer<T> row, const char* file = __builtin_FILE(),
                                int line = __builtin_LINE()) {
    static_assert(sizeof(T) == 2);
    Matrices matrices{words, row.vector()};
    together("load_matrices_transposed", &matrices, &perform_load<true>, file, line);
  }

  /// The bytes come when they are waited for; until then there are NaNs.
  template <class T>
  void copy_async(SharedPointer<T> to, const T* from, int bytes) {
    if (bytes < 0 || bytes > 16) machine_.fault(fibre_, "a copy of 0 to 16 bytes", std::to_string(bytes));
    check_alignment(from);
    auto* const target = reinterpret_cast<std::byte*>(to.vector());
    std::memset(target, 0xff, 16);
    fibre_.begun.push_back({target, from, bytes});
  }
  template <class T>
  void copy_async_if(bool exists, SharedPointer<T> to, const T* from) {
    copy_async(to, from, exists ? 16 : 0);
  }
  void commit_copies() { fibre_.groups.push_back(std::exchange(fibre_.begun, {})); }
  template <int Pending>
  void wait_copies() {
    while (fibre_.groups.size() > static_cast<std::size_t>(Pending)) {
      for (const host::Fibre::Copy& copy : fibre_.groups.front()) {
        std::memset(copy.to, 0, 16);
        if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
      }
      fibre_.groups.erase(fibre_.groups.begin());
    }
  }

  template <class T>
  Vector<T> load_vector(const T* from) {
    check_alignment(from);
    Vector<T> vector;
    std::memcpy(&vector, from, 16);
    return vector;
  }
  template <class T>
  void store_vector(T* to, const Vector<T>& vector) {
    check_alignment(to);
    std::memcpy(to, &vector, 16);
  }

 private:
  struct Product {
    Accumulator* c;
    const FragmentA* a;
    const FragmentB* b;
  };
  struct Matrices {
    std::uint32_t* words;
    const void* row;
  };
  template <class T>
  struct Exchange {
    T value;
    int source;
    T result;
  };

  void together(const char* operation, void* operand, void (*perform)(host::Fibre*), const char* file, int line) {
    fibre_.operand = operand;
    fibre_.perform = perform;
    machine_.pause(fibre_, host::Fibre::State::in_warp, operation, {file, line});
  }

  template <class T>
  T exchange(T value, int source, const char* file, int line) {
    Exchange<T> operand{value, source, value};
    together("shuffle", &operand, &perform_exchange<T>, file, line);
    return operand.result;
  }

  template <class T>
  static void perform_exchange(host::Fibre* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      auto& to = *static_cast<Exchange<T>*>(lanes[lane].operand);
      to.result = static_cast<Exchange<T>*>(lanes[to.source].operand)->value;
    }
  }

  /// Element `half` of a word of an operand.
  template <class T>
  static double element(std::uint32_t word, int half) {
    if constexpr (std::is_same_v<T, float>)
      return static_cast<double>(__builtin_bit_cast(float, word & 0xffffe000u));
    else
      return static_cast<double>(
          static_cast<float>(__builtin_bit_cast(T, static_cast<std::uint16_t>(half == 0 ? word : word >> 16))));
  }

  template <class T>
  static void perform_mma(host::Fibre* lanes) {
    constexpr int depth = mma_depth<T>;
    constexpr int step = sizeof(T) == 2 ? 2 : 1;  // elements of a word
    double a[16][depth], b[8][depth];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& product = *static_cast<const Product*>(lanes[lane].operand);
      const int g = lane / 4;
      const int t = lane % 4;
      for (int word = 0; word < 4; ++word)
        for (int half = 0; half < step; ++half)
          a[g + word % 2 * 8][step * t + half + word / 2 * depth / 2] = element<T>(product.a->words[word], half);
      for (int word = 0; word < 2; ++word)
        for (int half = 0; half < step; ++half)
          b[g][step * t + half + word * depth / 2] = element<T>(product.b->words[word], half);
    }
    for (int lane = 0; lane < 32; ++lane) {
      Accumulator& c = *static_cast<const Product*>(lanes[lane].operand)->c;
      for (int i = 0; i < 4; ++i) {
        double sum = static_cast<double>(c.sums[i]);
        for (int k = 0; k < depth; ++k) sum += a[lane / 4 + i / 2 * 8][k] * b[2 * (lane % 4) + i % 2][k];
        c.sums[i] = static_cast<float>(sum);
      }
    }
  }

  template <bool Transposed>
  static void perform_load(host::Fibre* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::uint16_t rows[8][8];
      for (int row = 0; row < 8; ++row)
        std::memcpy(rows[row], static_cast<const Matrices*>(lanes[8 * matrix + row].operand)->row, 16);
      for (int lane = 0; lane < 32; ++lane) {
        const int i = lane / 4;
        const int j = 2 * (lane % 4);
        const std::uint32_t low = Transposed ? rows[j][i] : rows[i][j];
        const std::uint32_t high = Transposed ? rows[j + 1][i] : rows[i][j + 1];
        static_cast<const Matrices*>(lanes[lane].operand)->words[matrix] = low | (high << 16);
      }
    }
  }

  void check_alignment(const void* address) const {
    if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0)
      machine_.fault(fibre_, "16 bytes of global memory on a multiple of 16",
                     std::to_string(reinterpret_cast<std::uintptr_t>(address) % 16) + " beside one");
  }

  host::Fibre& fibre_;
  host::Machine& machine_;
  std::size_t used_ = 0;
};

namespace detail {

/// What cudaFuncSetAttribute sets: the most shared memory that a launch of the kernel may have.
template <class Kernel>
std::atomic<int>& shared_limit() {
  static std::atomic<int> limit = shared_bytes_unasked;
  return limit;
}

}  // namespace detail

/// `launch` of a kernel that is compiled here, whatever else is compiled elsewhere.
template <class Kernel>
void launch_own(Stream stream, Grid grid, const Kernel& kernel) {
  if (grid.x <= 0 || grid.y <= 0) return;
  if (grid.x >= std::int64_t{1} << 31 || grid.y >= 1 << 16)
    fail<KernelFault>("launch", "a grid of at most 2^31 - 1 by 65535 blocks",
                      std::to_string(grid.x) + " by " + std::to_string(grid.y));
  detail::raise_shared_limit<Kernel>(kernel.shared_bytes(), 0,
                                     [](int limit) { detail::shared_limit<Kernel>() = limit; });
  if (!host::runs_at_once()) return;
  const int bytes = kernel.shared_bytes();
  host::Machine machine(Kernel::threads, bytes, stream.seed);
  // Not before now: what counts is the limit when the launch begins, whoever has set it since.
  if (const int limit = detail::shared_limit<Kernel>(); bytes > limit)
    fail<KernelFault>("launch", "at most " + std::to_string(limit) + " bytes of shared memory", std::to_string(bytes));
  std::vector<std::int64_t> blocks(static_cast<std::size_t>(grid.x * grid.y));
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<std::int64_t>(i);
  RandomSequence(derive_key(stream.seed, Purpose::user, grid.x, grid.y)).shuffle(blocks);
  const auto body = [](const void* untyped, host::Fibre& fibre) {
    HostBlock block(fibre);
    (*static_cast<const Kernel*>(untyped))(block);
  };
  for (const std::int64_t at : blocks) machine.run(at % grid.x, at / grid.x, &kernel, body);
}

}  // namespace fedlora::cuda

#endif
