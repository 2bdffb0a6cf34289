// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime behind runtime.cuh.
#pragma once

#include "fedlora/backend/cuda/transfer.cuh"

#if defined(FEDLORA_DEVICE) && !defined(FEDLORA_CUDA_ON_HOST)

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "fedlora/backend/cuda/gpu_block.cuh"

namespace fedlora::cuda {

/// Owns what a C library made: `Handle<cudaEvent_t, cudaEventDestroy>`.
template <class T, auto Destroy>
class Handle {
 public:
  Handle() = default;
  Handle(Handle&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Handle() {
    if (value_ != nullptr) Destroy(value_);
  }

  T get() const { return value_; }
  explicit operator bool() const { return value_ != nullptr; }

  /// Where a function that makes one writes it. \pre it is empty
  T* out() { return &value_; }

 private:
  T value_ = nullptr;
};

using StreamId = std::uint64_t;
inline constexpr StreamId no_stream = ~StreamId{0};

/// Never the same for two streams of a process; `no_stream` for what is not a stream (any more).
inline StreamId stream_id(Stream stream) noexcept {
  unsigned long long id = 0;
  if (cudaStreamGetId(stream, &id) == cudaSuccess) return id;
  static_cast<void>(cudaGetLastError());
  return no_stream;
}

/// A stream that does not wait for the default stream. Its end waits for what it holds.
class OwnedStream {
 public:
  OwnedStream() {
    detail::check(cudaStreamCreateWithFlags(stream_.out(), cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  OwnedStream(OwnedStream&&) noexcept = default;
  OwnedStream& operator=(OwnedStream&&) noexcept = default;
  ~OwnedStream() {
    if (stream_) static_cast<void>(cudaStreamSynchronize(stream_.get()));
  }

  Stream get() const { return stream_.get(); }

 private:
  Handle<cudaStream_t, cudaStreamDestroy> stream_;
};

namespace detail {

/// The default stream of old cannot become a graph.
inline bool can_capture(Stream stream) { return stream != nullptr && stream != cudaStreamLegacy; }

inline void wait_for(Stream stream) { check(cudaStreamSynchronize(stream), "cudaStreamSynchronize"); }

class Event {
 public:
  /// Marks what the stream, which must exist, holds now; false if that cannot be marked: it is being captured.
  bool record(Stream stream) noexcept {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &capture) == cudaSuccess && capture == cudaStreamCaptureStatusNone &&
        (event_ || cudaEventCreateWithFlags(event_.out(), cudaEventDisableTiming) == cudaSuccess) &&
        cudaEventRecord(event_.get(), stream) == cudaSuccess)
      return true;
    static_cast<void>(cudaGetLastError());
    return false;
  }

  /// What is put into the stream from now on runs after the mark.
  void hold_back(Stream stream) const {
    if (event_) check(cudaStreamWaitEvent(stream, event_.get(), 0), "cudaStreamWaitEvent");
  }

  /// The host waits for the mark.
  void wait() const {
    if (event_) check(cudaEventSynchronize(event_.get()), "cudaEventSynchronize");
  }

 private:
  Handle<cudaEvent_t, cudaEventDestroy> event_;
};

class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(std::size_t bytes) {
    check(cudaHostAlloc(memory_.out(), bytes, cudaHostAllocDefault), "cudaHostAlloc");
  }
  std::byte* data() const { return static_cast<std::byte*>(memory_.get()); }

 private:
  Handle<void*, cudaFreeHost> memory_;
};

inline void* device_allocate(std::size_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // it was answered: the next launch must not find it
    return nullptr;
  }
  check(status, "cudaMalloc");
  return block;
}

inline void device_release(void* block) noexcept { static_cast<void>(cudaFree(block)); }

constexpr cudaMemcpyKind kind_of(Copy copy) {
  return copy == Copy::to_device ? cudaMemcpyHostToDevice
         : copy == Copy::to_host ? cudaMemcpyDeviceToHost
                                 : cudaMemcpyDeviceToDevice;
}

inline void copy(Copy direction, void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemcpyAsync(to, from, bytes, kind_of(direction), stream), "cudaMemcpyAsync");
}

/// `rows` runs of `bytes`; a pitch is the distance from one to the next.
inline void copy_rows(Copy direction, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                      std::size_t bytes, std::size_t rows, Stream stream) {
  if (bytes > 0 && rows > 0)
    check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, rows, kind_of(direction), stream),
          "cudaMemcpy2DAsync");
}

inline void set_zero(void* to, std::size_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemsetAsync(to, 0, bytes, stream), "cudaMemsetAsync");
}

/// What the host checks in its place.
struct Watch {
  static constexpr std::size_t guard = 0;
  static Watch blocks() { return {}; }
  static Watch pieces() { return {}; }

  std::string hand_out(std::byte*, std::size_t, std::size_t, std::string_view) { return {}; }
  std::string take_back(std::byte*) { return {}; }
  std::string damage_behind(std::byte*) const { return {}; }
  void forget(std::byte*, std::size_t) {}
  static void report(const std::string&) {}
  static void spoil(std::byte*, std::size_t) {}
};

}  // namespace detail
}  // namespace fedlora::cuda

#endif
