# SPDX-License-Identifier: Apache-2.0
# How our own programs, tests and benchmarks are built. Nothing here reaches a user of fedlora::fedlora.
if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
  endif()
  find_program(FEDLORA_CCACHE ccache)
  mark_as_advanced(FEDLORA_CCACHE)
  foreach(language CXX CUDA)
    if(FEDLORA_CCACHE AND NOT CMAKE_${language}_COMPILER_LAUNCHER)
      set(CMAKE_${language}_COMPILER_LAUNCHER "${FEDLORA_CCACHE}")
    endif()
  endforeach()
endif()

add_library(fedlora_program_options INTERFACE)
# The host's part of a file for nvcc is what nvcc writes, which not every warning suits.
target_compile_options(fedlora_program_options INTERFACE -Wall -Wextra
  "$<$<COMPILE_LANGUAGE:CXX>:-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion>")
# g++ 12 warns of variables that its own and Eigen's AVX-512 headers leave undefined on purpose, and of every
# "literal" + std::string (its bug 105651).
target_compile_options(fedlora_program_options INTERFACE
  "$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized;-Wno-restrict>")
# A target's property FEDLORA_MARCH is its -march; `none` is what the compiler takes by itself. Where a target says nothing,
# FEDLORA_NATIVE does: in files for nvcc too, since of an inline function that both hold, the linker takes either.
set(march "$<TARGET_PROPERTY:FEDLORA_MARCH>")
if(FEDLORA_NATIVE)
  set(march "$<IF:$<BOOL:${march}>,${march},native>")
endif()
target_compile_options(fedlora_program_options INTERFACE
  "$<$<NOT:$<OR:$<STREQUAL:${march},>,$<STREQUAL:${march},none>>>:-march=${march}>")
unset(march)
if(FEDLORA_SANITIZE)
  list(JOIN FEDLORA_SANITIZE "," sanitizers)
  target_compile_options(fedlora_program_options INTERFACE
    -fsanitize=${sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(fedlora_program_options INTERFACE -fsanitize=${sanitizers})
endif()

# Programs take oneDNN's products where the component is there, and see so by FEDLORA_HAVE_ONEDNN; the library never asks.
target_link_options(fedlora_program_options INTERFACE -Wl,--as-needed)
if(TARGET fedlora::onednn)
  target_link_libraries(fedlora_program_options INTERFACE fedlora::onednn)
  target_compile_definitions(fedlora_program_options INTERFACE FEDLORA_HAVE_ONEDNN=1)
else()
  target_link_libraries(fedlora_program_options INTERFACE fedlora::fedlora)
endif()
