// SPDX-License-Identifier: Apache-2.0
#include "federation/experiment_impl.hpp"
#include "fedlora/nn/arch/llama.hpp"

namespace fedlora::examples {

template int run_experiment<Llama, float>(Pretrained<Llama, ProgramBackend<float>>, const Options&, const Inputs&);
template int run_experiment<Llama, double>(Pretrained<Llama, ProgramBackend<double>>, const Options&, const Inputs&);

}  // namespace fedlora::examples
