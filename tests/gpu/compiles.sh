#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reads the tests that run on a GPU as nvcc's front ends read them, for the host and for a GPU, with warnings as errors. To make
# code of them takes minutes, and a GPU.
#   compiles.sh NVCC FLAGS_FILE SOURCE...
set -u
nvcc=$1
flags=$2
shift 2
if ! "$nvcc" --help | grep -q -- -fdevice-syntax-only; then
  echo "skipped: $nvcc has no -fdevice-syntax-only"
  exit 77
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
tests=$(cd "$(dirname "$0")/.." && pwd) || exit 1
export nvcc flags work tests
# shellcheck disable=SC2016  # the inner shell expands
printf '%s\n' "$@" | xargs -n 1 -P 2 sh -c '
  "$nvcc" --options-file "$flags" -I"$tests" -arch=sm_90a -DEIGEN_NO_CUDA -DFEDLORA_TEST_MANAGED_HEAP -DFEDLORA_TEST_DIR=\"\" \
    -Werror all-warnings -fdevice-syntax-only --cuda -x cu "$1" -o "$work/$(basename "$1").ii" || { echo "FAILED $1"; exit 1; }' sh || exit 1
echo "$# files"
