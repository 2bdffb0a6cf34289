// SPDX-License-Identifier: Apache-2.0
// Everything that the programs do with Roberta on a CPU.
#include "fedlora/nn/arch/roberta.hpp"
#include "backend.hpp"
#include "federation/experiment_impl.hpp"
#include "predict/predictor_impl.hpp"

namespace fedlora::examples {

using F32 = Pretrained<Roberta, ProgramBackend<float>>;
using F64 = Pretrained<Roberta, ProgramBackend<double>>;

template int run_experiment(F32, const std::string&, Assignment&);
template int run_experiment(F64, const std::string&, Assignment&);
template Predictor make_predictor(F32, const PredictorOptions&);
template Predictor make_predictor(F64, const PredictorOptions&);

}  // namespace fedlora::examples
