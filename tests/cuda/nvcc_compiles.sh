#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles every kernel for sm_80 and sm_90a with warnings as errors, and looks at what ptxas reports: a kernel whose sums leave
# registers, for local memory or by spilling, fails.
#   nvcc_compiles.sh NVCC INCLUDE_DIR SOURCE
set -u
report=$(mktemp) || exit 1
trap 'rm -f "$report"' EXIT
"$1" -std=c++20 -I "$2" -Werror all-warnings -Xcompiler -Wall,-Wextra -Xptxas -v \
  -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -c "$3" -o /dev/null >"$report" 2>&1
status=$?
if [ "$status" -ne 0 ]; then
  cat "$report"
  exit "$status"
fi
kernels=$(grep -c 'Compiling entry function' "$report")
leaving=$(awk '/Compiling entry function/ { kernel = $0 }
  /stack frame/ && !/ 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ { print kernel; print }' "$report")
sed -n 's/.*Used \([0-9]*\) registers.*/\1/p' "$report" | sort -n | tail -n 1 | sed "s/^/$kernels kernels, most registers: /"
if [ "$kernels" -eq 0 ] || [ -n "$leaving" ]; then
  printf 'kernels that use local memory:\n%s\n' "$leaving"
  exit 1
fi
