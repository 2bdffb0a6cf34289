// SPDX-License-Identifier: Apache-2.0
// run_on_cuda and load_on_cuda, for the files that instantiate them: all families in one type.
#pragma once

#include <cuda_runtime.h>
#include <unistd.h>

#include <iostream>
#include <string>
#include <utility>

#include "cuda/on_cuda.hpp"
#include "federation/experiment_impl.hpp"
#include "fedlora/backend/cuda.cuh"
#include "fedlora/hf/pretrained.hpp"
#include "predict/predictor_impl.hpp"

namespace fedlora::examples {

/// Prints what the backend has to say to standard error, in the place of a progress line.
inline void print_notice(const std::string& text) {
  std::cerr << (::isatty(STDERR_FILENO) == 1 ? "\r\033[K" : "") << "note: " + text + "\n" << std::flush;
}

template <class T>
CudaBackend<T> cuda_backend(const Device& device) {
  return CudaBackend<T>({.device = device.number(),
                         .math = device.dtype == "f32" ? cuda::FloatMath::float32 : cuda::FloatMath::tf32,
                         .on_notice = print_notice});
}

/// "bf16 on NVIDIA H200 (cuda:0)"
inline std::string machine_of(const Device& device) {
  cudaDeviceProp properties;
  cuda::detail::check(cudaGetDeviceProperties(&properties, device.number()), "cudaGetDeviceProperties");
  return device.dtype + " on " + properties.name + " (cuda:" + std::to_string(device.number()) + ")";
}

template <class T>
int run_on_cuda(const Options& options) {
  using B = CudaBackend<T>;
  const B backend = cuda_backend<T>(options.device);
  const std::string machine = machine_of(options.device);
  Assignment assignment(options);
  if (assignment.done()) return 0;
  return with_pretrained(backend, model_files(options.model), [&]<class Arch>(Pretrained<Arch, B> base) {
    return run_experiment(std::move(base), machine, assignment);
  });
}

template <class T>
Predictor load_on_cuda(const PredictorOptions& options) {
  using B = CudaBackend<T>;
  return with_pretrained(
      cuda_backend<T>(options.device), model_files(options.model),
      [&]<class Arch>(Pretrained<Arch, B> base) { return make_predictor(std::move(base), options); });
}

}  // namespace fedlora::examples
