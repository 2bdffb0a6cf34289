// SPDX-License-Identifier: Apache-2.0
#include "cuda/on_cuda_impl.hpp"

namespace fedlora::examples {

template int run_on_cuda<Half>(const Options&);
template Predictor load_on_cuda<Half>(const PredictorOptions&);

}  // namespace fedlora::examples
