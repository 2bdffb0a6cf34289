// SPDX-License-Identifier: Apache-2.0
#include "federation/experiment_impl.hpp"
#include "fedlora/nn/arch/bert.hpp"

namespace fedlora::examples {

template int run_experiment<Bert, float>(Pretrained<Bert, ProgramBackend<float>>, const Options&, const Inputs&);
template int run_experiment<Bert, double>(Pretrained<Bert, ProgramBackend<double>>, const Options&, const Inputs&);

}  // namespace fedlora::examples
