# SPDX-License-Identifier: Apache-2.0
# Finds oneDNN and defines oneDNN::oneDNN: the library and the OpenMP runtime that it was built with, whose
# omp_set_num_threads is how a worker keeps it to one thread. Debian's own dnnl-config.cmake asks for OpenCL, which nothing here
# needs, so the header and the libraries are looked for. oneDNN_ROOT points to other places. Installed with fedlora.
find_path(oneDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp)
find_library(oneDNN_LIBRARY NAMES dnnl)
find_library(oneDNN_OPENMP_LIBRARY NAMES gomp libgomp.so.1 HINTS ${CMAKE_CXX_IMPLICIT_LINK_DIRECTORIES})
mark_as_advanced(oneDNN_INCLUDE_DIR oneDNN_LIBRARY oneDNN_OPENMP_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(oneDNN
  REQUIRED_VARS oneDNN_LIBRARY oneDNN_OPENMP_LIBRARY oneDNN_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "install it (Debian: libdnnl-dev) or set oneDNN_ROOT")
if(oneDNN_FOUND AND NOT TARGET oneDNN::oneDNN)
  add_library(oneDNN::oneDNN UNKNOWN IMPORTED)
  set_target_properties(oneDNN::oneDNN PROPERTIES
    IMPORTED_LOCATION "${oneDNN_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${oneDNN_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${oneDNN_OPENMP_LIBRARY}")
endif()
