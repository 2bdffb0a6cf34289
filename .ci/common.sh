# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What run and long share. Sourced by bash, in any folder.
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DEBIAN_FRONTEND=noninteractive FEDLORA_DATA="${FEDLORA_DATA:-$PWD/../shared/data}"
export CUDAFLAGS='-Werror all-warnings'

phases=() # "SECONDS NAME", the seconds at which each began
phase() { phases+=("$SECONDS $1"); printf '\n=== %s (%d s)\n' "$1" "$SECONDS"; }
# How long each phase took, when all is over.
table_of_phases() {
  phases+=("$SECONDS end")
  printf '\nseconds  phase\n'
  for ((i = 0; i + 1 < ${#phases[@]}; i++)); do
    printf '%7d  %s\n' $((${phases[i + 1]%% *} - ${phases[i]%% *})) "${phases[i]#* }"
  done
}
trap table_of_phases EXIT

# ctest_over LABELS_LEFT_OUT BUILD...: one CTest run over several builds, so that one summary ends it all.
ctest_over() {
  local left_out=$1
  shift
  mkdir -p build/ci
  printf 'subdirs("%s")\n' "${@/#/$PWD/}" >build/ci/CTestTestfile.cmake
  local command=(ctest --test-dir build/ci -LE "$left_out" -j 2 --output-on-failure)
  # ThreadSanitizer of g++ 12 cannot map its shadow where the kernel randomises addresses widely.
  if setarch "$(uname -m)" -R true 2>/dev/null; then command=(setarch "$(uname -m)" -R "${command[@]}"); fi
  "${command[@]}"
}
