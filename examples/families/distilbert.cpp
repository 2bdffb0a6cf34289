// SPDX-License-Identifier: Apache-2.0
// Everything that the programs do with DistilBert.
#include "federation/experiment_impl.hpp"
#include "fedlora/nn/arch/distilbert.hpp"
#include "predict/predictor_impl.hpp"

namespace fedlora::examples {

template int run_experiment<DistilBert, float>(Pretrained<DistilBert, ProgramBackend<float>>, const Options&, const Inputs&);
template int run_experiment<DistilBert, double>(Pretrained<DistilBert, ProgramBackend<double>>, const Options&, const Inputs&);
template Predictor make_predictor<DistilBert, float>(Pretrained<DistilBert, ProgramBackend<float>>, const PredictorOptions&);
template Predictor make_predictor<DistilBert, double>(Pretrained<DistilBert, ProgramBackend<double>>, const PredictorOptions&);

}  // namespace fedlora::examples
