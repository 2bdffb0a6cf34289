# SPDX-License-Identifier: Apache-2.0
# cmake --install: the headers, the package files, the licence. Nothing is compiled, so the same files serve every architecture.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(fedlora_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/fedlora")

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/fedlora" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_SOURCE_DIR}/NOTICE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")

install(TARGETS fedlora EXPORT fedloraTargets INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT fedloraTargets NAMESPACE fedlora:: DESTINATION "${fedlora_package_dir}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/fedloraConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/package/fedloraConfig.cmake" INSTALL_DESTINATION "${fedlora_package_dir}"
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/package/fedloraConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/package/fedloraConfig.cmake" "${PROJECT_BINARY_DIR}/package/fedloraConfigVersion.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/Findutf8proc.cmake" "${PROJECT_SOURCE_DIR}/cmake/FindoneDNN.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/CudaComponent.cmake" "${PROJECT_SOURCE_DIR}/cmake/BuildType.cmake"
  DESTINATION "${fedlora_package_dir}")
