// SPDX-License-Identifier: Apache-2.0
#include "lora/measure.cuh"

namespace fedlora::benchmarks {

template void check<float>(const Setup&, const Case&, const std::string&);
template std::unique_ptr<Measurement> prepare<float>(const Setup&, const Case&, const std::string&, bool);

}  // namespace fedlora::benchmarks
