// SPDX-License-Identifier: Apache-2.0
// Everything that the programs do with Bert.
#include "federation/experiment_impl.hpp"
#include "fedlora/nn/arch/bert.hpp"
#include "predict/predictor_impl.hpp"

namespace fedlora::examples {

template int run_experiment<Bert, float>(Pretrained<Bert, ProgramBackend<float>>, const Options&, const Inputs&);
template int run_experiment<Bert, double>(Pretrained<Bert, ProgramBackend<double>>, const Options&, const Inputs&);
template Predictor make_predictor<Bert, float>(Pretrained<Bert, ProgramBackend<float>>, const PredictorOptions&);
template Predictor make_predictor<Bert, double>(Pretrained<Bert, ProgramBackend<double>>, const PredictorOptions&);

}  // namespace fedlora::examples
