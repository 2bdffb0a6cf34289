// SPDX-License-Identifier: Apache-2.0
// A GPU in the place of the CPU, in a file that nvcc compiles (CMake: fedlora::cuda), or, with FEDLORA_CUDA_COMPILED, any
// compiler, where the kernels are compiled elsewhere. Beside <fedlora/fedlora.hpp>, what changes is one line:
//   using B = fl::CudaBackend<fl::Bf16>;
// Bf16, Half or float; CudaOptions say which GPU, how floats are multiplied, whose stream and memory.
// Without CMake: nvcc -std=c++20 -arch=sm_80 (or newer) -DEIGEN_NO_CUDA, because Eigen would mark its functions for the device,
// and -lcublas -lcublasLt -lutf8proc.
#pragma once

#include "fedlora/backend/cuda.cuh"
