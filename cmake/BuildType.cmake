# SPDX-License-Identifier: Apache-2.0
# A project without a build type compiles without optimisation, and matrix products are then about fifty times slower. That is
# hard to tell from a slow library, so it is said: once, at the end of the project's CMakeLists.txt, which may still choose one.
function(fedlora_say_when_not_optimised)
  get_property(multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
  if(multi_config OR CMAKE_BUILD_TYPE OR "${CMAKE_CXX_FLAGS} $ENV{CXXFLAGS}" MATCHES "(^| )[-/]O[1-9sgf]")
    return()
  endif()
  message(WARNING "fedlora: CMAKE_BUILD_TYPE is empty, so the compiler does not optimise, and what uses fedlora runs about 50 "
    "times slower. Configure with -DCMAKE_BUILD_TYPE=Release.")
endfunction()

get_property(fedlora_asked GLOBAL PROPERTY fedlora_build_type_asked)
if(NOT fedlora_asked AND NOT CMAKE_SCRIPT_MODE_FILE)
  set_property(GLOBAL PROPERTY fedlora_build_type_asked TRUE)
  cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL fedlora_say_when_not_optimised)
endif()
unset(fedlora_asked)
