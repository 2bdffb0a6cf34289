# SPDX-License-Identifier: Apache-2.0
# fedlora::cuda, where nvcc and the toolkit's libraries are found. CUDA is not tested with sanitizers: they look at the kernels'
# source on the host.
include(CheckLanguage)
check_language(CUDA)
find_package(CUDAToolkit QUIET)
set(missing "")
if(NOT CMAKE_CUDA_COMPILER)
  list(APPEND missing "nvcc (CUDACXX names it)")
endif()
foreach(library cudart cublas cublasLt)
  if(NOT TARGET CUDA::${library})
    list(APPEND missing "${library} of the CUDA Toolkit")
  endif()
endforeach()
if(missing)
  list(JOIN missing ", " missing)
  if(FEDLORA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FEDLORA_CUDA is ON and these were not found: ${missing}")
  endif()
  message(STATUS "fedlora: no CUDA (not found: ${missing})")
  return()
endif()

add_library(fedlora_cuda INTERFACE)
add_library(fedlora::cuda ALIAS fedlora_cuda)
target_link_libraries(fedlora_cuda INTERFACE fedlora CUDA::cudart CUDA::cublas CUDA::cublasLt)
# Not the feature cuda_std_20, which CMake 3.25 does not know of newer toolkits.
target_compile_options(fedlora_cuda INTERFACE
  $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<STREQUAL:$<TARGET_PROPERTY:CUDA_STANDARD>,>>:-std=c++20>)
# Eigen would mark its functions for the device, and nvcc then warns of what they call.
target_compile_definitions(fedlora_cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:EIGEN_NO_CUDA>)

if(FEDLORA_BUILD_TESTS OR FEDLORA_BUILD_EXAMPLES OR FEDLORA_BUILD_BENCHMARKS)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES "80;90a")
  endif()
  enable_language(CUDA)
endif()
