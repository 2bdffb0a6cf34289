// SPDX-License-Identifier: Apache-2.0
// What the programs do on an NVIDIA GPU. The functions are in TYPE.cpp, or, in a build without CUDA, in absent.cpp,
// whose functions say what is missing.
#pragma once

#include <utility>

#include "device.hpp"
#include "federation/options.hpp"
#include "fedlora/core/half.hpp"
#include "predict/predictor.hpp"

namespace fedlora::examples {

/// fedlora-federation with activations and weights in T = float, Bf16 or Half: reads its inputs and runs what the options
/// ask for. Returns the exit status. \throws CudaError when there is no such GPU, or the program cannot use any.
template <class T>
int run_on_cuda(const Options& options);

/// The model and adapter of fedlora-predict in T. \throws CudaError as above
template <class T>
Predictor load_on_cuda(const PredictorOptions& options);

/// Calls `f` with a value of the type that the device's precision is of. tf32 is a way to multiply floats.
template <class F>
auto with_cuda_type(const Device& device, F&& f) {
  if (device.dtype == "bf16") return f(Bf16());
  if (device.dtype == "f16") return f(Half());
  return f(float());
}

}  // namespace fedlora::examples
