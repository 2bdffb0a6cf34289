// SPDX-License-Identifier: Apache-2.0
// Memory, streams, staging and graphs, to be read by nvcc as well.
#include <vector>

#include "fedlora/backend/cuda/arena.cuh"
#include "fedlora/backend/cuda/graph.cuh"
#include "fedlora/backend/cuda/memory.cuh"
#include "fedlora/backend/cuda/staging.cuh"

namespace fedlora {

/// to[i] = 2 · from[i].
template <class T>
struct Twice {
  static constexpr int threads = 128;
  const T* from;
  T* to;
  Index count;
  int shared_bytes() const { return 0; }
  template <class Block>
  FEDLORA_DEVICE void operator()(Block& block) const {
    const Index i = block.x() * threads + block.thread();
    if (i < count) to[i] = T(2.0f * static_cast<float>(from[i]));
  }
};

template <class T>
std::vector<T> step(const cuda::DeviceMemory& memory, const std::vector<T>& values) {
  const cuda::OwnedStream stream;
  cuda::Arena arena(memory, stream.get());
  cuda::Staging staging(memory, stream.get());
  cuda::StepGraph graph;
  const auto count = static_cast<Index>(values.size());
  cuda::DeviceBuffer source(memory, values.size() * sizeof(T), "values", stream.get());
  cuda::upload(values, source.template as<T>(), stream.get());
  const T* const table = staging.upload(values);
  staging.flush();
  arena.reserve(values.size() * sizeof(T));
  const auto scope = arena.scope();
  const MatrixView<T> result = arena.template matrix<T>(1, count, 8);
  graph.run(stream.get(), [&] {
    cuda::set_zero(result.data, result.stride, stream.get());
    cuda::launch(stream.get(), {(count + 127) / 128, 1}, Twice<T>{table, result.data, count});
    cuda::copy<T>(result, {source.template as<T>(), 1, count}, stream.get());
  });
  std::vector<T> back(values.size());
  cuda::download(result.data, back, stream.get());
  cuda::download<T>(result, {back.data(), 1, count}, stream.get());
  cuda::upload<T>({back.data(), 1, count}, result, stream.get());
  cuda::synchronize(stream.get());
  staging.reset();
  source.set_stream(stream.get());
  source.discard();
  arena.reset();
  memory.trim();
  memory.check();
  return back;
}

template std::vector<float> step<float>(const cuda::DeviceMemory&, const std::vector<float>&);
template std::vector<Bf16> step<Bf16>(const cuda::DeviceMemory&, const std::vector<Bf16>&);
template std::vector<Half> step<Half>(const cuda::DeviceMemory&, const std::vector<Half>&);

cuda::MemoryUsage own_allocator(std::size_t limit) {
  const cuda::DeviceMemory memory({[](std::size_t bytes, cuda::Stream) { return cuda::detail::device_allocate(bytes); },
                                   [](void* block, std::size_t, cuda::Stream) { cuda::detail::device_release(block); }},
                                  limit);
  memory.discard(memory.allocate(1, "a test", nullptr), nullptr);
  memory.release(memory.allocate(1, "a test", nullptr), nullptr);
  return memory.usage();
}

}  // namespace fedlora
