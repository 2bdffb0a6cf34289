# SPDX-License-Identifier: Apache-2.0
# What fedlora::cuda is, in this project and in an installed package. `fedlora_cuda_missing` names what was not found of it.
find_package(CUDAToolkit QUIET)
set(fedlora_cuda_missing "")
if(NOT CUDAToolkit_FOUND)
  list(APPEND fedlora_cuda_missing "the CUDA Toolkit (CUDAToolkit_ROOT says where)")
elseif(CUDAToolkit_VERSION VERSION_LESS 12.4)
  list(APPEND fedlora_cuda_missing "a CUDA Toolkit of version 12.4 or newer (${CUDAToolkit_VERSION} is there)")
else()
  foreach(library toolkit cublas cublasLt)
    if(NOT TARGET CUDA::${library})
      list(APPEND fedlora_cuda_missing "${library} of the CUDA Toolkit ${CUDAToolkit_VERSION}")
    endif()
  endforeach()
endif()
list(JOIN fedlora_cuda_missing ", " fedlora_cuda_missing)

# How files in the language CUDA are compiled.
function(fedlora_compile_cuda target)
  # Not the feature cuda_std_20, which CMake 3.25 does not know of newer toolkits.
  target_compile_options(${target} INTERFACE
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<STREQUAL:$<TARGET_PROPERTY:CUDA_STANDARD>,>>:-std=c++20>)
  # Eigen would mark its functions for the device, and nvcc then warns of what they call.
  target_compile_definitions(${target} INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:EIGEN_NO_CUDA>)
endfunction()

# What links fedlora::cuda has files in the language CUDA, which it enables for itself, with architectures of its choice.
function(fedlora_describe_cuda target)
  # The runtime comes with the language (CMAKE_CUDA_RUNTIME_LIBRARY): two in one program would know nothing of each other.
  target_link_libraries(${target} INTERFACE fedlora::fedlora CUDA::toolkit CUDA::cublas CUDA::cublasLt)
  fedlora_compile_cuda(${target})
endfunction()
