// SPDX-License-Identifier: Apache-2.0
// Everything that the programs do with Roberta.
#include "federation/experiment_impl.hpp"
#include "fedlora/nn/arch/roberta.hpp"
#include "predict/predictor_impl.hpp"

namespace fedlora::examples {

template int run_experiment<Roberta, float>(Pretrained<Roberta, ProgramBackend<float>>, const Options&, const Inputs&);
template int run_experiment<Roberta, double>(Pretrained<Roberta, ProgramBackend<double>>, const Options&, const Inputs&);
template Predictor make_predictor<Roberta, float>(Pretrained<Roberta, ProgramBackend<float>>, const PredictorOptions&);
template Predictor make_predictor<Roberta, double>(Pretrained<Roberta, ProgramBackend<double>>, const PredictorOptions&);

}  // namespace fedlora::examples
