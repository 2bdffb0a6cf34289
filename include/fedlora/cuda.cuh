// SPDX-License-Identifier: Apache-2.0
// A GPU in the place of the CPU, in a file that nvcc compiles (CMake: fedlora::cuda). Beside <fedlora/fedlora.hpp>, what
// changes is one line:
//   using B = fl::CudaBackend<fl::Bf16>;
// Bf16, Half or float; CudaOptions say which GPU, how floats are multiplied, whose stream and memory.
#pragma once

#include "fedlora/backend/cuda.cuh"
