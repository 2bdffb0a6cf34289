#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# No build system: the include directories and utf8proc, by hand.   plain_include.sh COMPILER PROJECT SCRATCH_DIR
set -eu
"$1" -std=c++20 -I "$2/include" -I /usr/include/eigen3 "$2/tests/consumer/main.cpp" -o "$3/plain_include" -lutf8proc -pthread
"$3/plain_include"
