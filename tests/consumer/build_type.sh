#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# build_type.sh CMAKE GENERATOR COMPILER SOURCE BUILD OPTION...: configures SOURCE with and without a build type, and counts the
# warnings that there is none.
set -eu
cmake=$1 generator=$2 compiler=$3 source=$4 build=$5
shift 5
unset CXXFLAGS CMAKE_BUILD_TYPE

# expect TIMES OPTION...
expect() {
  times=$1
  shift
  rm -rf "$build"
  "$cmake" -S "$source" -B "$build" -G "$generator" "-DCMAKE_CXX_COMPILER=$compiler" "$@" >"$build.log" 2>&1 ||
    { cat "$build.log" >&2; exit 1; }
  got=$(grep -c 'CMAKE_BUILD_TYPE is empty' "$build.log" || true)
  [ "$got" -eq "$times" ] || { cat "$build.log" >&2; echo "expected $times warnings of no build type, got $got, with: $*" >&2; exit 1; }
}

expect 1 "$@"
expect 0 "$@" -DCMAKE_BUILD_TYPE=Release
expect 0 "$@" -DCMAKE_BUILD_TYPE=Debug
expect 0 "$@" -DCMAKE_CXX_FLAGS=-O2
expect 1 "$@" -DCMAKE_CXX_FLAGS=-O0
rm -rf "$build"
