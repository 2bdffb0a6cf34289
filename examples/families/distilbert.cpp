// SPDX-License-Identifier: Apache-2.0
// Everything that the programs do with DistilBert on a CPU.
#include "fedlora/nn/arch/distilbert.hpp"
#include "backend.hpp"
#include "federation/experiment_impl.hpp"
#include "predict/predictor_impl.hpp"

namespace fedlora::examples {

using F32 = Pretrained<DistilBert, ProgramBackend<float>>;
using F64 = Pretrained<DistilBert, ProgramBackend<double>>;

template int run_experiment(F32, const std::string&, Assignment&);
template int run_experiment(F64, const std::string&, Assignment&);
template Predictor make_predictor(F32, const PredictorOptions&);
template Predictor make_predictor(F64, const PredictorOptions&);

}  // namespace fedlora::examples
