// SPDX-License-Identifier: Apache-2.0
// In the place of the other files here in a build without CUDA.
#include "cuda/on_cuda.hpp"
#include "fedlora/core/error.hpp"

namespace fedlora::examples {

namespace {

[[noreturn]] void refuse(const Device& device) {
  fail<CudaError>("--device " + device.name,
                  "a program built with CUDA: CMake with -DFEDLORA_CUDA=ON names what it does not find of nvcc and cuBLAS",
                  "one built without");
}

}  // namespace

template <class T>
int run_on_cuda(const Options& options) {
  refuse(options.device);
}

template <class T>
Predictor load_on_cuda(const PredictorOptions& options) {
  refuse(options.device);
}

template int run_on_cuda<float>(const Options&);
template int run_on_cuda<Bf16>(const Options&);
template int run_on_cuda<Half>(const Options&);
template Predictor load_on_cuda<float>(const PredictorOptions&);
template Predictor load_on_cuda<Bf16>(const PredictorOptions&);
template Predictor load_on_cuda<Half>(const PredictorOptions&);

}  // namespace fedlora::examples
