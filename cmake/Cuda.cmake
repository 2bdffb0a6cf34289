# SPDX-License-Identifier: Apache-2.0
# fedlora::cuda, where nvcc and the toolkit's libraries are found, and for which GPUs our own programs are built: for the one that is
# here, if CMAKE_CUDA_ARCHITECTURES does not say. FEDLORA_CUDA=AUTO wants one: kernels that nothing here can run are compiled only
# when they are asked for. It is not done with sanitizers, which look at the kernels' source on the host.
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

# The compute capability of the first GPU, "9.0"; empty without one.
execute_process(COMMAND nvidia-smi -i 0 --query-gpu=compute_cap --format=csv,noheader
  OUTPUT_VARIABLE fedlora_gpu ERROR_QUIET RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
if(failed OR NOT fedlora_gpu MATCHES "^[0-9]+\\.[0-9]+$")
  set(fedlora_gpu "")
endif()
if(FEDLORA_CUDA STREQUAL "AUTO" AND NOT fedlora_gpu)
  message(STATUS "fedlora: nvcc is here and no NVIDIA GPU: programs for the CPU alone; -DFEDLORA_CUDA=ON compiles for GPUs")
  return()
endif()

add_library(fedlora_cuda INTERFACE)
add_library(fedlora::cuda ALIAS fedlora_cuda)
fedlora_describe_cuda(fedlora_cuda)

if(FEDLORA_BUILD_TESTS OR FEDLORA_BUILD_EXAMPLES OR FEDLORA_BUILD_BENCHMARKS)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES "80;90a")
    if(fedlora_gpu)
      string(REPLACE "." "" CMAKE_CUDA_ARCHITECTURES "${fedlora_gpu}-real")
      string(REPLACE "90-real" "90a-real" CMAKE_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
    endif()
  endif()
  enable_language(CUDA)
  message(STATUS "fedlora: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for architecture ${CMAKE_CUDA_ARCHITECTURES}")
endif()
