# SPDX-License-Identifier: Apache-2.0
# fedlora::cuda, where nvcc and the toolkit's libraries are found; and how our own programs are built with it. That is not done
# with sanitizers, which look at the kernels' source on the host.
include(CheckLanguage)
check_language(CUDA)
include("${CMAKE_CURRENT_LIST_DIR}/CudaComponent.cmake")
if(NOT CMAKE_CUDA_COMPILER)
  string(PREPEND fedlora_cuda_missing "nvcc, or a C++ compiler that it accepts (CUDACXX and CUDAHOSTCXX name them), ")
  string(REGEX REPLACE ", $" "" fedlora_cuda_missing "${fedlora_cuda_missing}")
endif()
if(fedlora_cuda_missing)
  if(NOT FEDLORA_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "FEDLORA_CUDA is ${FEDLORA_CUDA} and this was not found: ${fedlora_cuda_missing}")
  endif()
  message(STATUS "fedlora: no CUDA, for want of ${fedlora_cuda_missing}")
  return()
endif()

add_library(fedlora_cuda INTERFACE)
add_library(fedlora::cuda ALIAS fedlora_cuda)
fedlora_describe_cuda(fedlora_cuda)

if(FEDLORA_BUILD_TESTS OR FEDLORA_BUILD_EXAMPLES OR FEDLORA_BUILD_BENCHMARKS)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES "80;90a")
  endif()
  enable_language(CUDA)
endif()
