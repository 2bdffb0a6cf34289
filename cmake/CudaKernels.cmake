# SPDX-License-Identifier: Apache-2.0
# fedlora_cuda_programs: what our own programs link to compute on a GPU. nvcc compiles the kernels once: each file of cuda_kernels/,
# a family, for each type. Everything else is C++ for any compiler, and finds them by FEDLORA_CUDA_COMPILED. BUILD_SHARED_LIBS makes
# them one library beside the programs instead of a part of each.
#
# A kernel that is new: instantiate the operation that launches it in its family's file (or, if it is private to one, `launch` of the
# kernel); give it a host test in tests/cuda/ and a case in benchmarks/gpu/smoke/; if it is one of the hottest, a line in
# tests/cuda/resources.txt.
option(FEDLORA_CUBLAS_AT_RUN_TIME "Open cuBLAS when a program first computes with it, instead of linking it" OFF)
set(directory "${PROJECT_SOURCE_DIR}/cmake/cuda_kernels")
file(GLOB families CONFIGURE_DEPENDS "${directory}/*.cu")
list(REMOVE_ITEM families "${directory}/every_type.cu")

set(objects "")
function(fedlora_add_cuda_kernels name)
  add_library(${name} OBJECT ${ARGN})
  target_link_libraries(${name} PRIVATE fedlora::cuda)
  target_compile_options(${name} PRIVATE -Xptxas=-v -Xcompiler=-Wall,-Wextra,-Wno-restrict) # bug 105651 of g++ 12
  # What ptxas says of each kernel is kept beside the object (tests/cuda/resources.sh reads it).
  set_target_properties(${name} PROPERTIES
    POSITION_INDEPENDENT_CODE "${BUILD_SHARED_LIBS}"
    CUDA_COMPILER_LAUNCHER "sh;${PROJECT_SOURCE_DIR}/cmake/keep_ptxas_report.sh;${CMAKE_CUDA_COMPILER_LAUNCHER}")
  set(objects ${objects} $<TARGET_OBJECTS:${name}> PARENT_SCOPE)
endfunction()
fedlora_add_cuda_kernels(fedlora_cuda_kernels_every_type "${directory}/every_type.cu")
foreach(type Bf16 Half float)
  fedlora_add_cuda_kernels(fedlora_cuda_kernels_${type} ${families})
  target_compile_definitions(fedlora_cuda_kernels_${type} PRIVATE FEDLORA_KERNEL_TYPE=${type})
endforeach()

add_library(fedlora_cuda_kernels ${objects})
set_target_properties(fedlora_cuda_kernels PROPERTIES LINKER_LANGUAGE CXX)
if(CMAKE_CUDA_RUNTIME_LIBRARY STREQUAL "Shared")
  target_link_libraries(fedlora_cuda_kernels PUBLIC CUDA::cudart)
else()
  target_link_libraries(fedlora_cuda_kernels PUBLIC CUDA::cudart_static)
endif()

add_library(fedlora_cuda_programs INTERFACE)
fedlora_compile_cuda(fedlora_cuda_programs)
target_compile_definitions(fedlora_cuda_programs INTERFACE FEDLORA_CUDA_COMPILED)
target_compile_options(fedlora_cuda_programs INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-shadow>) # CUDA's headers name a type `half`
target_link_libraries(fedlora_cuda_programs INTERFACE fedlora_cuda_kernels fedlora::fedlora CUDA::toolkit)
if(FEDLORA_CUBLAS_AT_RUN_TIME)
  add_library(fedlora_cublas_at_run_time STATIC "${PROJECT_SOURCE_DIR}/cmake/cublas_at_run_time.cpp")
  target_link_libraries(fedlora_cublas_at_run_time PUBLIC fedlora::fedlora CUDA::toolkit ${CMAKE_DL_LIBS})
  target_link_libraries(fedlora_cuda_programs INTERFACE fedlora_cublas_at_run_time)
else()
  target_link_libraries(fedlora_cuda_programs INTERFACE CUDA::cublas CUDA::cublasLt)
endif()
