# SPDX-License-Identifier: Apache-2.0
# Compiles for 64-bit Arm Linux on another machine and runs the tests under qemu-user: the preset `aarch64`. Debian 12:
#   sh cmake/install-packages.sh tests aarch64
#   sh cmake/aarch64-sysroot.sh build-aarch64/sysroot
# Libraries are looked for under CMAKE_FIND_ROOT_PATH alone, so that none of this machine's is taken by mistake.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
foreach(kind LIBRARY INCLUDE PACKAGE)
  set(CMAKE_FIND_ROOT_PATH_MODE_${kind} ONLY)
endforeach()
