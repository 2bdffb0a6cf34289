// SPDX-License-Identifier: Apache-2.0
#include "federation/experiment_impl.hpp"
#include "fedlora/nn/arch/roberta.hpp"

namespace fedlora::examples {

template int run_experiment<Roberta, float>(Pretrained<Roberta, ProgramBackend<float>>, const Options&, const Inputs&);
template int run_experiment<Roberta, double>(Pretrained<Roberta, ProgramBackend<double>>, const Options&, const Inputs&);

}  // namespace fedlora::examples
