#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles every header of the library alone, included twice, with warnings as errors; those of kernels (.cuh) as what they are
# on the host, or, where the compiler is nvcc, these alone, as what they are on a GPU.
#   each_alone.sh INCLUDE_DIR FLAGS_FILE COMPILER...
# Takes the first of the compilers that is there; exits with 77 (skipped) if none is. Two compilations run at a time.
set -u
include_dir=$1
flags=$(realpath -e "$2") || exit 1
shift 2

compiler=
for candidate in "$@"; do
  if command -v "$candidate" >/dev/null 2>&1; then
    compiler=$candidate
    break
  fi
done
if [ -z "$compiler" ]; then
  echo "skipped: none of these compilers is installed: $*"
  exit 77
fi
case ${compiler##*/} in
  nvcc*)
    cd "$include_dir" || exit 1
    headers=$(find fedlora -name '*.cuh' | LC_ALL=C sort)
    count=$(printf '%s\n' "$headers" | grep -c .)
    [ "$count" -gt 0 ] || { echo "no header of kernels found in $include_dir"; exit 1; }
    work=$(mktemp -d) || exit 1
    trap 'rm -rf "$work"' EXIT
    export compiler flags work
    # shellcheck disable=SC2016  # the inner shell expands
    printf '%s\n' "$headers" | xargs -n 1 -P 2 sh -c '
      source=$work/$(printf %s "$1" | tr / _).cu
      printf "#include \"%s\"\n#include \"%s\"\nint main() {}\n" "$1" "$1" >"$source"
      "$compiler" --options-file "$flags" -arch=sm_80 -Werror all-warnings -Xcompiler -Wall,-Wextra -c "$source" -o /dev/null ||
        { echo "FAILED $1"; exit 1; }' sh || exit 1
    echo "$count headers of kernels, each compiled alone by $("$compiler" --version | tail -n 1)"
    exit 0
    ;;
esac
"$compiler" --version | head -n 1

# Headers of optional components want a library that need not be there.
skip=
if ! printf '#include <oneapi/dnnl/dnnl.hpp>\n' | "$compiler" "@$flags" -fsyntax-only -x c++ - 2>/dev/null; then
  skip=$(cd "$include_dir" && grep -rlE '#include <(oneapi/dnnl/)?dnnl' fedlora)
  [ -z "$skip" ] || echo "not compiled, for want of oneDNN: $skip"
fi

cd "$include_dir" || exit 1
headers=$(find fedlora -name '*.hpp' -o -name '*.cuh' | LC_ALL=C sort)
for header in $skip; do
  headers=$(printf '%s\n' "$headers" | grep -vxF "$header")
done
count=$(printf '%s\n' "$headers" | grep -c .)
[ "$count" -gt 0 ] || { echo "no header found in $include_dir"; exit 1; }

export compiler flags
# shellcheck disable=SC2016  # the inner shell expands
printf '%s\n' "$headers" | xargs -n 1 -P 2 sh -c '
  case $1 in *.cuh) define=-DFEDLORA_CUDA_ON_HOST ;; *) define= ;; esac
  printf "#include \"%s\"\n#include \"%s\"\nint main() {}\n" "$1" "$1" |
    "$compiler" "@$flags" $define -fsyntax-only -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Werror -x c++ - ||
    { echo "FAILED $1"; exit 1; }' sh
status=$?

# Without nvcc and without that switch, a header of kernels stops with one line that says so.
if printf '#include "fedlora/backend/cuda/low_rank_backward.cuh"\n' | "$compiler" "@$flags" -fsyntax-only -x c++ - >/dev/null 2>&1; then
  echo "FAILED fedlora/backend/cuda/low_rank_backward.cuh compiles without nvcc and without FEDLORA_CUDA_ON_HOST"
  exit 1
fi
[ "$status" -eq 0 ] && echo "$count headers, each compiled alone"
exit "$status"
