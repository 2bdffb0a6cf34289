// SPDX-License-Identifier: Apache-2.0
#include "federation/experiment_impl.hpp"
#include "fedlora/nn/arch/distilbert.hpp"

namespace fedlora::examples {

template int run_experiment<DistilBert, float>(Pretrained<DistilBert, ProgramBackend<float>>, const Options&, const Inputs&);
template int run_experiment<DistilBert, double>(Pretrained<DistilBert, ProgramBackend<double>>, const Options&, const Inputs&);

}  // namespace fedlora::examples
