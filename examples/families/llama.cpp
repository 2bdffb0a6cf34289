// SPDX-License-Identifier: Apache-2.0
// Everything that the programs do with Llama.
#include "federation/experiment_impl.hpp"
#include "fedlora/nn/arch/llama.hpp"
#include "predict/predictor_impl.hpp"

namespace fedlora::examples {

template int run_experiment<Llama, float>(Pretrained<Llama, ProgramBackend<float>>, const Options&, const Inputs&);
template int run_experiment<Llama, double>(Pretrained<Llama, ProgramBackend<double>>, const Options&, const Inputs&);
template Predictor make_predictor<Llama, float>(Pretrained<Llama, ProgramBackend<float>>, const PredictorOptions&);
template Predictor make_predictor<Llama, double>(Pretrained<Llama, ProgramBackend<double>>, const PredictorOptions&);

}  // namespace fedlora::examples
