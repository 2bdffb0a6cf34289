// SPDX-License-Identifier: Apache-2.0
// The version of the library. CMake reads these three numbers, so they are stated once.
#pragma once

#define FEDLORA_VERSION_MAJOR 0
#define FEDLORA_VERSION_MINOR 1
#define FEDLORA_VERSION_PATCH 0

namespace fedlora {

/// The version as "major.minor.patch".
inline constexpr const char* version = "0.1.0";

}  // namespace fedlora
