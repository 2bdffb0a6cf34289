#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reads tests and programs that run on a GPU as the compiler does, with warnings as errors. To run them takes a GPU.
#   compiles.sh COMPILER FLAGS_FILE CUDA_INCLUDE_DIR SOURCE...
set -u
compiler=$1
flags=$2
cuda=${3%%;*}
shift 3
tests=$(cd "$(dirname "$0")/.." && pwd) || exit 1
export compiler flags cuda tests
# shellcheck disable=SC2016  # the inner shell expands
printf '%s\n' "$@" | xargs -n 1 -P 2 sh -c '
  "$compiler" "@$flags" -I"$tests" -I"$tests/../examples" -I"$tests/../benchmarks" -isystem "$cuda" -DFEDLORA_CUDA_COMPILED -DFEDLORA_TEST_MANAGED_HEAP -DFEDLORA_TEST_DIR=\"\" -DFEDLORA_BENCHMARK_DIR=\"\" \
    -Wall -Wextra -Wpedantic -Wconversion -Wno-sign-conversion -Werror -fsyntax-only "$1" || { echo "FAILED $1"; exit 1; }' sh || exit 1
echo "$# files"
